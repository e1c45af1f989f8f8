"""Parts of `feedback`, each against the libraries for it: see `__main__.py`."""
