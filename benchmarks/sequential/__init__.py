"""What `sequential` keeps of earlier stages, and what it costs. See `__main__.py`."""
