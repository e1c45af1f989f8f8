"""Numbers of training in fewer bits: a float32 weight in 16 + 8, and moments of gradients in 8 with a scale a block.

After FlashOptim (Gonzalez Ortiz et al. 2026, arXiv:2602.23349): a bf16 weight with the rest of it in one byte, and
moments whose values are spread by a function before they are rounded. Different from there:

- the rest of a weight is the next eight bits of the float32 number itself, so that only integers are shifted and a
  weight that is taken apart and put together again does not drift;
- both moments are rounded after a square root of their magnitude (the second one's is that of its own root), which
  keeps relative precision over more orders of magnitude than softsign and one root do, so that blocks can be larger;
- rounding is dithered. What a moment or a weight changes by in one step is often less than half a unit of its bits,
  and rounding to nearest would then keep it where it is for ever. The thresholds follow a fixed sequence that covers
  [0, 1) evenly in time, so that nothing is drawn at random and the mean error is zero.
"""

from __future__ import annotations

import torch

BLOCK = 256  # values with one scale; two float32 scales a block are 0.03 bytes a value
SIGNED, UNSIGNED = 127, 255
TINY = torch.finfo(torch.float32).tiny
NAN = 0x7FC00000
# Fractional parts of their multiples lie evenly in [0, 1): of the golden ratio, and of the plastic number.
IN_SPACE, IN_TIME = 0.6180339887498949, 0.7548776662466927


def split(weights: torch.Tensor, kept: torch.Tensor, rest: torch.Tensor, turn: int | None = None) -> None:
    """Write float32 [n] `weights` to bf16 [n] `kept`, rounded to nearest, and int8 [n] `rest`.

    Together they hold the 24 leading bits, a precision of 2**-15 of the weight: of 2**-16 if `turn` is None, for which
    they are rounded to nearest, and not dithered.
    """
    # A NaN of all ones would overflow into a number.
    bits = weights.view(torch.int32).masked_fill(weights.isnan(), NAN)
    if turn is None:
        bits.add_(0x80)
    else:
        # Half a turn from the moments', so that their errors have nothing to do with the weights'.
        _in_rows(bits, _thresholds(turn + 0.5, bits.device).mul_(0x100).to(torch.int32))
    leading = bits.bitwise_right_shift_(8)
    high = leading.add(0x80).bitwise_right_shift_(8)
    rest.copy_(leading.sub_(high.bitwise_left_shift(8)))
    kept.copy_(high.bitwise_left_shift_(16).view(torch.float32))


def join(kept: torch.Tensor, rest: torch.Tensor) -> torch.Tensor:
    """float32 [n]: the weights that `split` wrote."""
    bits = kept.float().view(torch.int32)
    return bits.add_(rest.to(torch.int32).bitwise_left_shift_(8)).view(torch.float32)


def scales_of(values: int) -> int:
    """How many scales so many values have."""
    return -(-values // BLOCK)


def write_signed(values: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, turn: int) -> None:
    """Write float32 [n] `values` to int8 [n] `codes` and float32 [blocks] `scales`, dithered by the number `turn`."""
    blocks = _in_blocks(values)
    scales.copy_(blocks.abs().amax(1))
    magnitude = blocks.abs().div_(scales.clamp(min=TINY)[:, None]).sqrt_().mul_(SIGNED)
    magnitude.add_(_thresholds(turn, values.device)).floor_().clamp_(max=SIGNED)
    codes.copy_(magnitude.copysign_(blocks).view(-1)[: len(codes)])


def read_signed(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """float32 [n]: what `write_signed` wrote, to about a part in 127."""
    values = codes.float()
    return _scaled(values.mul_(values.abs()), scales / SIGNED**2)


def write_unsigned(values: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor, turn: int) -> None:
    """Write float32 [n] `values`, none negative, to uint8 [n] `codes` and float32 [blocks] `scales`.

    None is read as 0 unless its whole block is: whoever divides by it would get too much.
    """
    blocks = _in_blocks(values)
    scales.copy_(blocks.amax(1))
    magnitude = blocks.div(scales.clamp(min=TINY)[:, None]).sqrt_().mul_(UNSIGNED)
    magnitude.add_(_thresholds(turn, values.device)).floor_().clamp_(1, UNSIGNED)
    codes.copy_(magnitude.view(-1)[: len(codes)])


def read_unsigned(codes: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    """float32 [n]: what `write_unsigned` wrote."""
    return _scaled(codes.float().square_(), scales / UNSIGNED**2)


def _in_blocks(values: torch.Tensor) -> torch.Tensor:
    missing = -len(values) % BLOCK
    return (torch.nn.functional.pad(values, (0, missing)) if missing else values).view(-1, BLOCK)


def _in_rows(values: torch.Tensor, row: torch.Tensor) -> None:
    """Add `row` to each block of `values`."""
    whole = len(values) // BLOCK * BLOCK
    values[:whole].view(-1, BLOCK).add_(row)
    values[whole:].add_(row[: len(values) - whole])


def _scaled(values: torch.Tensor, scales: torch.Tensor) -> torch.Tensor:
    whole = len(values) // BLOCK
    values[: whole * BLOCK].view(whole, BLOCK).mul_(scales[:whole, None])
    values[whole * BLOCK :].mul_(scales[whole:])
    return values


def _thresholds(turn: float, device: torch.device) -> torch.Tensor:
    """[BLOCK] in [0, 1)."""
    places = torch.arange(BLOCK, dtype=torch.float32, device=device)
    return places.mul_(IN_SPACE).add_(turn * IN_TIME % 1.0).frac_()
