"""Pickles of numpy arrays, as detectron2 and Caffe2 keep weights, read without running code that they name.

Containers, text and numbers are what they are; arrays become tensors. No object of the file's makes itself: what it
says of an array is checked, and the array made of it here.
"""

from __future__ import annotations

import io
import math
import pickle
import pickletools
import re
from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

# Booleans, whole numbers and floating-point numbers of fixed size.
_KIND = re.compile(r"b1|[iu][1248]|f[248]")
_SCALARS = (str, bytes, bool, int, float, type(None))


def read_pickle(data: bytes) -> Any:
    """What a pickle holds, of the objects that weights need.

    Raises pickle.UnpicklingError, whose text names the class, where it holds any other; what else the machine raises
    for bytes that are no pickle is as various as they are.
    """
    # Lengths are those of bytes that are there: the reader in C makes room first, for what a damaged byte may say.
    for count, (code, argument, _) in enumerate(pickletools.genops(data)):
        if code.name in ("PUT", "LONG_BINPUT") and isinstance(argument, int) and argument > count:
            _wrong(f"place {argument} of {count}")
    return _plain(_Unpickler(io.BytesIO(data), encoding="latin1").load(), {})


def _wrong(what: str) -> NoReturn:
    raise pickle.UnpicklingError(what)


class _Kind:
    """What numpy calls a dtype."""

    def __init__(self, text: Any, *_: Any) -> None:
        self.text, self.order = _text(text).lstrip("<>|="), "="

    def __setstate__(self, state: Any) -> None:
        # (version, byte order, and what only compound types have)
        self.order = _text(state[1])

    def of(self, raw: Any) -> NDArray[Any]:
        """Bytes as numbers of this kind. Raises for text, dates and objects."""
        if not _KIND.fullmatch(self.text) or self.order not in ("<", ">", "|", "="):
            _wrong(f"GLOBAL numpy.dtype({self.text!r}) was not an allowed global")
        # As text, where Python 2 wrote them.
        data = raw.encode("latin1") if isinstance(raw, str) else bytes(memoryview(raw))
        kind = np.dtype(self.order + self.text)
        return np.frombuffer(data, kind).astype(kind.newbyteorder("="))


class _Array:
    """An array that its state, or all of its arguments, makes."""

    def __init__(self) -> None:
        self.value: NDArray[Any] = np.zeros(0)

    def __setstate__(self, state: Any) -> None:
        # (version, shape, dtype, whether columns come first, bytes)
        self.fill(*state[-4:])

    def fill(self, shape: Any, kind: Any, fortran: Any, raw: Any) -> None:
        """Take the bytes, if they are as many as the shape has numbers."""
        if not isinstance(kind, _Kind) or not all(type(side) is int and side >= 0 for side in shape):
            _wrong(f"an array of shape {shape!r}")
        numbers = kind.of(raw)
        if numbers.size != math.prod(shape):
            _wrong(f"an array of shape {shape!r} with {numbers.size} numbers")
        self.value = numbers.reshape(shape, order="F" if fortran else "C")


def _reconstruct(*_: Any) -> _Array:
    """An array whose state follows."""
    return _Array()


def _from_buffer(raw: Any, kind: Any, shape: Any, order: Any, axes: Any = None) -> _Array:
    """A whole array; axes: where its own lie among those of the bytes, where neither rows nor columns come first."""
    array = _Array()
    array.fill(shape, kind, order == "F", raw)
    if axes is not None:
        array.value = array.value.transpose(axes)
    return array


def _scalar(kind: Any, raw: Any) -> Any:
    """A number of numpy's."""
    return kind.of(raw)[0].item()


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    """Bytes, as Python 3 writes them for Python 2."""
    return _text(text).encode("latin1") if encoding == "latin1" else _wrong(f"text in {encoding!r}")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else _wrong(f"a {type(value).__name__} where text belongs")


class _Maker:
    """What stands for a class or a function of the file's: it can be called, and not be changed."""

    __slots__ = ("_make",)

    def __init__(self, make: Callable[..., Any]) -> None:
        self._make = make

    def __call__(self, *values: Any) -> Any:
        return self._make(*values)

    def __setstate__(self, state: Any) -> NoReturn:
        _wrong("a state of what has none")


_MAKERS = {
    ("collections", "OrderedDict"): _Maker(dict),
    ("_codecs", "encode"): _Maker(_encode),
    ("builtins", "bytes"): _Maker(lambda: b""),
    ("__builtin__", "bytes"): _Maker(lambda: b""),
    ("numpy", "dtype"): _Maker(_Kind),
    ("numpy", "ndarray"): _Maker(lambda: _wrong("an array without its maker")),
    **{
        # numpy 2 calls its own package otherwise than numpy 1 did.
        (f"numpy.{core}.{module}", name): _Maker(make)
        for core in ("core", "_core")
        for module, name, make in (
            ("multiarray", "_reconstruct", _reconstruct),
            ("multiarray", "scalar", _scalar),
            ("numeric", "_frombuffer", _from_buffer),
        )
    },
}


class _Unpickler(pickle.Unpickler):
    """Python's own, which finds what is in `_MAKERS` and nothing else."""

    def find_class(self, module: str, name: str, /) -> Any:
        """What stands for a name; never what it names."""
        if (module, name) not in _MAKERS:
            _wrong(f"GLOBAL {module}.{name} was not an allowed global")
        return _MAKERS[module, name]


def _plain(value: Any, made: dict[int, Any]) -> Any:
    """The same with tensors for arrays. made: what each container became, by its id; one within itself is refused."""
    if isinstance(value, _SCALARS):
        return value
    if isinstance(value, _Array):
        # In memory of its own, which can be written.
        return torch.from_numpy(np.array(value.value, order="C"))
    if type(value) not in (dict, list, tuple):
        _wrong(f"a {type(value).__name__}")
    if id(value) not in made:
        made[id(value)] = None
        if isinstance(value, dict):
            whole: Any = {_key(key): _plain(each, made) for key, each in value.items()}
        else:
            whole = type(value)(_plain(each, made) for each in value)
        made[id(value)] = whole
    if made[id(value)] is None:
        _wrong("a container within itself")
    return made[id(value)]


def _key(value: Any) -> Any:
    return value if isinstance(value, _SCALARS) else _wrong(f"a {type(value).__name__} as a name")
