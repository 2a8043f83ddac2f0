"""What the docs site does beyond Sphinx and its Markdown parser."""
