"""Sphinx configuration."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import deferred_middleware

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "deferred_middleware"
author = copyright = "the deferred_middleware authors"
version = release = deferred_middleware.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["_build"]
# So that the pages about the frameworks' modules build without the frameworks.
autodoc_mock_imports = ["django", "flask", "webapp2", "werkzeug"]
autodoc_member_order = "bysource"
nitpicky = True
nitpick_ignore_regex = [
    # Python's own, the SDK's and the frameworks' names: the build uses no network, so it can't link to their pages.
    (r"py:.*", r"(?!deferred_middleware).*"),
    # Type variables, which autodoc names with their module.
    (r"py:class", r"deferred_middleware\.enqueue\.decorator\.(P|R|T|_Decorate)"),
]

html_theme = "furo"
html_title = "deferred_middleware"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = True
copybutton_prompt_text = "$ "
# The words that people search for are in the text of the pages, also those of literals.
html_search_options = {"type": "default"}


def write_llms_txt(app: Sphinx, error: Exception | None) -> None:
    """Write ``llms.txt``: all pages with their first sentence, as plain text for language models (llmstxt.org)."""
    if error is not None or app.builder.format != "html":
        return
    lines = ["# deferred_middleware", "", "> Run Python calls later, on App Engine, Cloud Tasks or one machine.", ""]
    for name in sorted(app.env.found_docs, key=lambda name: (name != app.config.root_doc, name)):
        title = app.env.titles[name].astext()
        lines.append(f"- [{title}](_sources/{name}.rst.txt)")
    (Path(app.outdir) / "llms.txt").write_text("\n".join(lines) + "\n")


def setup(app: Sphinx) -> None:
    """Register what runs after the build."""
    app.connect("build-finished", write_llms_txt)
