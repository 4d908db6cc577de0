"""Where a checkpoint file keeps its weights, and under which wrappers' names; every tensor is checked before use.

Training programs save the averaged weights beside the raw ones, each under a name of its own, and wrappers (DDP,
torch.compile, Lightning, DETR's segmentation) put their names before those of the model that they hold.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from .detectron2_resnet import ResnetFile
from .fit import listed, tensor_fault

Which = Literal["auto", "ema", "model"]
"""Which weights of a file that holds two: the averaged, the raw, or the averaged where there are any."""

AVERAGED = (
    *("ema", "model_ema", "ema_model", "state_dict_ema", "ema_state_dict"),
    *("model_ema_state_dict", "ema_model_state_dict", "teacher"),
)
RAW = ("model", "state_dict", "model_state_dict", "model_state", "net", "network", "weights", "student", "blobs")
# What an average keeps its model under, as in {"ema": {"module": ..., "updates": 7}}.
_INNER = ("module", "model", "state_dict", "shadow")
# Wrappers within a model; no layer of any detector is called so.
_WITHIN = re.compile(r"(?<![^.])(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module|_forward_module)\.")

CLASSIFIER = re.compile(r"(?:^|\.)(?:head|fc|classifier|head\.fc|heads\.head)\.weight$")
"""The linear layer of a published classifier, by the names that the field has for it."""


@dataclass(frozen=True)
class Found:
    """A model's tensors by name, wrappers' names removed.

    entry: where the file keeps them, "" at its top; others: entries that were not taken; outside: names of tensors that
    stand beside the model's own. author: what detectron2's files have as `__author__`; resnet: what they say of the
    ResNet of detectron2's among them, see `for_network`.
    """

    state: dict[str, Tensor]
    entry: str = ""
    others: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()
    author: str = ""
    resnet: ResnetFile | None = None

    @property
    def averaged(self) -> bool:
        """Whether they are an average over training."""
        return self.entry.split(".")[0] in AVERAGED

    @property
    def masks(self) -> bool:
        """Whether DETR's mask head stands beside the detector."""
        return any(not {"mask_head", "bbox_attention"}.isdisjoint(name.split(".")) for name in self.outside)

    def remarks(self, source: object, option: str) -> list[str]:
        """What the person should know: of two sets of weights, which was taken; what was left out.

        option: the setting that chooses.
        """
        remarks = []
        if self.others:
            kind, other = ("averaged", "model") if self.averaged else ("raw", "ema")
            remarks.append(
                f"{source}: took the {kind} weights ({self.entry}); it also has {', '.join(self.others)} "
                f"({option}={other} takes the {'raw' if self.averaged else 'averaged'} ones)"
            )
        if self.outside:
            what = "the mask head" if self.masks else f"what is not the detector's ({_some(self.outside)})"
            remarks.append(f"{source}: {what} is left out ({len(self.outside)} tensors)")
        return remarks


def find_weights(checkpoint: Mapping[Any, Any], which: Which = "auto") -> Found:
    """The tensors of a checkpoint, wherever it keeps them.

    Raises ValueError when it holds none, not the kind that was asked for, or something that is no weight among them.
    """
    entries = {
        (f"{name}{inner}", name in AVERAGED): held
        for name in (*AVERAGED, *RAW)
        for inner, held in _held(checkpoint.get(name))
    }
    averaged = [entry for entry, average in entries if average]
    raw = [entry for entry, average in entries if not average]
    if not entries:
        if which == "ema" and _has_tensors(checkpoint):
            raise ValueError("it holds one set of weights, and nothing marks them as averaged: ask for `auto`")
        return Found(_clean(checkpoint), author=_author(checkpoint))
    # An average may also lie within the raw entry, under a name of its own: `below` finds it there.
    within = [name for name in raw if any(_names_average(str(key)) for key in entries[name, False])]
    order = {"auto": averaged + raw, "ema": averaged or within, "model": raw}[which]
    if not order:
        raise ValueError(
            f"it has no {'averaged' if which == 'ema' else 'raw'} weights, only {', '.join(averaged + raw)}"
        )
    entry = order[0]
    others = tuple(name for name in averaged + raw if name != entry and (name in averaged) != (entry in averaged))
    return Found(_clean(entries[entry, entry in averaged]), entry, others, author=_author(checkpoint))


def below(found: Found, anchors: Iterable[str], which: Which = "auto") -> Found:
    """The model whose tensors include one of `anchors`, without whatever stands before its names.

    Where several models lie side by side (`model.` and `ema_model.` of one Lightning module), `which` decides.
    Without any anchor, the names stay as they are.
    """
    anchors = tuple(anchors)
    prefixes = list(
        dict.fromkeys(
            name.removesuffix(anchor)
            for anchor in anchors
            for name in found.state
            if name == anchor or name.endswith(f".{anchor}")
        )
    )
    if not prefixes:
        return found
    average = [prefix for prefix in prefixes if _names_average(prefix)]
    plain = [prefix for prefix in prefixes if prefix not in average]
    order = {"auto": average + plain, "ema": average or (plain if found.averaged else []), "model": plain or average}
    if not order[which]:
        raise ValueError("it holds one set of weights, and nothing marks them as averaged: ask for `auto`")
    # The shortest, since the model may hold a part with a head of its own.
    prefix = order[which][0]
    state = {name.removeprefix(prefix): value for name, value in found.state.items() if name.startswith(prefix)}
    entry = ".".join(filter(None, (found.entry, prefix.rstrip(".")))) if average and plain else found.entry
    rest = [name for name in found.state if not name.startswith(prefix)]
    sides = [p for p in prefixes if p != prefix and (p in average) != (prefix in average)]
    outside = [name for name in rest if not name.startswith(tuple(p for p in prefixes if p)) and name != "n_averaged"]
    if average and plain and prefix in average:
        entry = f"ema.{entry}"
    others = found.others + tuple(side.rstrip(".") or "the rest" for side in sides)
    return replace(found, state=state, entry=entry, others=others, outside=(*found.outside, *outside))


def unsound(state: Mapping[str, Tensor]) -> list[str]:
    """Tensors that cannot be a model's weights whatever the model: kinds, values, and memory that is not there."""
    faults = []
    for name, value in state.items():
        expected = value.dtype if not (value.is_complex() or value.dtype == torch.bool) else torch.float32
        fault = tensor_fault(value, value.shape, expected if expected.is_floating_point else torch.int64)
        if fault:
            faults.append(f"{name} {fault}")
        elif value.untyped_storage().nbytes() < value.numel() * value.element_size():
            faults.append(f"{name} is {list(value.shape)}, of which the file holds a part only")
        elif value.is_floating_point() and not bool(value.float().isfinite().all()):
            count = int((~value.float().isfinite()).sum())
            faults.append(f"{name} holds {count} values of {value.numel()} that are not finite")
    return faults


def check_sound(state: Mapping[str, Tensor], source: object) -> None:
    """Raise ValueError, naming the first few, when a tensor is unsound."""
    faults = unsound(state)
    if faults:
        raise ValueError(f"{source} holds what cannot be weights: {listed(faults)}. Use another copy, or save it anew")


def _names_average(prefix: str) -> bool:
    return any("ema" in part.split("_") or part in AVERAGED for part in prefix.split("."))


def _author(checkpoint: Mapping[Any, Any]) -> str:
    author = checkpoint.get("__author__")
    return author if isinstance(author, str) else ""


def _held(value: Any) -> list[tuple[str, Mapping[Any, Any]]]:
    """The tensors that an entry holds, itself or one level below: [(".module" or "", them)] or nothing."""
    if not isinstance(value, Mapping):
        return []
    for inner in _INNER:
        if isinstance(value.get(inner), Mapping) and _has_tensors(value[inner]):
            return [(f".{inner}", value[inner])]
    return [("", value)] if _has_tensors(value) else []


def _has_tensors(value: Mapping[Any, Any]) -> bool:
    return any(isinstance(entry, Tensor) for entry in value.values())


def _clean(entries: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Its tensors without the names of wrappers, which either all of them have or that stand between two names."""
    if not _has_tensors(entries):
        raise ValueError(f"the file holds no weights (its entries: {_some(map(str, entries))})")
    bad = [f"{key!r} ({type(key).__name__})" for key, value in entries.items() if not isinstance(key, str)]
    if bad:
        raise ValueError(f"the names of weights must be text, and are not: {_some(bad)}. Save the file anew")
    # Something else where a tensor of that name could be wanted stands out as missing or, here, as what it is.
    strange = [name for name, value in entries.items() if "." in name and not isinstance(value, Tensor)]
    if strange:
        kinds = (f"{name} is a {type(entries[name]).__name__}" for name in strange)
        raise ValueError(f"not every weight is a tensor: {_some(kinds)}. Save the file anew")
    names = {name: _WITHIN.sub("", name) for name, value in entries.items() if isinstance(value, Tensor)}
    while len(names) > 1 and all(name.startswith("module.") or name == "n_averaged" for name in names.values()):
        names = {old: name.removeprefix("module.") for old, name in names.items() if name != "n_averaged"}
    if len(names) == 1:
        names = {old: name.removeprefix("module.") for old, name in names.items()}
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise ValueError(f"two tensors of one name once wrappers' names are gone: {_some(twice)}. Save the file anew")
    return {name: entries[old] for old, name in names.items()}


def _some(names: Iterable[str]) -> str:
    """The first few names of many."""
    names = list(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
