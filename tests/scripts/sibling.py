"""What `observe.py` imports from beside it."""
