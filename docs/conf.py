"""How Sphinx builds these pages for `make docs`."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent

project = "aiohttp_store"
copyright = "the aiohttp_store contributors"  # noqa: A001  (Sphinx' name)
(release,) = re.findall(r'^__version__ = "(.+)"$', (ROOT / "aiohttp_store/__init__.py").read_text(), re.MULTILINE)
version = release

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"  # the docstrings write `name`
nitpicky = True
nitpick_ignore_regex = [
    # They have documents of their own, which a build without a network cannot look up.
    (r"py:.*", r"(aiohttp|asyncio|collections|datetime|typing)\..*"),
]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

html_theme = "furo"
html_title = "aiohttp_store"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sourcelink = False
html_copy_source = False
