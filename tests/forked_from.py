"""Imported by the process that two ranks, and others, are forked from: all that a training needs, once.

Nothing of it becomes garbage, and each `Trainer.train()` would look through all of it.
"""

import gc

import transformers.trainer  # noqa: F401

import hf_ft_plugins.testing  # noqa: F401

gc.collect()
gc.freeze()
