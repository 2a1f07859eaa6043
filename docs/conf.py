"""How Sphinx makes the site; `bash docs/build.sh` runs it."""

import pathlib
import re
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))

import var_jax

project = "var_jax"
author = "the authors of var_jax"
release = var_jax.__version__
html_title = f"var_jax {release}"
html_theme = "furo"
html_copy_source = False

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
templates_path = ["templates"]
exclude_patterns = ["templates"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests/test_colabs.py executes them.

# Every module has a page, and its docstrings are what stands there.
autodoc_default_options = {
    "members": True,
    "special-members": "__call__",
    "exclude-members": "replace",  # flax's, of every struct
    "ignore-module-all": True,
}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
napoleon_use_ivar = True
napoleon_attr_annotations = False  # The signature has them.
napoleon_custom_sections = ["Returns"]  # Sentences; a colon in one separates no type.
default_role = "py:obj"
# What is named as part of this package must be there. Other packages are not asked.
nitpicky = True
nitpick_ignore_regex = [("py:.*", r"(?!var_jax(\.\w+)+$).*"), ("py:.*", r".*\.(T|_\w+)")]
suppress_warnings = ["ref.python"]  # A short name that several modules have.


def only_code_is_markup(app, what, name, obj, options, lines):
    """Makes reStructuredText of a docstring: plain text, `code`, and indented blocks of code."""
    found, in_block = [], False
    for line in lines:
        if line and not line.startswith("    "):
            in_block = False
        elif line and found and not found[-1] and not in_block:
            in_block = True
            found += ["::", ""]
        found.append(line if in_block else _text(line))
    lines[:] = found


def _text(line):
    # Sphinx takes "a, b: text" for a parameter b of the type "a,"; without a space it does not.
    line = re.sub(r"^ +\w+(, \w+)+(?=:)", lambda names: names[0].replace(", ", ",\u200b"), line)
    parts = re.split(r"(`[^`]*`)", line)
    parts[::2] = [re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", part) for part in parts[::2]]
    for i in range(2, len(parts), 2):
        if re.match(r"\w", parts[i]):  # `Row`s
            parts[i] = "\\ " + parts[i]
    return "".join(parts)


def notebooks_link_from_here(app, docname, source):
    """docs/notebooks is a copy of colabs/, where a link to a page here starts with ../docs."""
    if docname.startswith("notebooks/"):
        source[0] = source[0].replace("](../docs/", "](../")


def setup(app):
    app.connect("source-read", notebooks_link_from_here)
    app.connect("autodoc-process-docstring", only_code_is_markup, priority=100)
