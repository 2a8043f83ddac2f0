"""The docs site, which `make docs` builds into build/docs.

Sphinx's source directory is the repository's root, so that relative links mean the same on the site as on a code host.
"""

import sys
import tomllib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

urls = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]

project = "motes"
copyright = "the motes authors"
root_doc = "docs/index"
include_patterns = ["docs/**", "results/**", "examples/*.ipynb", "CHANGELOG.md", "CONTRIBUTING.md"]
exclude_patterns = [".*", "build", "dist", "src", "tests"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "extensions.names",
    "extensions.commands",
    "extensions.keys",
    "extensions.sources",
    "extensions.example",
    "extensions.links",
]
# Of extensions.sources: where files can be read on a code host. Without it they are shown on pages of the site.
repository = f"{urls['Repository']}/blob/main" if "Repository" in urls else ""

highlight_language = "text"
smartquotes = False

# Markdown as code hosts read it: headings can be linked to by their text.
myst_heading_anchors = 4

# Notebooks are shown as they are stored; tests/test_examples.py runs them.
nb_execution_mode = "off"

# The API comes from docstrings. What is heavy is not installed here: modules that import it are read without it.
autodoc_mock_imports = ["datasets", "inspect_ai", "jinja2", "ray", "safetensors", "tokenizers", "torch", "transformers"]
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_type_aliases = {"FloatArray": "FloatArray", "IntArray": "IntArray", "npt.ArrayLike": "ArrayLike"}
napoleon_numpy_docstring = False
napoleon_custom_sections = [("Attributes", "params_style"), ("Fields", "params_style")]
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
add_module_names = False
toc_object_entries_show_parents = "hide"

html_theme = "pydata_sphinx_theme"
html_title = "motes"
templates_path = ["extensions/templates"]
html_additional_pages = {"index": "redirect.html"}
html_static_path = ["extensions/static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_theme_options = {
    "logo": {"text": "motes"},
    "navbar_align": "left",
    "header_links_before_dropdown": 6,
    "navigation_with_keys": False,
    "show_prev_next": False,
    "footer_start": ["copyright"],
    "footer_end": [],
}
html_context = {"default_mode": "auto"}
