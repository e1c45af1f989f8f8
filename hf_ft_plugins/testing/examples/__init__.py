"""One module for each built-in technique: its `EXAMPLE`, and the tiny models and data that it is tried on."""
