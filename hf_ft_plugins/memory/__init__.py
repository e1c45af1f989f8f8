"""What a run will take of memory, before its model is loaded."""
