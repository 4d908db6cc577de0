"""What would have to wait for a device: operations that need values on the host, seen on a CPU."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# A scalar, the number of elements of a result, or a copy to another device.
READS = (
    *("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "unique", "_unique2", "equal", "item"),
    "_to_cpu",
)


def reading(func: Any, args: Any) -> str:
    """The name of an operation that needs values on the host; empty for one that does not."""
    name: str = func.overloadpacket.__name__
    # A mask as an index has as many results as it has true values.
    indices = args[1] if name.startswith(("index", "_index")) and len(args) > 1 and isinstance(args[1], list) else []
    masked = any(index is not None and index.dtype == torch.bool for index in indices)
    return name if name in READS or masked else ""


class Reads(TorchDispatchMode):
    """Counts such operations."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()
        self.paused = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.paused and (name := reading(func, args)):
            self.found[name] += 1
        return func(*args, **(kwargs or {}))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Count nothing meanwhile."""
        self.paused = True
        yield
        self.paused = False
