"""Checkpoints: every kind of damage is noticed, and the one before is used."""

import argparse
import io
import logging
import os
import pickle
import random
import subprocess
import sys
import textwrap
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from detr_container.engine.checkpoint import Checkpoints, load


def example(step: int = 7) -> dict[str, Any]:
    model = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 5)).sum().backward()
    optimizer.step()
    return {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "step": step,
        "rng": [torch.get_rng_state(), random.getstate()],
        "names": ("a", None, True, 1.5),
    }


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and a.shape == b.shape and bool((a == b).all())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return bool(a == b) and type(a) is type(b)


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    state = example()
    checkpoints = Checkpoints(tmp_path / "run")
    assert checkpoints.newest() is None
    path = checkpoints.save(state, 1234)
    assert path == tmp_path / "run" / "checkpoint-00001234.pt"
    found = checkpoints.newest()
    assert found is not None
    assert found[0] == path
    assert same(found[1], state)
    assert same(load(path), state)


def test_only_the_newest_stay(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=2)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / ".checkpoint-00000001.pt.99-abcd.tmp").write_bytes(b"left by a killed process")
    for step in (9, 10, 99_999_999, 100_000_000):
        checkpoints.save({"step": step}, step)
    assert names(tmp_path) == ["checkpoint-100000000.pt", "checkpoint-99999999.pt", "config.json"]
    found = checkpoints.newest()
    assert found is not None
    assert found[1] == {"step": 100_000_000}


def test_going_back_makes_the_new_one_the_newest(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (100, 200, 150):
        checkpoints.save({"step": step}, step)
    found = checkpoints.newest()
    assert found is not None
    assert found[1] == {"step": 150}
    assert names(tmp_path) == ["checkpoint-00000100.pt", "checkpoint-00000150.pt", "checkpoint-00000200.pt.aside"]
    assert "aside" in caplog.text


def damage(path: Path, how: str) -> None:
    data = bytearray(path.read_bytes())
    if how == "truncated":
        data = data[: len(data) // 2]
    elif how == "one bit":
        # In the middle of the largest record, the weights: torch.load alone would accept it.
        data[data.index(b"\x00\x00\x80\x3f" * 8) + 2] ^= 1
        assert torch.load(io.BytesIO(data), weights_only=True)["step"] == 2
    elif how == "last byte":
        data = data[:-1]
    elif how == "zeros":
        data = bytearray(len(data))
    elif how == "empty":
        data = bytearray()
    elif how == "text":
        data = bytearray(b"<html>404 not found</html>")
    path.write_bytes(data)


@pytest.mark.parametrize("how", ["truncated", "one bit", "last byte", "zeros", "empty", "text"])
def test_a_damaged_newest_falls_back(tmp_path: Path, caplog: pytest.LogCaptureFixture, how: str) -> None:
    checkpoints = Checkpoints(tmp_path)
    for step in (1, 2):
        checkpoints.save({"weights": torch.ones(1000), "step": step}, step)
    damage(tmp_path / "checkpoint-00000002.pt", how)
    with caplog.at_level(logging.WARNING):
        found = checkpoints.newest()
    assert found is not None
    assert found[0].name == "checkpoint-00000001.pt"
    assert found[1]["step"] == 1
    assert "checkpoint-00000002.pt" in caplog.text
    damage(tmp_path / "checkpoint-00000001.pt", "truncated")
    with pytest.raises(ValueError, match=r"none of the 2 checkpoints can be read.*Put back a copy"):
        checkpoints.newest()
    assert len(names(tmp_path)) == 2


def test_no_flipped_bit_passes_unnoticed(tmp_path: Path) -> None:
    """Every bit of a small checkpoint's index and one random bit of its other bytes: noticed, or of no consequence."""
    state = {"weights": torch.arange(16.0), "step": 3, "lr": 0.1}
    good = Checkpoints(tmp_path).save(state, 1).read_bytes()
    path = tmp_path / "flipped.pt"
    noticed = 0
    index = good.index(b"PK\x01\x02")
    flips = [(position, random.randrange(8)) for position in range(index)]
    flips += [(position, bit) for position in range(index, len(good)) for bit in range(8)]
    for position, bit in flips:
        data = bytearray(good)
        data[position] ^= 1 << bit
        path.write_bytes(data)
        try:
            loaded = load(path)
        except ValueError:
            noticed += 1
        else:
            assert same(loaded, state), (position, bit)
    assert noticed > len(flips) / 3


def test_no_cut_passes_unnoticed(tmp_path: Path) -> None:
    good = Checkpoints(tmp_path).save({"weights": torch.arange(16.0)}, 1).read_bytes()
    path = tmp_path / "cut.pt"
    for length in range(0, len(good), 7):
        path.write_bytes(good[:length])
        with pytest.raises(ValueError, match=r"cut\.pt"):
            load(path)


def test_state_that_could_not_be_loaded_is_not_saved(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    bad = {"a": [1, {"b": np.float64(1.0)}], "p": Path("x"), "s": {np.int64(1): 1}}
    wheres = {"a": r"state\['a'\]\[1\]\['b'\] is a numpy\.float64", "p": r"state\['p'\]", "s": "the key .* of state"}
    for key, where in wheres.items():
        with pytest.raises(ValueError, match=where):
            checkpoints.save({key: bad[key]}, 1)
    assert names(tmp_path) == []
    plain = {
        "o": OrderedDict(a=torch.Size([1])),
        "d": torch.float32,
        "c": 1j,
        "s": {1},
        "b": b"x",
        3: torch.device("cpu"),
    }
    assert same(load(checkpoints.save(plain, 2)), plain)


def test_published_files_load(tmp_path: Path) -> None:
    """Old and new torch formats with an argparse.Namespace, as DETR's and SMCA's have, and safetensors."""
    state = {"model": {"w": torch.randn(3, 2)}, "args": argparse.Namespace(lr=1e-4, masks=False), "epoch": 49}
    for name, new in (("new.pth", True), ("old.pth", False)):
        torch.save(state, tmp_path / name, _use_new_zipfile_serialization=new)
        loaded = load(tmp_path / name)
        assert same(loaded["model"], state["model"])
        assert loaded["args"].lr == 1e-4
    save_file(state["model"], tmp_path / "model.safetensors")
    assert same(load(tmp_path / "model.safetensors"), state["model"])
    (tmp_path / "model.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="no safetensors"):
        load(tmp_path / "model.safetensors")


class Trap:
    """Runs code when unpickled the unsafe way."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("/nonexistent/never",)


@pytest.mark.parametrize("new", [True, False])
def test_no_code_is_run(tmp_path: Path, new: bool) -> None:
    torch.save({"model": Trap()}, tmp_path / "trap.pt", _use_new_zipfile_serialization=new)
    with pytest.raises(ValueError, match=r"posix\.mkdir, which is not loaded because it could run code"):
        load(tmp_path / "trap.pt")


def test_errors_of_the_user_are_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Checkpoints(tmp_path).save({"step": 1}, 1200)
    with pytest.raises(FileNotFoundError, match=r"did you mean checkpoint-00001200\.pt\?"):
        load(tmp_path / "checkpoint-0001200.pt")
    with pytest.raises(FileNotFoundError, match="nor a folder"):
        load(tmp_path / "absent" / "checkpoint.pt")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="this folder holds none: name a run's folder, or a file of weights"):
        load("nothere")
    with pytest.raises(ValueError, match=r"is a folder.*checkpoint-00001200\.pt"):
        load(tmp_path)
    Checkpoints(tmp_path / "run" / "checkpoints").save({"step": 1}, 7)
    with pytest.raises(ValueError, match=r"is a folder.*did you mean checkpoints/checkpoint-00000007\.pt\?"):
        load(tmp_path / "run")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list, not a checkpoint"):
        load(tmp_path / "list.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(ValueError, match="damaged or no checkpoint"):
        load(tmp_path / "pickle.pt")
    with pytest.raises(ValueError, match="keep_checkpoints=0"):
        Checkpoints(tmp_path, keep=0)
    with pytest.raises(ValueError, match="step=-1"):
        Checkpoints(tmp_path).save({}, -1)


SAVER = """
    import resource, sys, torch
    from detr_container.engine.checkpoint import Checkpoints
    checkpoints = Checkpoints(sys.argv[1])
    state = lambda step: {"weights": torch.full((300_000,), float(step)), "step": step}
    checkpoints.save(state(1), 1)
    print("saved", flush=True)
    if sys.argv[2] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
        try:
            checkpoints.save(state(2), 2)
        except OSError as error:
            print(error)
    else:
        for step in range(2, 100_000):
            checkpoints.save(state(step), step)
"""


def saver(repository: Path, folder: Path, mode: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(SAVER), str(folder), mode]
    return subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_a_checkpoint_that_does_not_fit_leaves_the_old_one(repository: Path, tmp_path: Path) -> None:
    out, error = saver(repository, tmp_path, "limit").communicate(timeout=120)
    assert error == ""
    assert "checkpoint-00000002.pt: the file is too large" in out
    assert names(tmp_path) == ["checkpoint-00000001.pt"]
    assert load(tmp_path / "checkpoint-00000001.pt")["step"] == 1


def test_a_killed_run_always_leaves_a_good_checkpoint(
    repository: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for delay in (0.0, 0.05):
        process = saver(repository, tmp_path / str(delay), "forever")
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.communicate()
        found = Checkpoints(tmp_path / str(delay)).newest()
        assert found is not None
        assert bool((found[1]["weights"] == found[1]["step"]).all())
    assert caplog.text == ""
