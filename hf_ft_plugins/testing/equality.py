"""Bit-for-bit equality of nested values: every claim that two runs are equal rests on `difference`.

Nothing is rounded, converted or broadcast: 0.0 is not -0.0, 1 is not 1.0, True is not 1, and a NaN equals a NaN of the
same bits alone.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch


def difference(first: Any, second: Any, path: str = "") -> str | None:
    """Where two nested values first differ, or None where they are equal bit for bit.

    Tensors and arrays are equal when dtype, shape and bytes are, wherever they lie in memory; floats when their eight
    bytes are; containers when their types, keys (in any order) and values are, all kinds of dict being one type; data
    classes when their fields are.

    Returns:
        The path to the first difference and what it is, such as `/weights/layer.bias: 2 of 16 values differ, ...`.

    Raises:
        TypeError: a value's own `==` answers with neither True nor False, so that it cannot be compared.
    """
    where = path or "(the whole)"
    # A parameter and a tensor of the same numbers are equal.
    if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor):
        return _of_tensors(first, second, where)
    if isinstance(first, dict) and isinstance(second, dict):
        # A model's `state_dict()` is an OrderedDict, and a copy of it a dict.
        return _of_mappings(first, second, path)
    if type(first) is not type(second):
        return f"{where}: {_shown(first)} against {_shown(second)}"
    if isinstance(first, (np.ndarray, np.generic)):
        return _of_arrays(np.asarray(first), np.asarray(second), where)
    if isinstance(first, Mapping):
        return _of_mappings(first, second, path)
    if isinstance(first, Sequence) and not isinstance(first, (str, bytes, bytearray)):
        if len(first) != len(second):
            return f"{where}: {len(first)} against {len(second)} items"
        found = (difference(a, b, f"{path}[{i}]") for i, (a, b) in enumerate(zip(first, second, strict=True)))
        return next((difference for difference in found if difference), None)
    if isinstance(first, (float, complex)):
        return None if _bytes_of(first) == _bytes_of(second) else f"{where}: {first!r} against {second!r}"
    if dataclasses.is_dataclass(first) and not isinstance(first, type):
        fields = [field.name for field in dataclasses.fields(first)]
        found = (difference(getattr(first, name), getattr(second, name), f"{path}.{name}") for name in fields)
        return next((difference for difference in found if difference), None)
    equal = first == second
    if not isinstance(equal, bool):
        raise TypeError(f"{where}: a {type(first).__name__} cannot be compared; its == answers {equal!r}.")
    return None if equal else f"{where}: {first!r} against {second!r}"


def _of_tensors(first: torch.Tensor, second: torch.Tensor, where: str) -> str | None:
    for name in ("dtype", "shape", "layout"):
        one, other = getattr(first, name), getattr(second, name)
        if one != other:
            return f"{where}: {name} {one} against {other}"
    if first.layout is not torch.strided:
        return _of_tensors(first.to_dense(), second.to_dense(), where)
    # One row of bytes a value.
    rows, other_rows = (_bytes_of_tensor(tensor) for tensor in (first, second))
    different = (rows != other_rows).any(dim=1).nonzero().flatten()
    if not len(different):
        return None
    place = int(different[0])
    one, other = (tensor.detach().reshape(-1)[place].item() for tensor in (first, second))
    return f"{where}: {len(different)} of {len(rows)} values differ, the first at {place}: {one!r} against {other!r}"


def _bytes_of_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """uint8 [values, bytes of one value], on CPU."""
    flat = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat).reshape(-1)
    return flat.view(torch.uint8).reshape(tensor.numel(), -1) if tensor.numel() else torch.empty(0, 1)


def _of_arrays(first: np.ndarray, second: np.ndarray, where: str) -> str | None:
    if (first.dtype, first.shape) != (second.dtype, second.shape):
        return f"{where}: {first.dtype} {first.shape} against {second.dtype} {second.shape}"
    if first.dtype.hasobject:
        return difference(first.tolist(), second.tolist(), where)
    return None if first.tobytes() == second.tobytes() else f"{where}: the bytes of a {first.dtype} array differ"


def _of_mappings(first: Mapping[Any, Any], second: Mapping[Any, Any], path: str) -> str | None:
    # 1, 1.0 and True are one key to a dict.
    typed = [{(type(key), key) for key in mapping} for mapping in (first, second)]
    if typed[0] != typed[1]:
        alone = sorted(f"{key!r}" for _, key in typed[0] ^ typed[1])
        return f"{path or '(the whole)'}: {alone} on one side only"
    found = (difference(first[key], second[key], f"{path}/{key}") for key in first)
    return next((difference for difference in found if difference), None)


def _bytes_of(number: complex) -> bytes:
    return struct.pack("<dd", number.real, number.imag)


def _shown(value: Any) -> str:
    short = repr(value)
    return f"{type(value).__name__} {short if len(short) <= 80 else short[:77] + '...'}"
