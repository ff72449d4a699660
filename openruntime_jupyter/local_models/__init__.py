"""Local language models: find, download, load and run them."""
