# Copyright Contributors to the pyro_gumbel project.
# SPDX-License-Identifier: Apache-2.0

"""How Sphinx builds the site; `make docs` runs it."""

import os
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx

import pyro_gumbel

sys.path.insert(0, str(Path(__file__).parent))  # for gallery.py and pictures.py
from gallery import EXAMPLES, forget_stale, offer_what_is_shared

project = "pyro_gumbel"
author = "The pyro_gumbel contributors"
copyright = f"{author}. Apache-2.0"
version = release = pyro_gumbel.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx_copybutton",
    "sphinx_design",
    "sphinx_gallery.gen_gallery",
    "pictures",
]
# Sites of others are asked only where there is a network: `DOCS_ONLINE=1 make docs`.
if os.environ.get("DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
        "pyro": ("https://docs.pyro.ai/en/stable", None),
    }

exclude_patterns = ["_build", "test_site.py"]
templates_path = ["_templates"]

html_theme = "furo"
html_title = f"pyro_gumbel {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
if os.environ.get("DOCS_FAST"):
    note = "DOCS_FAST=1: tutorials of a few steps"  # one line on a phone
    html_theme_options = {"announcement": note}
html_favicon = "_static/favicon.svg"
mathjax_path = "mathjax/tex-chtml.js"
copybutton_prompt_text = ">>> |... |$ "
copybutton_prompt_is_regexp = True

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

default_role = "name"  # see below
autosummary_generate = True
autosummary_ignore_module_all = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature shows them
autodoc_preserve_defaults = True

# Tutorials: every example is run, and shown with what it prints and draws (see gallery.py).
sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "tutorials",
    "filename_pattern": r"\.py",
    "ignore_pattern": r"options\.py",
    "within_subsection_order": "gallery.place",
    "reset_argv": "gallery.arguments_of",
    "image_scrapers": "gallery.pictures_of",
    "parallel": 2,
    "thumbnail_size": (480, 200),
    "download_all_examples": False,
    "notebook_extensions": set(),  # the examples are programs with options
    "min_reported_time": 1_000_000,  # the time of a run says little here
    "write_computation_times": False,
    "show_signature": False,
}

smartquotes_action = "qe"  # quotes and ellipses; a dash may belong to an option
nitpicky = True
# Types of others in signatures, which are links with DOCS_ONLINE=1 only.
nitpick_ignore_regex = [("py:.*", r"(torch|pyro|pyro\.distributions|typing|collections|Tensor).*")]


# The npm package, which the Makefile installs: a reader's browser asks no other site.
MATHJAX = Path(sys.prefix, "node_modules", "mathjax", "es5")
LINKED = {
    name for name in pyro_gumbel.__all__ if not isinstance(getattr(pyro_gumbel, name), ModuleType)
}


def name_role(
    role: str, source: str, text: str, line: int, inliner: Any, *_: Any
) -> tuple[list[nodes.Node], list[nodes.system_message]]:
    """A name in backticks in a docstring: code, and a link if it is ours or that of an example."""
    code = nodes.literal(source, text)
    if text.removesuffix(".py") in EXAMPLES:
        tutorial = f"/tutorials/{text.removesuffix('.py')}"
        target = {"refdomain": "std", "reftype": "doc", "reftarget": tutorial, "refexplicit": True}
    elif text in LINKED:
        target = {"refdomain": "py", "reftype": "obj", "reftarget": f"pyro_gumbel.{text}"}
    else:
        return [code], []
    page = inliner.document.settings.env.docname
    return [pending_xref(source, code, refdoc=page, refwarn=True, **target)], []


def copy_mathjax(app: Sphinx, error: Exception | None) -> None:
    """Put MathJax beside the pages."""
    if error is None and app.builder.format == "html":
        there = Path(app.outdir, "_static", "mathjax")
        others = shutil.ignore_patterns(
            "mml-*", "tex-mml-*", "tex-svg*", "*-full*", "svg*", "node*"
        )
        shutil.copytree(MATHJAX, there, ignore=others, dirs_exist_ok=True)


def setup(app: Sphinx) -> None:
    """What Sphinx calls."""
    app.add_role("name", name_role)
    app.connect("builder-inited", forget_stale, priority=0)  # before Sphinx-Gallery
    app.connect("source-read", offer_what_is_shared)
    app.connect("build-finished", copy_mathjax)
