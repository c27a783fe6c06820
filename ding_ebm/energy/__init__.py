"""What one does with an energy: training, scaling, potentials, correction."""
