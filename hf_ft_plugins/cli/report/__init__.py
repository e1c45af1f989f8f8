"""`hf-ft report`: runs as one page that needs nothing else: no network, no script, no second file.

`reading.py` finds the runs in folders, `panels.py` says what is drawn of them, `drawing.py` draws it, and `page.py`
puts the page together.
"""
