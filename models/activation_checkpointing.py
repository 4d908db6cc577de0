"""Activation checkpointing (Chen et al. 2016): parts of a model whose activations are made again for the gradient.

A part keeps its input alone; its backward pass computes it once more. Weights, names and results stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint


def checkpoint_activations(parts: Iterable[nn.Module]) -> list[nn.Module]:
    """Make the activations of these modules again in their backward passes.

    Returns those that it is done for, which have something to train.
    """
    done = [part for part in parts if any(parameter.requires_grad for parameter in part.parameters())]
    for part in done:
        # A bound method, unlike a closure, is that of the copy in a copy of the model.
        part.forward = MethodType(partial(_forward, draws(part)), part)
    return done


def draws(module: nn.Module) -> bool:
    """Whether it draws random numbers in training: a rate that is not 0, of dropout or of drop-path.

    What is made again must draw the same, so the generators' state is read and set, which a CUDA graph cannot do.
    """
    return any(
        isinstance(value, int | float) and not isinstance(value, bool) and value > 0
        for each in module.modules()
        for name, value in vars(each).items()
        if name in ("p", "prob") or "drop" in name
    )


def blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The blocks that a network is made of, in order: what stands in sequences, down to the last such sequence.

    Layers that no sequence holds, and those alone in one, keep no more than their input, so they are left out.
    """
    for child in module.children():
        if any(_is_sequence_of_blocks(each) for each in child.modules()):
            yield from blocks(child)
        elif len(list(child.children())) > 1 and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield child


def _is_sequence_of_blocks(module: nn.Module) -> bool:
    """Whether all that it holds in order is made of several layers."""
    if not isinstance(module, nn.Sequential | nn.ModuleList):
        return False
    return len(module) > 0 and all(len(list(each.children())) > 1 for each in module)


def _forward(random: bool, part: nn.Module, *args: Any, **kwargs: Any) -> Any:
    """What a part's class computes. random: it draws numbers, which must be the same when it is computed again."""
    forward = type(part).forward
    if not torch.is_grad_enabled():
        return forward(part, *args, **kwargs)
    return checkpoint(
        MethodType(forward, part),
        *args,
        use_reentrant=False,
        preserve_rng_state=random,
        context_fn=lambda: _contexts(part),
        **kwargs,
    )


def _contexts(part: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds the part at first, and when it is computed again."""
    return nullcontext(), _again(part, [(module._parameters, dict(module._parameters)) for module in part.modules()])


@contextmanager
def _again(part: nn.Module, weights: list[tuple[dict[str, Any], dict[str, Any]]]) -> Iterator[None]:
    """Compute with the weights that the part had at first, and let batch statistics be updated in copies.

    weights: each module's own, and what stood there: for the time of a forward pass it may be what was cast from them.
    The images have been counted in the statistics, which must not happen twice.
    """
    statistics = [(module._buffers, _statistics(module)) for module in part.modules() if module.training]
    own = [(held, dict(held)) for held, _ in weights] + statistics
    copies = [(held, {name: buffer.clone() for name, buffer in values.items()}) for held, values in statistics]
    try:
        for held, values in weights + copies:
            held.update(values)
        yield
    finally:
        for held, values in own:
            held.update(values)


def _statistics(module: nn.Module) -> dict[str, Any]:
    """What a module's forward pass changes."""
    return {
        name: buffer
        for name, buffer in module._buffers.items()
        if buffer is not None and (name.startswith("running_") or name == "num_batches_tracked")
    }
