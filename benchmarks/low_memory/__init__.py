"""What `low-memory` saves and what it costs; `__main__.py` says what is measured."""
