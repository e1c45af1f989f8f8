"""How tasks share a run: which data a batch is drawn from, and what each task's loss or gradient counts."""
