"""Records the operations that work does and does them again on the same tensors, as a CUDA graph does, on a CPU.

What a step reads from the host, what has a shape that follows from values, and what a replay would compute from tensors
that nobody updates show here as they would on a GPU: as an error, or as other results than without a recording.
"""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from reads import reading
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

T = TypeVar("T")


class _Recording(TorchDispatchMode):
    """Every operation with its arguments and results, and what memory from before it wrote to was like."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, list[Tensor]]] = []
        self._own: dict[int, torch.UntypedStorage] = {}
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if name := reading(func, args):
            raise RuntimeError(f"{name} reads values, which a recording cannot")
        for tensor in _written(func, args, kwargs):
            storage = tensor.untyped_storage()
            if storage._cdata not in self._own and storage._cdata not in self._before:
                self._before[storage._cdata] = (storage, storage.clone())
        result = func(*args, **kwargs)
        outputs = [each for each in tree_flatten(result)[0] if isinstance(each, Tensor)]
        given = {each.untyped_storage()._cdata for each in tree_flatten((args, kwargs))[0] if isinstance(each, Tensor)}
        made = [each for each in outputs if each.untyped_storage()._cdata not in given]
        for each in made:
            self._own[each.untyped_storage()._cdata] = each.untyped_storage()
        if made or list(_written(func, args, kwargs)):
            self.operations.append((func, args, kwargs, outputs))
        return result

    def undo(self) -> None:
        """Give memory from before the recording the values that it had."""
        for storage, values in self._before.values():
            storage.copy_(values)


def _written(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    """What an operation writes to."""
    for place, argument in enumerate(func._schema.arguments):
        # Batch normalisation writes its statistics without saying so.
        declared = argument.alias_info is not None and argument.alias_info.is_write
        if not declared and argument.name not in ("running_mean", "running_var"):
            continue
        value = args[place] if place < len(args) else kwargs.get(argument.name)
        yield from (each for each in tree_flatten(value)[0] if isinstance(each, Tensor))


class Tape:
    """A recorder as `engine.graphs` wants one. recorded: how many recordings were made; replays: and replayed."""

    def __init__(self) -> None:
        self.recorded = self.replays = 0

    def warm(self, work: Callable[[], T]) -> T:
        """Do it as it is."""
        return work()

    def record(self, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """What work returns, to be filled by each replay, and the replay. Nothing that was there before is changed."""
        state = torch.get_rng_state()
        recording = _Recording()
        with recording:
            result = work()
        recording.undo()
        torch.set_rng_state(state)
        self.recorded += 1
        # What nobody wrote to yet must not look like a result.
        tree_map(lambda each: each.data.fill_(-7) if isinstance(each, Tensor) else each, result)

        def replay() -> None:
            self.replays += 1
            with torch.no_grad():
                for func, args, kwargs, outputs in recording.operations:
                    anew = [each for each in tree_flatten(func(*args, **kwargs))[0] if isinstance(each, Tensor)]
                    for mine, fresh in zip(outputs, anew, strict=True):
                        if mine.untyped_storage()._cdata != fresh.untyped_storage()._cdata:
                            mine.copy_(fresh)

        return result, replay
