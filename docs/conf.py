"""Sphinx configuration."""

import deferred_middleware

project = "deferred_middleware"
author = copyright = "the deferred_middleware authors"
version = release = deferred_middleware.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
# So that the pages about the frameworks' modules build without the frameworks.
autodoc_mock_imports = ["django", "flask", "webapp2"]
autodoc_member_order = "bysource"
html_theme = "alabaster"
