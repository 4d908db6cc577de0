"""Checkpoints: written whole or not at all, checked when read, and the one before them when the newest is damaged.

`torch.load` does not notice a flipped byte inside a tensor. The zip file that `torch.save` writes holds a CRC-32 of
every record, though, so they are checked here before anything is unpickled; no second file or digest is needed.
"""

from __future__ import annotations

import argparse
import difflib
import errno
import logging
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from detr_container.base.files import atomic_write, open_regular

from .pickled import read_pickle

_log = logging.getLogger(__name__)
_NAME = re.compile(r"checkpoint-(\d{8,})\.pt")
_PICKLES = (".pkl", ".pickle")
_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".safetensors", *_PICKLES)
_PLAIN = (
    int,
    float,
    complex,
    bool,
    str,
    bytes,
    type(None),
    torch.Tensor,
    torch.nn.Parameter,
    torch.dtype,
    torch.device,
)
# What torch.load was seen to raise for bytes that are no checkpoint: the pickle machine fails in many ways.
_UNREADABLE = (
    RuntimeError,
    EOFError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    AssertionError,
    OverflowError,
    struct.error,
    pickle.UnpicklingError,
)


class Checkpoints:
    """The checkpoints of one run: a folder of `checkpoint-<step>.pt`, written by one process.

    keep: how many of the newest stay; with 1 there is nothing to fall back on when that one is damaged.
    """

    def __init__(self, folder: Path | str, keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(
                f"keep_checkpoints={keep}: at least one checkpoint must stay; use 2 to survive a damaged one"
            )
        self.folder = Path(folder)
        self.keep = keep

    def paths(self) -> list[Path]:
        """The checkpoints that are there, damaged or not, newest first."""
        if not self.folder.is_dir():
            return []
        found = [path for path in self.folder.iterdir() if _NAME.fullmatch(path.name) and path.is_file()]
        return sorted(found, key=_step, reverse=True)

    def save(self, state: dict[str, Any], step: int) -> Path:
        """Write the state after `step` optimizer steps, then remove the oldest.

        Whatever goes wrong, the checkpoints that were there still are. Checkpoints of later steps, which exist only
        when the run went back, are renamed to `<name>.aside` so that this one is the newest.
        Raises ValueError for a state that could not be loaded again, OSError when it does not fit on the disk.
        """
        if step < 0:
            raise ValueError(f"step={step}: the number of optimizer steps cannot be negative")
        _check_plain(state, "state")
        path = atomic_write(self.folder / f"checkpoint-{step:08d}.pt", lambda file: torch.save(state, file))
        kept = 0
        for other in self.paths():
            if _step(other) > step:
                _log.warning("%s is of a later step than the checkpoint just written: renamed to .aside", other)
                other.replace(other.with_name(other.name + ".aside"))
                continue
            kept += 1
            if kept > self.keep:
                other.unlink(missing_ok=True)
        for leftover in self.folder.glob(".checkpoint-*.tmp"):
            leftover.unlink(missing_ok=True)
        return path

    def newest(self) -> tuple[Path, dict[str, Any]] | None:
        """The newest checkpoint that can be read, on the CPU, or None when there is none at all.

        A damaged one is reported as a warning and the one before is tried. Raises ValueError when all are damaged.
        """
        paths = self.paths()
        for path in paths:
            try:
                return path, load(path)
            except FileNotFoundError:
                # Another process trains in this folder and has just removed it, so there is a newer one now.
                return self.newest()
            except ValueError as error:
                _log.warning("%s; trying the checkpoint before it", error)
        if not paths:
            return None
        raise ValueError(
            f"{self.folder}: none of the {len(paths)} checkpoints can be read ({', '.join(p.name for p in paths)}). "
            "Put back a copy of one of them, or remove them to start again from the beginning"
        )


def load(path: Path | str) -> dict[str, Any]:
    """Read one checkpoint, ours or a published one, on the CPU and without running code from it.

    Files of torch.save (old and new format; argparse.Namespace, which published detectors contain, is allowed),
    safetensors, and pickles of numpy arrays (`.pkl`, as detectron2 and Caffe2 write them; arrays become tensors).
    Raises FileNotFoundError with similar names, ValueError when it is damaged or no checkpoint.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder: name a checkpoint file{_offer(path, '')}")
    if not path.exists():
        raise FileNotFoundError(errno.ENOENT, f"there is no such checkpoint{_offer(path.parent, path.name)}", str(path))
    try:
        state = _read(path)
    except OSError as error:
        # EINVAL comes from a jump to a place before the file's start, which only a damaged index asks for.
        if error.errno not in (None, errno.EIO, errno.EINVAL):
            raise
        raise ValueError(f"{path} is damaged, or its disk is ({error}). Use another copy") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}, not a checkpoint: a dict of weights is needed")
    return state


def _read(path: Path) -> Any:
    with open_regular(path) as file:
        start = file.read(4)
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if not start:
        raise ValueError(f"{path} is empty: its writing was interrupted. Use another copy")
    if start == b"PK\x03\x04":
        _check_crc(path)
    # torch.save's old format is a pickle, too, of several objects, the first of which is a number.
    pickled = path.suffix in _PICKLES and start[:1] == b"\x80" and start[2:3] != b"\x8a"
    try:
        if pickled:
            return read_pickle(path.read_bytes())
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        raise ValueError(f"{path} {_refusal(path, error, pickled)}") from error


def _refusal(path: Path, error: Exception, pickled: bool) -> str:
    """Why a file is not read, and what to do. pickled: it is a pickle without torch.save's frame."""
    foreign = re.search(r"GLOBAL (\S+) (?:was not an allowed global|whose module)", str(error))
    if foreign:
        read = "pickle.load(file)" if pickled else "torch.load(path, weights_only=False)"
        return (
            f"contains a {foreign[1]}, which is not loaded because it could run code. If you trust the file, load it "
            f"with {read} and save its {'arrays' if pickled else 'tensors'} alone"
        )
    kind = "no pickle of weights" if pickled else "no checkpoint of torch.save"
    return f"({path.stat().st_size:,} bytes) is damaged or {kind} ({type(error).__name__}). Use another copy"


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged or no safetensors file ({error}). Use another copy") from error


def _check_crc(path: Path) -> None:
    """Raise ValueError unless every record of the zip file is as it was written."""
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                # What testzip overlooks in a damaged index: torch.save never compresses, so both sizes agree, and for
                # a record marked as a folder (0x10) torch.load would return memory that was never written.
                marked = record.external_attr & 0x10 and not record.filename.endswith("/")
                if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size or marked:
                    raise zipfile.BadZipFile(f"the entry of {record.filename!r} is wrong")
            bad = archive.testzip()
    except (zipfile.BadZipFile, EOFError, ValueError, RuntimeError, struct.error) as error:
        raise ValueError(f"{path} is damaged ({error}). Use another copy") from error
    if bad is not None:
        raise ValueError(f"{path} is damaged: its record {bad!r} is not what was written. Use another copy")


def _check_plain(value: Any, name: str) -> None:
    """Raise ValueError for anything that weights_only=True would refuse, now rather than when the run resumes."""
    kind = type(value)
    if kind in (dict, OrderedDict):
        for key, entry in value.items():
            _check_plain(key, f"the key {key!r} of {name}")
            _check_plain(entry, f"{name}[{key!r}]")
    elif kind in (list, tuple, set, torch.Size):
        for index, entry in enumerate(value):
            _check_plain(entry, f"{name}[{index}]")
    elif kind not in _PLAIN:
        raise ValueError(
            f"{name} is a {kind.__module__}.{kind.__qualname__}, which a checkpoint cannot hold: "
            "turn it into tensors, numbers, strings, lists or dicts"
        )


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])


def _offer(folder: Path, name: str) -> str:
    """For a message: the checkpoints that a folder, or a run's folder, does hold, similar names first."""
    if not folder.is_dir():
        return f" (nor a folder {folder})"
    for place in (folder, folder / "checkpoints"):
        found = [entry for entry in place.iterdir() if entry.suffix in _SUFFIXES] if place.is_dir() else []
        names = sorted(entry.name for entry in found if entry.is_file())
        near = difflib.get_close_matches(name, names, n=3) or names[-5:]
        if near:
            return f"; did you mean {', '.join(str((place / each).relative_to(folder)) for each in near)}?"
    where = "this folder" if folder == Path() else str(folder)
    return f"; {where} holds none: name a run's folder, or a file of weights"
