"""One thing wrong: with a value, with a JSON file, with the bytes of a file, with a checkpoint."""

from __future__ import annotations

import copy
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

VALUES: tuple[Any, ...] = (
    None,
    "",
    "x",
    "7",
    "../x",
    "[/red] [bold",
    "line\nbreak",
    "\udcff",
    -1,
    0,
    0.5,
    1,
    2**31,
    2**63,
    10**30,
    float("nan"),
    float("inf"),
    True,
    [],
    [1],
    {},
    {"a": 1},
    [[[]]],
)
"""What a value of a JSON file may turn out to be."""
WORDS = (
    "",
    "0",
    "-1",
    "1",
    "0.5",
    "-0.5",
    "1e400",
    "nan",
    "inf",
    "99999999999999999999",
    "100000000000",
    "1000000000",
    "x",
    "None",
    "true",
    "[",
    "../x",
    "..",
    "/dev/zero",
    "/dev/null",
    "/proc/self/mem",
    "pipe",
    "no/such/place",
    "$(touch pwned)",
    "a\nb",
    "a\udcffb",
    "é" * 300,
    "--help",
)
"""What may be given for an option."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value within nested lists and dicts, of the first few of long lists."""
    if path:
        yield path
    if isinstance(value, dict):
        for key in value:
            yield from places(value[key], (*path, key))
    elif isinstance(value, list):
        for index in range(min(3, len(value))):
            yield from places(value[index], (*path, index))


def one_wrong(value: Any, rng: random.Random) -> tuple[Any, str]:
    """A copy of a JSON value with one thing wrong, and what that is."""
    value = copy.deepcopy(value)
    path = rng.choice(list(places(value)) or [()])
    if not path:
        new = rng.choice(VALUES)
        return new, f"whole = {new!r:.40}"
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    if rng.random() < 0.25:
        del holder[path[-1]]
        return value, f"{path} removed"
    new = rng.choice(VALUES)
    holder[path[-1]] = new
    return value, f"{path} = {new!r:.40}"


def spoil_bytes(data: bytes, rng: random.Random) -> tuple[bytes, str]:
    """Bytes of a file that is cut, flipped, empty, doubled, or has something in front."""
    kind = rng.choice(("cut", "flip", "flip", "flips", "empty", "twice", "bom", "zeros", "nested", "text"))
    place = rng.randrange(max(1, len(data)))
    if kind == "cut":
        return data[:place], f"cut at {place}"
    if kind == "flip" and data:
        # The first bytes show a decoder how to continue.
        place = rng.randrange(min(len(data), 64)) if rng.random() < 0.5 else place
        return data[:place] + bytes([data[place] ^ 1 << rng.randrange(8)]) + data[place + 1 :], f"bit at {place}"
    if kind == "flips":
        changed = bytearray(data)
        for _ in range(20):
            if changed:
                changed[rng.randrange(len(changed))] = rng.randrange(256)
        return bytes(changed), "20 bytes"
    contents = {
        "twice": data + data,
        "bom": b"\xef\xbb\xbf" + data,
        "zeros": b"\0" * 1000,
        "nested": b"[" * 100_000,
        "text": b"not what it was\xff\n",
    }
    return contents.get(kind, b""), kind


def spoil_json(path: Path, rng: random.Random) -> str:
    """Damage a JSON or JSON-lines file: one value of it, its bytes, or what it is. Returns what was done."""
    if what := spoil_whole(path, rng, 0.08, 0.2):
        return what
    lines = path.suffix == ".jsonl"
    records = [json.loads(row) for row in path.read_text().splitlines()] if lines else [json.loads(path.read_text())]
    index = rng.randrange(len(records))
    records[index], what = one_wrong(records[index], rng)
    path.write_text("\n".join(map(json.dumps, records)) + "\n")
    return f"line {index + 1}: {what}" if lines else what


def spoil_whole(path: Path, rng: random.Random, replaced: float, damaged: float) -> str:
    """Replace a file or damage its bytes, as often as two rising shares have it. Returns what was done, or ""."""
    draw = rng.random()
    if draw < replaced:
        return replace_file(path, rng)
    if draw < damaged:
        data, what = spoil_bytes(path.read_bytes(), rng)
        path.write_bytes(data)
        return what
    return ""


def replace_file(path: Path, rng: random.Random) -> str:
    """Put something in a file's place that is no regular file, or nothing."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    ways: dict[str, Callable[[], object]] = {
        "nothing": lambda: None,
        "a folder": path.mkdir,
        "a pipe": lambda: os.mkfifo(path),
        "a link to /dev/zero": lambda: path.symlink_to("/dev/zero"),
        "a link to nowhere": lambda: path.symlink_to("nowhere"),
        "a link to itself": lambda: path.symlink_to(path.name),
    }
    kind = rng.choice(list(ways))
    ways[kind]()
    return kind


def _tensors(value: torch.Tensor, rng: random.Random) -> Any:
    """Something else in the place of a tensor."""
    ways: list[Callable[[], Any]] = [
        lambda: value.flatten()[:1].clone(),
        lambda: value[None],
        lambda: value.new_zeros(()),
        lambda: value.to(torch.complex64) if value.is_floating_point() else value.double(),
        lambda: value.to(torch.int64),
        lambda: value.to(torch.bfloat16),
        lambda: value.bool(),
        lambda: torch.full_like(value, float("nan")) if value.is_floating_point() else value + 1,
        lambda: value.numpy().tolist(),
        lambda: value.to_sparse() if value.dim() and value.is_floating_point() else None,
        lambda: value.new_zeros((0, *value.shape[1:])),
        lambda: {"tensor": value},
    ]
    return rng.choice(ways)()


def spoil_checkpoint(path: Path, rng: random.Random) -> str:
    """Damage a checkpoint: its bytes, a key, a type, a shape, a dtype. Returns what was done."""
    if what := spoil_whole(path, rng, 0.06, 0.15):
        return what
    state = torch.load(path, weights_only=True)
    where = list(places(state))
    # Every part of it alike, however many tensors a part holds.
    part = rng.choice(list(state))
    path_in = rng.choice([each for each in where if each[0] == part])
    holder = state
    for key in path_in[:-1]:
        holder = holder[key]
    key, old = path_in[-1], holder[path_in[-1]]
    kind = rng.choice(("remove", "value", "value", "rename", "add"))
    if kind == "value":
        holder[key] = _tensors(old, rng) if isinstance(old, torch.Tensor) else rng.choice(VALUES)
        what = f"{path_in} = {str(holder[key])[:40]!r}"
    elif kind == "remove" or not isinstance(holder, dict):
        del holder[key]
        what = f"{path_in} removed"
    elif kind == "rename":
        holder[f"{key}x"] = holder.pop(key)
        what = f"{path_in} renamed"
    else:
        holder["another"] = torch.zeros(3)
        what = f"{path_in[:-1]} has one more"
    torch.save(state, path)
    return what
