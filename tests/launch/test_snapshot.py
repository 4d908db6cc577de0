"""Copies of code for queued jobs."""

import json
from pathlib import Path

from detr_container.launch.snapshot import NOTE, take_snapshot


def package(folder: Path) -> Path:
    """A package with a link in it, as this one has."""
    (folder / "parts").mkdir(parents=True)
    (folder / "parts" / "one.py").write_text("x = 1\n")
    (folder / "whole").mkdir()
    (folder / "whole" / "__init__.py").touch()
    (folder / "whole" / "parts").symlink_to("../parts")
    (folder / "whole" / "__pycache__").mkdir()
    (folder / "whole" / "__pycache__" / "one.pyc").touch()
    return folder / "whole"


def test_links_are_followed_and_caches_left(tmp_path: Path) -> None:
    source = package(tmp_path / "source")
    copy = take_snapshot(source, tmp_path / "copy", {"git": {"commit": "abc"}})
    (tmp_path / "source" / "parts" / "one.py").write_text("x = 2\n")
    found = sorted(str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file())
    assert found == [NOTE, "whole/__init__.py", "whole/parts/one.py"]
    assert (copy / "whole" / "parts" / "one.py").read_text() == "x = 1\n"
    assert not (copy / "whole" / "parts").is_symlink()
    note = json.loads((copy / NOTE).read_text())
    assert (note["package"], note["git"]) == (str(source), {"commit": "abc"})


def test_the_digest_is_of_the_content(tmp_path: Path) -> None:
    notes = []
    for name, text in (("a", "x = 1\n"), ("b", "x = 1\n"), ("c", "x = 3\n")):
        source = package(tmp_path / name)
        (tmp_path / name / "parts" / "one.py").write_text(text)
        notes.append(json.loads((take_snapshot(source, tmp_path / f"copy-{name}", {}) / NOTE).read_text()))
    assert notes[0]["sha256"] == notes[1]["sha256"] != notes[2]["sha256"]
