"""What transfer gains on small data sets: see `__main__.py`."""
