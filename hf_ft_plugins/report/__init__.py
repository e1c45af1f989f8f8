"""What a run was and what came of it, as one page that needs nothing else: `hf-ft report`.

The host writes the record of a run into its `output_dir` (`host/run_record.py`); techniques add sections of their own
(`sections.py`, by the hook `ft_report`). `reading.py` reads records, and the log of stock runs; `charts.py` and
`page.py` make the page, `model_card.py` the section of the model card.
"""
