"""Steps as CUDA graphs: what is started on the GPU is recorded once per shape, and then started as one.

A small step of a detector starts thousands of kernels, which takes the host several times as long as the GPU computes.
A graph starts them at once. It computes on the same memory each time, so a micro batch is copied into the tensors that
its shape was recorded with, and gradients are added up in memory that stays where it is.
Two graphs a shape, since the host matches predictions and objects between them: forward with the costs, and loss with
backward. Nothing is recorded around them by `torch.cuda.make_graphed_callables`, whose gradients are wrong when several
calls add up (pytorch/pytorch#181723): here the backward pass itself is in the graph, and adds to `grad` as always.
Gradients of several processes are added up between backward and update, outside of the graphs: one sum over one
buffer, and a process that has no graph for its batch does the same.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from .micro import Eager
from .task import Lap, StaticBatch

T = TypeVar("T")
_log = logging.getLogger(__name__)
LIMIT = 128
"""Shapes of micro batches that are recorded; further ones run without a graph."""


def why_eager(graphs: str, device: torch.device, reason: str, drawn_again: bool = False) -> str:
    """Why something runs without graphs, in words; empty where it runs with them.

    graphs: the setting; reason: the task's; drawn_again: whether activations that follow from random numbers are made
    again for the gradient.
    """
    if graphs == "off":
        return "train.graphs=off"
    if device.type != "cuda":
        return "no GPU"
    if drawn_again:
        return "train.checkpoint_activations makes again what dropout or drop-path has drawn"
    return reason


class Recorder(Protocol):
    """How work on tensors is recorded, to be done again on the same tensors."""

    def warm(self, work: Callable[[], T]) -> T:
        """Do the work as it will be recorded, so that libraries have set up what they need."""

    def record(self, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """Record the work without doing it: what it returns, which a replay fills, and the replay.

        Raises RuntimeError for what cannot be recorded.
        """


class CudaRecorder:
    """Records CUDA graphs.

    All share one pool of memory, since no two run at the same time and none reads what another has left there.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = torch.cuda.Stream(device)
        self._pool = torch.cuda.graph_pool_handle()

    def warm(self, work: Callable[[], T]) -> T:
        """See `Recorder`."""
        # On the stream that records, since autograd adds up a gradient on the stream where it first saw the parameter.
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            result = work()
        torch.cuda.current_stream().wait_stream(self._stream)
        return result

    def record(self, work: Callable[[], T]) -> tuple[T, Callable[[], None]]:
        """See `Recorder`."""
        graph = torch.cuda.CUDAGraph()
        # Ending a recording that has failed fails as well, and leaves its stream the current one, hence the first
        # context. Other threads copy batches into pinned memory meanwhile, which is no fault of it, hence the mode.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, self._pool, self._stream, capture_error_mode="thread_local"),
        ):
            result = work()
        return result, graph.replay


class FlatGradients:
    """The gradients of all parameters that train, as parts of one buffer of float32 that stays where it is."""

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        """parameters: dense, of one device, float32."""
        # Each starts at a multiple of 256 bytes, as memory of its own would.
        starts, end = [], 0
        for parameter in parameters:
            starts.append(end)
            end += -(-parameter.numel() // 64) * 64
        self.buffer = torch.zeros(end, device=parameters[0].device)
        for parameter, start in zip(parameters, starts, strict=True):
            parameter.grad = self.buffer.as_strided(parameter.shape, parameter.stride(), start)


class Replayed:
    """Work that is the same at each call: recorded at the second, since the first makes what then stays.

    Such are the moments of an optimizer. Like a graph, it takes nothing and returns nothing.
    """

    def __init__(self, work: Callable[[], None], recorder: Recorder, words: str) -> None:
        self._work, self._recorder, self._words = work, recorder, words
        self._again: Callable[[], None] | None = None

    def __call__(self) -> None:
        """Do the work."""
        if self._again is None:
            self._recorder.warm(self._work)
            self._again = self._recorded
        else:
            self._again()

    def _recorded(self) -> None:
        try:
            _, self._again = self._recorder.record(self._work)
        except RuntimeError as error:
            _log.warning("%s runs without a CUDA graph: %s", self._words, _reason(error))
            self._again = self._work
        self._again()


class Replays:
    """A function of tensors without gradient, replayed for shapes that it has met."""

    def __init__(self, work: Callable[..., Tensor], device: torch.device, recorder: Recorder | None) -> None:
        """work: gets what decides, beside the shapes, what is computed, then the tensors; recorder: None for none."""
        self._work, self._device, self._recorder = work, device, recorder
        self._known: dict[Hashable, tuple[list[Tensor], Tensor, Callable[[], None]]] = {}

    def __call__(self, form: Hashable, *host: Tensor) -> Tensor:
        """What comes of tensors on the host; the next call with the same shapes may overwrite it."""
        key = (form, *((tensor.shape, tensor.dtype) for tensor in host))
        if key in self._known:
            given, result, replay = self._known[key]
            for mine, theirs in zip(given, host, strict=True):
                mine.copy_(theirs, non_blocking=True)
            replay()
            return result
        given = [tensor.to(self._device, non_blocking=True) for tensor in host]
        if self._recorder is None or len(self._known) >= LIMIT:
            return self._work(form, *given)
        result = self._recorder.warm(lambda: self._work(form, *given))
        # Of its own, since on a CPU what is given is the caller's.
        kept = [tensor.clone() for tensor in given]
        try:
            self._known[key] = (kept, *self._recorder.record(lambda: self._work(form, *kept)))
        except RuntimeError as error:
            _log.warning("forward passes run without CUDA graphs from here on: %s", _reason(error))
            self._recorder = None
        return result


@dataclass
class _Recorded:
    """One shape: the tensors of both parts, and what replays them.

    sums: what `Eager.derive` returns.
    """

    batch: StaticBatch
    divisors: Tensor
    asked: Tensor | None
    answer: Tensor | None
    sums: Tensor
    ask: Callable[[], None]
    learn: Callable[[], None]


class Graphed:
    """Micro batches by replay; the first of each shape without, which sets up what its graphs need.

    short_of_memory: there are shapes whose graphs memory did not suffice for.
    """

    def __init__(self, eager: Eager, recorder: Recorder) -> None:
        self._eager, self._recorder = eager, recorder
        self._shapes: dict[Hashable, _Recorded | None] = {}
        self._told: set[str] = set()
        self._never = ""
        self._seconds = 0.0
        self.short_of_memory = False

    def derive(self, host: Any, divisors: Tensor, share: float, lap: Lap) -> Tensor:
        """As `Eager.derive`; what it returns is overwritten by the next micro batch of the same shape."""
        if not isinstance(host, StaticBatch):
            return self._without(f"{type(host).__name__} does not say which tensors it has", host, divisors, share, lap)
        key = (tuple((tensor.shape, tensor.dtype) for tensor in host.tensors), host.form, share)
        if recorded := self._shapes.get(key):
            return self._replay(recorded, host, divisors, lap)
        if key in self._shapes and not self._never:
            return self._eager.derive(host, divisors, share, lap)
        if why := self._never or (len(self._shapes) >= LIMIT and f"{LIMIT} shapes have one already"):
            return self._without(why, host, divisors, share, lap)
        sums, answer = self._recorder.warm(lambda: self._eager.derive_and_answer(host, divisors, share, lap))
        self._shapes[key] = self._record(host, answer, divisors, share)
        return sums

    def _without(self, why: str, host: Any, divisors: Tensor, share: float, lap: Lap) -> Tensor:
        if why not in self._told:
            self._told.add(why)
            _log.warning("micro batches run without CUDA graphs from here on: %s", why)
        return self._eager.derive(host, divisors, share, lap)

    def _replay(self, recorded: _Recorded, host: StaticBatch, divisors: Tensor, lap: Lap) -> Tensor:
        for mine, theirs in zip(recorded.batch.tensors, host.tensors, strict=True):
            mine.copy_(theirs, non_blocking=True)
        recorded.divisors.copy_(divisors)
        recorded.ask()
        lap("forward")
        answer = self._eager.answer(recorded.asked, host)
        if answer is not None and recorded.answer is not None:
            recorded.answer.copy_(answer)
        lap("matching")
        # Loss and backward are one.
        lap("loss")
        recorded.learn()
        lap("backward")
        return recorded.sums

    def _record(self, host: StaticBatch, answer: Tensor | None, divisors: Tensor, share: float) -> _Recorded | None:
        """Record both parts; None where that cannot be done, with the reason in the log."""
        began = time.perf_counter()
        eager, words = self._eager, f"micro batches of {_words(host)}"
        batch = host.with_tensors([tensor.to(divisors.device, copy=True) for tensor in host.tensors])
        mine = divisors.clone()

        def learn() -> Tensor:
            total, sums = eager.loss(output, answer, batch, mine, share)
            total.backward()
            return sums

        try:
            (output, asked), replay_ask = self._recorder.record(lambda: eager.ask(batch))
            sums, replay_learn = self._recorder.record(learn)
        except torch.OutOfMemoryError as error:
            _log.warning("%s run without a CUDA graph: %s", words, _reason(error))
            self.short_of_memory = True
            return None
        except RuntimeError as error:
            # What cannot be recorded of one shape cannot be of another.
            self._never = _reason(error)
            return None
        took = time.perf_counter() - began
        self._seconds += took
        count = sum(each is not None for each in self._shapes.values()) + 1
        _log.info("%s: CUDA graph in %.1f s; %d so far in %.0f s", words, took, count, self._seconds)
        return _Recorded(batch, mine, asked, answer, sums, replay_ask, replay_learn)


def _words(host: StaticBatch) -> str:
    """The shape of what is largest, in words."""
    return " x ".join(map(str, max(host.tensors, key=Tensor.numel).shape))


def _reason(error: BaseException) -> str:
    """The first line of what went wrong first: ending a recording that has failed fails as well."""
    while isinstance(error.__context__, RuntimeError):
        error = error.__context__
    return next(iter(str(error).splitlines()), type(error).__name__)
