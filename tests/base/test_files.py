"""Atomic writes, JSON and JSON lines, against full disks, limits and kills."""

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from detr_container.base.files import (
    JsonLines,
    atomic_write,
    make_folder,
    open_regular,
    read_jsonl,
    sha256,
    write_json,
    write_jsonl,
)


def python(code: str, *arguments: object, cwd: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_writes_the_bytes_and_nothing_else(tmp_path: Path) -> None:
    path = atomic_write(tmp_path / "new" / "folder" / "a.bin", lambda file: file.write(b"\0\1" * 1000))
    assert path.read_bytes() == b"\0\1" * 1000
    assert os.listdir(path.parent) == ["a.bin"]
    atomic_write(path, lambda file: file.write(b"second"))
    assert path.read_bytes() == b"second"
    assert os.listdir(path.parent) == ["a.bin"]


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        path = atomic_write(tmp_path / "a", lambda file: file.write(b"x"))
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize("error", [ValueError("mine"), KeyboardInterrupt(), OSError(errno.EIO, "broken")])
def test_a_failing_writer_leaves_the_old_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def fail(file: Any) -> None:
        file.write(b"x" * 5_000_000)
        raise error

    with pytest.raises(type(error)) as caught:
        atomic_write(path, fail)
    assert caught.value is error
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


def test_a_link_is_followed_on_request_alone(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    link = tmp_path / "link.json"
    link.symlink_to("real/file.json")
    for write in (lambda: write_json(link, [1]), lambda: write_jsonl(link, [{}]), lambda: JsonLines(link)):
        with pytest.raises(OSError, match=r"is a symbolic link to real/file\.json"):
            write()
    assert not list((tmp_path / "real").iterdir())
    write_json(link, [1], follow=True)
    assert link.is_symlink()
    assert json.loads((tmp_path / "real" / "file.json").read_text()) == [1]


def test_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(IsADirectoryError, match="folder"):
        atomic_write(tmp_path, lambda file: file.write(b"x"))
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("below", ["x", "a/x", "a/b/x"])
@pytest.mark.parametrize("write", [lambda path: write_json(path, {}), JsonLines, make_folder])
def test_what_is_in_a_folders_way_is_named(write: Callable[[Path], object], below: str, tmp_path: Path) -> None:
    way = tmp_path / "way"
    way.write_text("kept")
    with pytest.raises(NotADirectoryError, match="choose another name") as caught:
        write(way / below)
    assert caught.value.filename == str(way)
    assert way.read_text() == "kept"


def test_a_link_to_nothing_is_in_a_folders_way(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nothing")
    with pytest.raises(NotADirectoryError) as caught:
        make_folder(tmp_path / "link" / "a")
    assert caught.value.filename == str(tmp_path / "link")


LIMITED = """
    import pathlib, resource, sys
    from detr_container.base.files import JsonLines, atomic_write, write_json
    if sys.argv[2] == "torch":
        import torch
    path = pathlib.Path(sys.argv[1])
    writers = {
        "plain": lambda: atomic_write(path, lambda file: file.write(bytes(4_000_000)), 4_000_000),
        "torch": lambda: atomic_write(path, lambda file: torch.save({"w": torch.zeros(1_000_000)}, file)),
        "json": lambda: write_json(path, list(range(1_000_000))),
    }
    if sys.argv[3] == "limit":
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
    try:
        writers[sys.argv[2]]()
    except OSError as error:
        print(error.errno, error)
"""


@pytest.mark.parametrize("writer", ["plain", "torch", "json"])
def test_a_file_beyond_the_limit_is_explained(repository: Path, tmp_path: Path, writer: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    out, error = python(LIMITED, path, writer, "limit", cwd=repository).communicate(timeout=60)
    assert error == ""
    assert out.startswith(f"{errno.EFBIG} ")
    assert str(path) in out
    assert "ulimit -f" in out
    if writer == "plain":
        assert "4,000,000 bytes needed" in out
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]


@pytest.mark.parametrize("writer", ["plain", "torch", "json"])
def test_a_full_disk_is_explained(repository: Path, tmp_path: Path, writer: str) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("a small disk can only be mounted by root, outside of most containers")
    try:
        path = disk / "a.bin"
        path.write_bytes(b"old")
        out, error = python(LIMITED, path, writer, "disk", cwd=repository).communicate(timeout=60)
        assert error == ""
        assert out.startswith(f"{errno.ENOSPC} ")
        assert f"cannot write {path}: the disk is full" in out
        assert "Free some space" in out
        assert path.read_bytes() == b"old"
        assert os.listdir(disk) == ["a.bin"]
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_killed_writer_leaves_a_whole_file(repository: Path, tmp_path: Path) -> None:
    """Kill a process that replaces a file without pause, at several moments."""
    code = """
        import sys
        from detr_container.base.files import atomic_write
        number = 0
        while True:
            number += 1
            atomic_write(sys.argv[1], lambda file: [file.write(bytes([number % 251]) * 10_000) for _ in range(100)])
            print(number, flush=True)
    """
    path = tmp_path / "a.bin"
    for delay in (0.0, 0.013, 0.031, 0.047):
        process = python(code, path, cwd=repository)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(delay)
        process.kill()
        process.communicate()
        data = path.read_bytes()
        assert len(data) == 1_000_000
        assert data == data[:1] * len(data)


def test_json_of_paths_arrays_and_infinite_numbers(tmp_path: Path) -> None:
    value = {"p": Path("a/b"), "n": np.float32(0.5), "t": torch.tensor([1, 2]), "bad": [float("nan"), {"x": np.inf}]}
    text = write_json(tmp_path / "a.json", value).read_text()
    assert json.loads(text) == {"p": "a/b", "n": 0.5, "t": [1, 2], "bad": [None, {"x": None}]}
    with pytest.raises(TypeError, match=r"builtins\.object"):
        write_json(tmp_path / "b.json", {"o": object()})
    assert not (tmp_path / "b.json").exists()


def test_lines_are_there_at_once_and_after_reopening(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    with JsonLines(path) as log:
        log.append({"step": 1, "loss": float("nan"), "text": "two\nlines"})
        assert read_jsonl(path) == [{"step": 1, "loss": None, "text": "two\nlines"}]
        log.append({"step": 2})
    with pytest.raises(ValueError, match="closed"):
        log.append({"step": 3})
    log.close()
    with JsonLines(path) as log:
        log.append({"step": 3})
    assert [record["step"] for record in read_jsonl(path)] == [1, 2, 3]


records = st.lists(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=8), max_size=4), max_size=6)


@given(records, records, st.data())
def test_a_log_cut_anywhere_keeps_its_whole_lines(
    tmp_path_factory: pytest.TempPathFactory, before: list[dict], after: list[dict], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("log") / "a.jsonl"
    whole = write_jsonl(path, before).read_bytes()
    cut = data.draw(st.integers(0, len(whole)))
    path.write_bytes(whole[:cut])
    # A line survives when its closing brace, the byte before its line break, does.
    ends = [index for index in range(len(whole)) if whole[index : index + 1] == b"\n"]
    kept = [record for record, end in zip(before, ends, strict=True) if end <= cut]
    assert read_jsonl(path) == kept
    with JsonLines(path) as log:
        assert read_jsonl(path) == kept
        for record in after:
            log.append(record)
    assert read_jsonl(path) == kept + after


def test_zeros_of_a_power_cut_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n' + bytes(100))
    assert read_jsonl(path) == [{"a": 1}]


def test_a_damaged_line_in_the_middle_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: not a JSON object"):
        read_jsonl(path)
    with pytest.raises(FileNotFoundError):
        read_jsonl(tmp_path / "none.jsonl")


def test_a_killed_logger_loses_nothing_it_logged(repository: Path, tmp_path: Path) -> None:
    code = """
        import itertools, sys
        from detr_container.base.files import JsonLines
        log = JsonLines(sys.argv[1])
        for step in itertools.count():
            log.append({"step": step, "text": "x" * 3000})
            print(step, flush=True)
    """
    path = tmp_path / "a.jsonl"
    process = python(code, path, cwd=repository)
    assert process.stdout is not None
    logged = -1
    while logged < 200:
        logged = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    rest, _ = process.communicate()
    logged = int(rest.split()[-1]) if rest.endswith("\n") else logged
    steps = [record["step"] for record in read_jsonl(path)]
    assert steps == list(range(len(steps)))
    assert len(steps) > logged


def test_a_log_on_a_full_disk_ends_with_a_whole_line(repository: Path, tmp_path: Path) -> None:
    code = """
        import resource, sys
        from detr_container.base.files import JsonLines
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
        log = JsonLines(sys.argv[1])
        try:
            while True:
                log.append({"text": "x" * 300})
        except OSError as error:
            print(error)
    """
    path = tmp_path / "a.jsonl"
    out, error = python(code, path, cwd=repository).communicate(timeout=60)
    assert error == ""
    assert "ulimit -f" in out
    assert len(read_jsonl(path)) == 10_000 // len(json.dumps({"text": "x" * 300}) + "\n")
    assert path.read_bytes().endswith(b"}\n")


@pytest.mark.parametrize("kind", ["a named pipe", "a folder", "a socket", "a character device"])
def test_only_regular_files_are_opened(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    if kind == "a named pipe":
        os.mkfifo("it")
    elif kind == "a folder":
        Path("it").mkdir()
    elif kind == "a character device":
        Path("it").symlink_to("/dev/zero")
    else:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("it")
    for read in (open_regular, sha256, read_jsonl):
        with pytest.raises(ValueError, match=f"^it is {kind}, and only regular files are read"):
            read("it")


def test_a_pipe_that_took_the_name_of_a_file_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, regular = tmp_path / "it", os.stat(__file__)
    os.mkfifo(path)
    monkeypatch.setattr(os, "stat", lambda name: regular)
    with pytest.raises(ValueError, match="is a named pipe"):
        open_regular(path)


def test_a_link_to_a_regular_file_is_read_through(tmp_path: Path) -> None:
    (tmp_path / "it").write_bytes(b"content")
    (tmp_path / "link").symlink_to("it")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"content"
