"""`hf-ft suggest`: a script is run until its first training step, and looked at."""
