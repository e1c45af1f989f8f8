"""`hf-ft compare`: one script, without and with techniques, side by side as a table and a picture.

`comparison.py` goes through it from top to bottom: the runs (`running.py`), what they logged (`outcomes.py`), what can
be said of it (`verdicts.py`), and how that is shown (`table.py`, `picture.py`).
"""
