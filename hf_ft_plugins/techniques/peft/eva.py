"""EVA's beginning: LoRA's A matrices along the directions in which the layers' inputs vary most.

Paischer et al. 2024 (arXiv:2410.07170). peft has the computation and leaves the pass over the data to the user. Here
the data are the trainer's, in order, as many batches as the directions need to settle; ranks are dealt out to the
layers by the variance that they explain.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import closing
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from ...progress import progress
from .layers import NAME

if TYPE_CHECKING:
    from transformers import Trainer


logger = logging.getLogger(__name__)


def initialize(trainer: Trainer) -> None:
    """Give the trainer's LoRA adapter, with `init_lora_weights="eva"`, its beginning from the training data.

    Every rank gets what the first computes. A resumed run computes it once more, to have the ranks that its
    checkpoint has. The global random state is left as it was.
    """
    from peft.tuners.lora.eva import get_eva_state_dict, initialize_lora_eva_weights

    model, args = trainer.accelerator.unwrap_model(trainer.model), trainer.args
    found: list[Any] = [None]
    training = model.training
    if args.process_index == 0:
        # peft's own bar has no name, and is there from the first moment.
        quietly = {"gather_distributed_inputs": False, "show_progress_bar": False}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(args.seed)
            with closing(_Batches(trainer.feature_batches())) as batches:
                found = [get_eva_state_dict(model, batches, **quietly)]
    if args.world_size > 1:
        dist.broadcast_object_list(found, src=0)
    initialize_lora_eva_weights(model, eva_state_dict=found[0], gather_distributed_inputs=False)
    model.train(training)
    ranks = [sum(tensor.shape[:1]) for name, tensor in model.state_dict().items() if ".lora_A." in name]
    logger.info("%s: EVA's ranks: %d to %d, %d in all", NAME, min(ranks), max(ranks), sum(ranks))


class _Batches:
    """A loader whose length peft may ask for, to see that it is not empty; a stream has none."""

    def __init__(self, loader: Any) -> None:
        self.loader = loader
        self._shown: Any = None

    def __iter__(self) -> Iterator[Any]:
        # How many are needed is not known: not their number.
        batches = (batch for batch in self.loader)
        self._shown = progress(batches, f"{NAME}: EVA's directions", unit="batches")
        return self._shown

    def close(self) -> None:
        """peft stops as soon as all directions have settled."""
        if self._shown is not None:
            self._shown.close()

    def __len__(self) -> int:
        return 1
