"""Chosen and rejected in one pass: their common beginning is computed once, and pairs are packed into rows.

Wang and Hegde 2024, "Accelerating Direct Preference Optimization with Prefix Sharing" (2410.20305), without a kernel of
its own: a mask of four dimensions and position ids, which attention implementations of transformers take as they are.
We share tokens, not the prompt: what both completions begin with is computed once, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...shards import holds_pieces

if TYPE_CHECKING:
    from transformers import PreTrainedModel, Trainer


IGNORED = -100
FIELDS = ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1")
NEEDED = {"input_ids", "attention_mask", "labels", "fused_lm_head"}
PASSED = {"use_cache", "output_router_logits"}
# Allowed difference of a test pair's log-probabilities (float32, 16-bit): rounding from another order of summation
# stays below it, and wrong attention is far above.
TOLERANCE, HALF_TOLERANCE = 1e-3, 0.3
# What laying rows out may cost, as a share of a pass.
LAYOUT = 0.05


@dataclass(frozen=True)
class Packed:
    """Rows that hold pairs: trunk, branch of the chosen text, branch of the rejected text, next pair.

    A branch begins with the last token that both texts have, so that it predicts either's next token at a position of
    its own.

    Attributes:
        source: where each token is from, as an index into the flattened `input_ids`; int64 [R, S].
        position: its position in its text; int64 [R, S].
        pair, branch: which pair it belongs to (-1: padding), and 0 (trunk), 1 or 2; int64 [R, S].
        place: where each text's token is, as an index into the flattened [R, S]; int64 [2B, L], 0 for padding.
    """

    source: Tensor
    position: Tensor
    pair: Tensor
    branch: Tensor
    place: Tensor

    def mask(self) -> Tensor:
        """Whether a token (first S) sees another (second S); bool [R, 1, S, S]. Padding sees itself."""
        pair, branch = self.pair, self.branch
        same_pair = pair[:, :, None] == pair[:, None, :]
        on_the_way = (branch[:, None, :] == 0) | (branch[:, :, None] == branch[:, None, :])
        earlier = torch.ones(pair.shape[1], pair.shape[1], dtype=torch.bool, device=pair.device).tril()
        return (same_pair & on_the_way & earlier)[:, None]


def shareable(kwargs: dict[str, Any]) -> bool:
    """Whether a call of a model is TRL's scoring of chosen and rejected rows, and of nothing else."""
    given = {name for name, value in kwargs.items() if value is not None}
    return given >= NEEDED and given <= NEEDED | PASSED and len(kwargs["input_ids"]) % 2 == 0


def packed_pairs(input_ids: Tensor, attention_mask: Tensor) -> Packed:
    """Lay out rows of chosen texts, then of rejected texts, each padded on the right.

    Pairs go, longest first, into the first row that has room; a row is as long as the longest pair.

    Args:
        input_ids, attention_mask: int64 [2B, L].
    """
    count, width = len(input_ids) // 2, input_ids.shape[1]
    lengths = attention_mask.sum(1).tolist()
    differ = (input_ids[:count] != input_ids[count:]) | (attention_mask[:count] != attention_mask[count:])
    first_difference = torch.where(differ.any(1), differ.int().argmax(1), width).tolist()
    # The last common token is part of the branches.
    trunks = [
        max(0, min(common, lengths[pair], lengths[count + pair]) - 1) for pair, common in enumerate(first_difference)
    ]
    sizes = [lengths[pair] + lengths[count + pair] - trunks[pair] for pair in range(count)]
    capacity = max(sizes)
    rows: list[list[int]] = []
    room: list[int] = []
    for pair in sorted(range(count), key=lambda pair: -sizes[pair]):
        row = next((row for row, left in enumerate(room) if left >= sizes[pair]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(pair)
        room[row] -= sizes[pair]
    source, position, of_pair, branch = (torch.full((len(rows), capacity), fill) for fill in (0, 0, -1, 0))
    place = torch.zeros(2 * count, width, dtype=torch.long)
    for row, pairs in enumerate(rows):
        start = 0
        for pair in pairs:
            trunk = trunks[pair]
            for number, text, begin in ((0, pair, 0), (1, pair, trunk), (2, count + pair, trunk)):
                end = trunk if number == 0 else lengths[text]
                within = slice(start, start + end - begin)
                steps = torch.arange(begin, end)
                source[row, within], position[row, within] = text * width + steps, steps
                of_pair[row, within], branch[row, within] = pair, number
                places = row * capacity + start + steps - begin
                for shared_by in (pair, count + pair) if number == 0 else (text,):
                    place[shared_by, begin:end] = places
                start = within.stop
    device = input_ids.device
    return Packed(*(part.to(device) for part in (source, position, of_pair, branch, place)))


@dataclass(frozen=True)
class PassCost:
    """What a pass of a model costs, in multiplications.

    Attributes:
        slot: of one token's slot: what its weights multiply.
        seen: of one slot for each slot of its row, which attention multiplies it with.
    """

    slot: float
    seen: float

    @classmethod
    def of(cls, model: PreTrainedModel) -> PassCost:
        config = model.config.get_text_config()
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        inputs = model.get_input_embeddings().weight
        weights = sum(weight.numel() for weight in model.parameters() if weight is not inputs)
        # As large where it is the input embeddings again.
        head = 0 if getattr(model.get_output_embeddings(), "weight", inputs) is not inputs else inputs.numel()
        return cls(weights + head, 2 * heads * width * config.num_hidden_layers)

    def __call__(self, rows: int, width: int) -> float:
        return rows * width * (self.slot + self.seen * width)

    def is_less(self, packed: Packed, input_ids: Tensor) -> bool:
        """Whether packed rows cost less than `input_ids`: pairs that share little make rows that are twice as wide."""
        rows, width = packed.source.shape
        return (1 + LAYOUT) * self(rows, width) < self(*input_ids.shape)


def shared_forward(
    inner: Any,
    config: Any,
    *,
    input_ids: Tensor,
    attention_mask: Tensor,
    labels: Tensor,
    cost: PassCost | None = None,
    **kwargs: Any,
) -> Any:
    """What TRL's fused head gives for chosen and rejected rows, from one pass over their packed, shared tokens.

    Args:
        inner: a model's `forward` with TRL's fused head.
        config: the model's, for its attention implementation.
        input_ids, attention_mask, labels: int64 [2B, L]: chosen rows, then rejected ones, padded on the right.
        cost: of a pass; rows that cost more when packed are passed as they are. None: they are always packed.

    Returns:
        `inner`'s output, its fields as for the unpacked rows, [2B, L - 1]; 0 where the label is -100.
    """
    packed = packed_pairs(input_ids, attention_mask)
    if cost is not None and not cost.is_less(packed, input_ids):
        return inner(input_ids=input_ids, attention_mask=attention_mask, labels=labels, **kwargs)
    mask = packed.mask()
    if config.get_text_config()._attn_implementation == "eager":
        seen = mask
        dtype = (
            torch.get_autocast_dtype(mask.device.type) if torch.is_autocast_enabled(mask.device.type) else config.dtype
        )
        mask = torch.zeros(mask.shape, dtype=dtype or torch.float32, device=mask.device)
        mask.masked_fill_(~seen, torch.finfo(mask.dtype).min)
    scored = labels[:, 1:] != IGNORED
    place = packed.place[:, :-1]
    # A token of the trunk is scored once if either text scores it.
    next_tokens = torch.full(packed.source.shape, IGNORED, device=labels.device)
    next_tokens.view(-1)[place[scored]] = labels[:, 1:][scored]
    outputs = inner(
        input_ids=input_ids.reshape(-1)[packed.source],
        attention_mask=mask,
        position_ids=packed.position,
        shift_labels=next_tokens,
        **kwargs,
    )
    for name in FIELDS:
        values = getattr(outputs, name)
        if values is not None:
            setattr(outputs, name, values.reshape(-1)[place].masked_fill(~scored, 0))
    outputs.label_mask = scored
    outputs.loss = -outputs.log_probs.sum() / scored.sum().clamp(min=1)
    return outputs


def why_not_shared(trainer: Trainer) -> str | None:
    """Why a DPO trainer's model would not score packed pairs as it scores them apart; None if it would.

    Some reasons show in its configuration. For the rest two short pairs of random tokens are scored both ways.
    """
    model = trainer.accelerator.unwrap_model(trainer.model)
    if getattr(getattr(model, "active_peft_config", None), "is_prompt_learning", False):
        return "prompt learning puts tokens of its own before the text"
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    config = base.config.get_text_config()
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"attn_implementation={config._attn_implementation} takes no mask of four dimensions"
    if trainer.aux_loss_enabled:
        return "the router's loss counts tokens"
    layers = set(getattr(config, "layer_types", None) or ())
    if layers - {"full_attention"} or (not layers and getattr(config, "sliding_window", None)):
        return f"layers of {', '.join(sorted(layers - {'full_attention'})) or 'sliding windows'}"
    if any(module.p > 0 for module in base.modules() if isinstance(module, torch.nn.Dropout)):
        return "dropout draws other numbers for other rows (disable_dropout=True)"
    if holds_pieces(trainer):
        return "its parameters are sharded when the model is tested for it"
    try:
        difference = _difference(base)
    except (TypeError, ValueError, RuntimeError, AttributeError) as error:
        return f"the model refuses a packed test pair: {type(error).__name__}: {error}"
    tolerance = TOLERANCE if base.dtype == torch.float32 else HALF_TOLERANCE
    return None if difference <= tolerance else f"log-probabilities of a test pair differ by {difference:.1g}"


@torch.no_grad()
def _difference(model: PreTrainedModel) -> float:
    """The largest difference between log-probabilities of two pairs scored apart and packed."""
    generator = torch.Generator().manual_seed(0)
    input_ids = torch.randint(model.get_input_embeddings().num_embeddings, (4, 12), generator=generator)
    input_ids[2, :7], input_ids[3, :4] = input_ids[0, :7], input_ids[1, :4]
    attention_mask = torch.ones_like(input_ids)
    attention_mask[1, 9:] = attention_mask[2, 10:] = 0
    labels = input_ids.masked_fill(attention_mask == 0, IGNORED)
    device = model.get_input_embeddings().weight.device
    batch = {
        name: tensor.to(device)
        for name, tensor in (("input_ids", input_ids), ("attention_mask", attention_mask), ("labels", labels))
    }
    training = model.training
    model.eval()
    try:
        apart = model.forward(**batch, fused_lm_head=True).log_probs
        packed = shared_forward(model.forward, model.config, **batch, fused_lm_head=True).log_probs
    finally:
        model.train(training)
    return float((apart - packed).abs().max())
