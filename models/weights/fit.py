"""Whether loaded tensors can become a module's, checked before any of them is used.

`load_state_dict` compares names and shapes alone: it drops the imaginary part of complex weights, rounds fractions to
whole numbers, and fills what it can before it complains.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LISTED = 4
"""How many faults a message spells out."""


def tensor_fault(found: object, shape: Iterable[int], dtype: torch.dtype, exact: bool = False) -> str:
    """What stands in the way of copying `found` into a tensor of this shape and kind; empty when nothing does.

    Any of the usual floating-point types is taken for any other, a whole number only for a whole number;
    exact: only the very same type will do.
    """
    if not isinstance(found, Tensor):
        return f"is a {type(found).__name__}, not a tensor"
    if found.is_quantized or found.is_nested or found.layout != torch.strided:
        return f"is not a plain tensor ({_kind(found)})"
    if found.device.type == "meta":
        return "is an empty shell without values (device meta)"
    if found.shape != torch.Size(shape):
        return f"is {list(found.shape)}, not {list(shape)}"
    if exact and found.dtype != dtype:
        return f"holds {_name(found.dtype)}, not {_name(dtype)}"
    whole, expected_whole = (_is_whole(each) for each in (found.dtype, dtype))
    fits = (found.dtype in _FLOATS and dtype in _FLOATS) or (whole and expected_whole) or found.dtype == dtype
    return "" if fits else f"holds {_name(found.dtype)}, not {_name(dtype)}"


def state_faults(
    own: Mapping[str, Tensor], found: object, optional: Iterable[str] = (), exact: bool = False
) -> list[str]:
    """Everything by which `found` is no state of a module whose own is `own`.

    optional: endings of names that may be absent; exact: as for `tensor_fault`. Names that only `found` has are
    faults, too.
    """
    if not isinstance(found, Mapping):
        return [f"the weights are a {type(found).__name__}, not a dict of tensors"]
    endings, faults = tuple(optional), []
    for name, value in own.items():
        if name in found:
            fault = tensor_fault(found[name], value.shape, value.dtype, exact)
            faults += [f"{name} {fault}"] if fault else []
        elif not name.endswith(endings):
            faults.append(f"{name} is missing")
    return faults + [f"{name!r} is unknown to the model" for name in found if name not in own]


def listed(faults: list[str]) -> str:
    """The first few faults in one line, and how many more there are."""
    more = f" and {len(faults) - _LISTED} more" if len(faults) > _LISTED else ""
    return "; ".join(faults[:_LISTED]) + more


def load_checked(module: nn.Module, found: object, refusal: str, remedy: str) -> None:
    """Load a state that is the module's in every respect. refusal, remedy: what stands around the faults otherwise.

    Raises ValueError before anything of the module has changed.
    """
    faults = state_faults(module.state_dict(), found)
    if faults:
        raise ValueError(f"{refusal}: {listed(faults)}. {remedy}")
    assert isinstance(found, Mapping)
    module.load_state_dict(found)


def _is_whole(dtype: torch.dtype) -> bool:
    return not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _kind(found: Tensor) -> str:
    if found.is_quantized:
        return f"quantized, {_name(found.dtype)}"
    return "nested" if found.is_nested else str(found.layout).removeprefix("torch.")
