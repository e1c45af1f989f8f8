"""The command `hf-ft`."""
