"""The built-in techniques, one module or folder each."""
