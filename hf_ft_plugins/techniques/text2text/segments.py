"""`pack_aware`: an encoder-decoder that keeps the pairs of a packed row apart; `refuse_leaks`: does a causal model?

transformers hands an encoder-decoder one mask for the encoder and for the cross-attention, and where both sides are
equally wide a wrong one is taken silently. Hooks on encoder and decoder make each its own, from the segment ids.
"""

from __future__ import annotations

import logging
from typing import Any

import torch

from ... import mends
from ...errors import PluginError
from .arrays import Ragged

logger = logging.getLogger(__name__)

TESTED = {"bart": "BART", "marian": "Marian", "mt5": "mT5", "t5": "T5"}
ATTENTIONS = ("eager", "sdpa")
PACKED = ("encoder_segment_ids", "decoder_segment_ids", "encoder_position_ids", "decoder_position_ids")


def pack_aware(model: Any) -> Any:
    """Hooks an encoder-decoder, in place, so that it takes the batches of `TextPairCollator(packing="pairs")`.

    A batch with segment ids gets its masks and positions from them; any other passes as before. Weights, their names
    and the model's class stay. Hooks are module-level functions and hold no state, so copies of the model are aware,
    too; applied twice they are there once. Under DDP, apply it before the model is wrapped.

    Args:
        model: T5, mT5, BART or Marian, with attention "eager" or "sdpa"; adapters of PEFT may wrap it.

    Returns:
        The same model.

    Raises:
        PluginError: another model or attention, or PEFT's prompts, which lengthen every row.
    """
    _refuse_untested(model)
    for module, before in ((model.get_encoder(), _mask_encoder), (model.get_decoder(), _mask_decoder)):
        if before in module._forward_pre_hooks.values():
            continue
        module.register_forward_pre_hook(before, with_kwargs=True)
        if hasattr(module, "embed_positions"):
            module.embed_positions.register_forward_pre_hook(_ask_positions, with_kwargs=True)
            module.embed_positions.register_forward_hook(_in_rows)
    return model


def is_pack_aware(model: Any) -> bool:
    encoder = model.get_encoder() if hasattr(model, "get_encoder") else None
    return encoder is not None and _mask_encoder in encoder._forward_pre_hooks.values()


def _refuse_untested(model: Any) -> None:
    kind = getattr(model.config, "model_type", None)
    if kind not in TESTED:
        raise PluginError(
            f"text2text: packing='pairs' has not been tested with {type(model).__name__} (model type {kind!r}), and a "
            f"wrong mask would go unnoticed. Tested: {', '.join(TESTED.values())}. Use packing='none'.",
            code="model-unsuited",
            mend=[mends.set_option("text2text", "packing", "none")],
        )
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        raise PluginError(
            "text2text: packing='pairs' does not go with PEFT's prompt and prefix tuning, which put tokens of their "
            "own before every row. Use packing='none', or another adapter.",
            code="model-unsuited",
            mend=[mends.set_option("text2text", "packing", "none")],
        )
    _refuse_attention(model.config._attn_implementation)


def _refuse_attention(implementation: str) -> None:
    if implementation not in ATTENTIONS:
        raise PluginError(
            f"text2text: packing='pairs' has been tested with the attentions {' and '.join(ATTENTIONS)}, not with "
            f"{implementation!r}. Load the model with attn_implementation='sdpa', or use packing='none'.",
            code="model-unsuited",
            mend=[
                mends.set_model_argument("attn_implementation", "sdpa"),
                mends.set_option("text2text", "packing", "none"),
            ],
        )


def _mask_encoder(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    _keep_positions(module, kwargs.get("encoder_position_ids"))
    segments = kwargs.get("encoder_segment_ids")
    if segments is None:
        return None
    same = segments[:, :, None] == segments[:, None, :]
    return args, _rest(kwargs) | {"attention_mask": _mask(module, same)}


def _mask_decoder(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    _keep_positions(module, kwargs.get("decoder_position_ids"))
    segments = kwargs.get("decoder_segment_ids")
    if segments is None:
        return None
    itself = (segments[:, :, None] == segments[:, None, :]).tril()
    # Padding may see everything: a row of a mask that allows nothing becomes NaN in some kernels.
    source = (segments[:, :, None] == kwargs["encoder_segment_ids"][:, None, :]) | (segments == 0)[:, :, None]
    masks = {"attention_mask": _mask(module, itself), "encoder_attention_mask": _mask(module, source)}
    return args, _rest(kwargs) | masks


def _rest(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name not in PACKED}


def _mask(module: Any, allowed: torch.Tensor) -> torch.Tensor:
    """[R, 1, queries, keys] in the form in which the attention takes it: eager *adds* what it gets, a bool, too."""
    implementation = module.config._attn_implementation
    _refuse_attention(implementation)
    allowed = allowed[:, None]
    if implementation == "sdpa":
        return allowed
    hidden = torch.finfo(module.dtype).min
    return torch.zeros_like(allowed, dtype=module.dtype).masked_fill(~allowed, hidden)


# ---- positions, where the model looks them up in a table (BART, Marian) ----


def _keep_positions(module: Any, positions: torch.Tensor | None) -> None:
    # For the one call of `embed_positions` within this forward; anew in each, so that an exception leaves nothing over.
    if hasattr(module, "embed_positions"):
        module.embed_positions.packed_positions = positions


def _ask_positions(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    positions = module.packed_positions
    # Flat: BART takes only one dimension.
    return None if positions is None else (args, kwargs | {"position_ids": positions.flatten()})


def _in_rows(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor | None:
    positions, module.packed_positions = module.packed_positions, None
    return None if positions is None else output.reshape(*positions.shape, -1)


# ---- causal models ----


@torch.no_grad()
def refuse_leaks(model: Any, flatten: Any) -> None:
    """Try a causal model on two sequences in one row: other tokens in the first must not move the second's logits.

    Args:
        model: in place where it is to run; its mode is restored. Not tried, with a warning, where it cannot run there:
            sharded or without weights, or flash attention on a CPU.
        flatten: the `Flattener` of the batches.

    Raises:
        PluginError: they move: the model does not read the restarting positions, or mixes tokens in another way.
    """
    weight = next(model.parameters())
    if weight.is_meta or weight.numel() == 0 or (flatten.flash and weight.device.type == "cpu"):
        logger.warning("text2text: %s cannot be tried on flattened rows here.", type(model).__name__)
        return
    was_training = model.training
    model.eval()
    try:
        first, other = (_logits(model, flatten, Ragged.from_rows([ids, [5, 6, 7]])) for ids in ([1, 2, 3], [4, 3, 4]))
    finally:
        model.train(was_training)
    moved = float((first - other)[:, 3:].abs().max() / first.abs().max())
    # Masked attention moves nothing; experts that compute both sequences together round differently.
    if not moved <= 0.01:
        raise PluginError(
            f"text2text: packing='flatten' leaks in {type(model).__name__}: one sequence changes another's logits (by "
            f"{moved:.2g} of the largest). It does not keep sequences apart by position_ids. Use packing='none'.",
            code="model-unsuited",
            mend=[mends.set_option("text2text", "packing", "none")],
        )


def _logits(model: Any, flatten: Any, rows: Ragged) -> torch.Tensor:
    batch = flatten(rows, rows, padding=0)
    batch.pop("labels")
    batch = {name: value.to(model.device) if torch.is_tensor(value) else value for name, value in batch.items()}
    return model(**batch, use_cache=False).logits.float()
