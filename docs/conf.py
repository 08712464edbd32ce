"""How Sphinx makes the site from docs/: `make docs`. Nothing in it is loaded from a network."""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
PAGES = sorted(file.stem for file in HERE.glob("*.md"))
sys.path.insert(0, str(HERE / "_ext"))

project = "bridges"
copyright = "the bridges authors"
extensions = [
    "myst_parser",
    "sphinx_design",
    "sphinx_copybutton",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "guides",
    "case_study",
    "messages",
    "api",
    "docstrings",
]
exclude_patterns = ["_build", "_ext"]
nitpicky = False
default_role = "code"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
suppress_warnings = ["ref.python"]  # a field called `type` is taken for the type

html_theme = "pydata_sphinx_theme"
html_title = "bridges"
html_static_path = ["_static"]
html_css_files = ["pages.css", "columns.css"]
html_js_files = ["columns.js", "tables.js", "search.js"]
html_show_sourcelink = False
html_copy_source = False
html_show_search_summary = False  # it fetches pages, which a browser refuses for a site that is read from a disk
# A guide has the width of the page for its columns; pages without neighbours have nothing to show there.
html_sidebars = {page: [] for page in ("index", "start", "errors", "decisions", "guides/*")}
html_theme_options = {
    "navbar_end": ["theme-switcher"],
    "secondary_sidebar_items": {page: ["page-toc"] for page in (*PAGES, "api/*")} | {"guides/*": [], "index": []},
    "footer_start": ["copyright"],
    "footer_end": [],
    "show_prev_next": True,
}
html_context = {"default_mode": "auto"}
copybutton_prompt_text = "$ "
copybutton_only_copy_prompt_lines = True
copybutton_exclude = ".linenos, .go"
