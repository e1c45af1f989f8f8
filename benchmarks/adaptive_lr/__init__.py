"""What the adaptive learning rate gains: see `__main__.py`."""
