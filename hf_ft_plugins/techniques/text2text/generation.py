"""`generate_from_prompts`: a causal model's `generate`, given prompts with their targets, goes on from the prompts.

    with generate_from_prompts(model):
        Seq2SeqTrainer(model, ..., predict_with_generate=True).predict(test)

Seq2SeqTrainer hands the whole training batch, prompt and target, to `generate`, which is right for an encoder-decoder;
a causal model would see its answer and go on behind it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import torch

from ... import mends
from ...errors import PluginError
from ...models.inputs import main_input_name
from ...models.limits import longest_input
from .architecture import is_causal
from .loss import IGNORED

# What belongs to the whole row, and what `generate` makes itself.
NOT_OF_PROMPTS = ("labels", "position_ids")


@contextlib.contextmanager
def generate_from_prompts(
    model: Any,
    *,
    pad_token_id: int | None = None,
    default_new_tokens: int | None = None,
    on_batch: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], None] | None = None,
) -> Iterator[None]:
    """Within it, `model.generate(labels=..., ...)` cuts each row to its prompt, pads left and returns new tokens only.

    A row's prompt is what comes before its first label that is not -100. Calls without labels do what they did, but
    for a causal model's padding, which goes to the left, and so does an encoder-decoder, whose inputs hold no target,
    but for the default length. Afterwards the model and its generation config are as before.

    Args:
        model: a transformers or PEFT model.
        pad_token_id: fills prompts on the left; None: the generation config's, else 0. It is masked.
        default_new_tokens: the longest output where neither the call nor the generation config gives a length (then
            transformers takes 20). For a causal model a `max_length` counts new tokens, as predictions hold nothing
            else, but no further than the model has positions.
        on_batch: called with prompts or sources [B, S], labels [B, L] and generated ids [B * sequences, T], int64.

    Raises:
        PluginError: a row has no prompt.
    """
    plain, own, config = model.generate, vars(model).get("generate"), model.generation_config
    causal = is_causal(model)
    before = deepcopy(vars(config))

    def generate(*args: Any, labels: torch.Tensor | None = None, **kwargs: Any) -> Any:
        if labels is None:
            return plain(*args, **(padded_left(kwargs) if causal else kwargs))
        # Seq2SeqTrainer writes transformers' defaults, such as max_length=20, into it after each batch.
        vars(config).update(deepcopy(before))
        width, room = 0, None
        if causal:
            kwargs = prompts_of(
                kwargs | {"labels": labels}, config.pad_token_id if pad_token_id is None else pad_token_id
            )
            width = kwargs["input_ids"].shape[1]
            positions = longest_input(model)
            room = positions and max(1, positions - width)
        new_tokens = _new_tokens(kwargs, config, default_new_tokens, causal)
        if new_tokens is not None:
            kwargs |= {"max_new_tokens": min(new_tokens, room or new_tokens), "max_length": None}
            config.max_length = None
        generated = plain(*args, **kwargs)[:, width:]
        sources = kwargs.get(main_input_name(model))
        # Sounds and pictures cannot be shown as text.
        if on_batch is not None and sources is not None and not sources.is_floating_point():
            on_batch(sources, labels, generated)
        return generated

    model.generate = generate
    try:
        yield
    finally:
        del model.generate
        if own is not None:
            model.generate = own
        vars(config).update(before)


def _new_tokens(kwargs: dict[str, Any], config: Any, default: int | None, causal: bool) -> int | None:
    """The limit of new tokens to say to `generate`; None where what it has been told stands."""
    if kwargs.get("generation_config") is not None or kwargs.get("max_new_tokens") is not None:
        return None
    whole = kwargs.get("max_length")
    if whole is None and config.max_new_tokens is not None:
        return None
    whole = config.max_length if whole is None else whole
    if whole is None:
        return default
    return whole if causal else None


def prompts_of(batch: dict[str, Any], pad_token_id: int | None) -> dict[str, Any]:
    """A causal batch cut to its prompts, padded on the left; without `labels` and `position_ids`.

    Args:
        batch: `input_ids`, `labels`, and perhaps `attention_mask` and others [B, L]; padded on either side.

    Raises:
        PluginError: a row has no prompt.
    """
    ids = batch["input_ids"]
    kept = (batch["labels"] != IGNORED).cumsum(dim=1) == 0
    mask = batch.get("attention_mask")
    if mask is not None:
        kept &= mask.bool()
    lengths = kept.sum(dim=1)
    if not lengths.all():
        raise PluginError(
            f"text2text: {int((lengths == 0).sum())} of {len(ids)} rows of an evaluation batch have no prompt to "
            "generate from: their first label is not -100. Set the labels of prompts to -100, or predict_with_generate "
            "to False.",
            code="data-rows",
            mend=[mends.set_argument("predict_with_generate", False)],
        )
    rest = {name: value for name, value in batch.items() if name not in NOT_OF_PROMPTS}
    cut, kept = _behind(rest, kept)
    return cut | {
        "input_ids": cut["input_ids"].masked_fill(~kept, pad_token_id or 0),
        "attention_mask": kept.to(ids.dtype if mask is None else mask.dtype),
    }


def padded_left(batch: dict[str, Any]) -> dict[str, Any]:
    """The batch with the padding that its attention mask hides before each row's tokens; as it is without any behind
    them."""
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    if ids is None or mask is None or mask.shape != ids.shape or bool(mask[:, -1].all()):
        return batch
    kept = mask.bool()
    # What is hidden between tokens stays where it is.
    kept = kept.flip(1).cumsum(dim=1).flip(1) > 0
    cut, _ = _behind(batch, kept)
    return cut


def _behind(batch: dict[str, Any], kept: torch.Tensor) -> tuple[dict[str, Any], torch.Tensor]:
    """Each row's kept places, in their order, behind those that are not, as wide as the longest needs; and which."""
    longest = max(1, int(kept.sum(dim=1).max()))
    order = kept.long().argsort(dim=1, stable=True)[:, -longest:]
    cut = {
        name: value.gather(1, order) if isinstance(value, torch.Tensor) and value.shape == kept.shape else value
        for name, value in batch.items()
    }
    return cut, kept.gather(1, order)
