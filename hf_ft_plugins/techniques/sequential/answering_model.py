"""A model that answers prompts of token ids as it predicts, in batches of about one length, and is left as it was."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from ... import mends
from ...errors import PluginError
from ...keyed_permutation import key_of
from ...models.inputs import bare
from ...models.limits import longest_input
from ...progress import progress
from .settings import NAME

# What answers begin with. Penalties and beams of the model's settings would answer otherwise than it predicts.
KEPT_SETTINGS = ("bos_token_id", "decoder_start_token_id", "forced_bos_token_id")


@dataclass(frozen=True)
class Question:
    """A prompt.

    Attributes:
        prompt: ids; of an encoder-decoder the source.
        room: ids that an answer may have, its end among them; below 1: none.
    """

    prompt: list[int]
    room: int


class AnsweringModel:
    """Asks a model; arguments as of `with_own_answers`.

    Attributes:
        causal: whether a prompt goes on as its answer.
        special: ids that the tokenizer says are no text.
        ends: ids that end an answer.
        pad: id of padding.
        limit: tokens in the model's longest row; None: any number.
    """

    def __init__(self, model: Any, tokenizer: Any, batch_size: int, seed: int, temperature: float) -> None:
        self.model, self.tokenizer = model, tokenizer
        self.batch_size, self.seed, self.temperature = batch_size, seed, temperature
        forward = inspect.signature(bare(model).forward).parameters
        self.causal = not (bare(model).config.is_encoder_decoder and "decoder_input_ids" in forward)
        self.limit = longest_input(model)
        self.special = set(getattr(tokenizer, "all_special_ids", ()))
        self.special |= {
            token for token, added in getattr(tokenizer, "added_tokens_decoder", {}).items() if added.special
        }
        config = model.generation_config
        known = config.eos_token_id if isinstance(config.eos_token_id, (list, tuple)) else [config.eos_token_id]
        self.ends = {token for token in (*known, getattr(tokenizer, "eos_token_id", None)) if token is not None}
        pads = (getattr(tokenizer, "pad_token_id", None), config.pad_token_id, *self.ends)
        self.pad = next((token for token in pads if token is not None), 0)

    def answers(self, questions: Sequence[Question], ends: set[int]) -> list[list[int] | None]:
        """Ids of each answer up to its end, which is among them; None where it has none, or nothing before it.

        Raises:
            PluginError: no token ends an answer.
        """
        if questions and not ends:
            raise PluginError(
                f"{NAME}: own_answers=True, and neither the tokenizer nor the model's generation_config has an "
                "eos_token_id, so no answer ends. Set it there, or set own_answers=False.",
                code="tokenizer-unsuited",
                mend=[mends.set_option(NAME, "own_answers", False)],
            )
        found: list[list[int] | None] = [None] * len(questions)
        order = sorted(range(len(questions)), key=lambda place: len(questions[place].prompt))
        with _answering(self.model):
            starts = range(0, len(order), self.batch_size)
            for start in progress(starts, f"{NAME}: the model's own answers", unit="batches"):
                places = order[start : start + self.batch_size]
                # A batch draws what it would draw by itself.
                torch.manual_seed(int(key_of(self.seed, start)[0] % 2**63))
                batch = self._generated([questions[place] for place in places], ends)
                for place, ids in zip(places, batch, strict=True):
                    length = next((at for at, token in enumerate(ids, 1) if token in ends), 0)
                    if 1 < length <= questions[place].room:
                        found[place] = ids[:length]
        return found

    def _generated(self, questions: list[Question], ends: set[int]) -> list[list[int]]:
        from transformers import GenerationConfig

        width = max(len(question.prompt) for question in questions)
        most = max(question.room for question in questions)
        if self.limit is not None:
            most = min(most, self.limit - width if self.causal else self.limit)
        if most < 1:
            return [[] for _ in questions]
        # On the left before what is to go on; an encoder takes its padding behind.
        rest = [[self.pad] * (width - len(question.prompt)) for question in questions]
        pairs = list(zip(rest, questions, strict=True))
        ids = [[*pads, *one.prompt] if self.causal else [*one.prompt, *pads] for pads, one in pairs]
        masks = [[0] * len(pads) + [1] * len(one.prompt) for pads, one in pairs]
        device = self.model.device
        config = self.model.generation_config
        drawn = {"do_sample": True, "temperature": self.temperature, "top_k": 0, "top_p": 1.0}
        settings = GenerationConfig(
            **{name: getattr(config, name) for name in KEPT_SETTINGS},
            **(drawn if self.temperature > 0 else {"do_sample": False}),
            eos_token_id=sorted(ends),
            pad_token_id=self.pad,
            max_new_tokens=most,
            use_cache=True,
        )
        # Generation fills what is not said from the model's own settings.
        before = deepcopy(vars(config))
        vars(config).clear()
        vars(config).update(deepcopy(vars(settings)))
        try:
            generated = self.model.generate(
                input_ids=torch.tensor(ids, device=device),
                attention_mask=torch.tensor(masks if self.causal else [mask[::-1] for mask in masks], device=device),
                generation_config=settings,
            )
        finally:
            vars(config).clear()
            vars(config).update(before)
        new: list[list[int]] = generated[:, width if self.causal else 1 :].tolist()
        return new


@contextlib.contextmanager
def _answering(model: Any) -> Iterator[None]:
    """Without dropout and gradients; modes and random state are as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    devices = [model.device] if model.device.type == "cuda" else []
    model.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=devices):
            yield
    finally:
        for module, training in modes:
            module.training = training
