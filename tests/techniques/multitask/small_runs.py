"""What several tests of whole runs take."""

import torch

from hf_ft_plugins.techniques.multitask import (
    multitask_dataset,
)
from hf_ft_plugins.testing.examples.multitask import (
    TASKS,
    tiny_moods,
    tiny_tagged,
)


def quiet(model):
    """Without dropout, so that two orders of the same work give the same numbers."""
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
    return model


def both_evaluated():
    """Each data set evaluated by itself, under its name."""
    sets = {"trees": tiny_tagged(8, seed=1), "moods": tiny_moods(6, seed=1)}
    return {name: multitask_dataset(rows, TASKS, name, need_all=False) for name, rows in sets.items()}
