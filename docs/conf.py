"""How Sphinx builds these pages for `make docs`."""

import re
from typing import Any

import aiohttp_store
import aiohttp_store.testing

project = "aiohttp_store"
copyright = "the aiohttp_store contributors"  # noqa: A001  (Sphinx' name)
version = release = aiohttp_store.__version__

extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"  # the docstrings write `name`
nitpicky = True
nitpick_ignore_regex = [
    # They have documents of their own, which a build without a network cannot look up.
    (r"py:.*", r"(aiohttp|aiomcache|asyncio|collections|contextlib|cryptography|datetime|os|redis|ssl|typing)\..*"),
    (r"py:class", r"aiohttp_store\..*\.T"),  # a type variable, of which there is nothing to say
]

autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "aiohttp_store"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_show_sourcelink = False
html_copy_source = False


def link_public_names(_app: Any, _what: str, documented: str, _found: Any, _options: Any, lines: list[str]) -> None:
    """Make links of the public names in a docstring, but not to itself."""
    if documented.startswith("aiohttp_store.compat."):
        return  # its names are aiohttp-session's

    def link(match: re.Match[str]) -> str:
        for module in (aiohttp_store.testing, aiohttp_store):
            target = f"{module.__name__}.{match[1]}"
            if match[1] in module.__all__ and not f"{documented}.".startswith(f"{target}."):
                return f":py:obj:`{match[1]} <{target}>`"
        return match[0]

    lines[:] = [re.sub(r"(?<![`:])`(\w+)`(?!`)", link, line) for line in lines]


def setup(app: Any) -> None:
    """Register what this file adds to Sphinx."""
    app.connect("autodoc-process-docstring", link_public_names)
