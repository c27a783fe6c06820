"""The built-in avoid task."""
