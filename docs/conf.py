"""Sphinx configuration; the site builds without a network."""

import re
from pathlib import Path

project = "ding_ebm"
author = "the ding_ebm authors"
copyright = "the ding_ebm authors, Apache-2.0"
release = re.search(
    r'^__version__ = "([^"]+)"$',
    (Path(__file__).resolve().parents[1] / "ding_ebm" / "__init__.py").read_text("utf-8"),
    re.MULTILINE,
).group(1)

extensions = ["myst_parser", "sphinx.ext.mathjax"]
myst_enable_extensions = ["amsmath", "deflist", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"ding_ebm {release}"
