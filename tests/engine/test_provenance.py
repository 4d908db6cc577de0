"""Provenance names the code that runs, and not somebody else's repository around it."""

import json
import shlex
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from detr_container.engine.provenance import provenance


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), "-c", "user.name=Ada", "-c", "user.email=ada@example.org", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def seen_from(root: Path) -> dict[str, Any]:
    code = "import json; from detr_container.engine import provenance as p; print(json.dumps(p.provenance()['git']))"
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_the_facts_are_there_and_json_holds_them() -> None:
    facts = json.loads(json.dumps(provenance()))
    assert facts["packages"]["torch"] == torch.__version__
    assert {"torchvision", "scipy", "timm", "pycocotools"} <= set(facts["packages"])
    assert facts["python"] == sys.version.split()[0]
    assert facts["threads"] == torch.get_num_threads()
    assert facts["world_size"] == 1
    assert len(facts["gpus"]) == torch.cuda.device_count()
    assert facts["cores"] >= 1
    assert abs((datetime.now(UTC) - datetime.fromisoformat(facts["time"])).total_seconds()) < 60
    assert facts["command"] == shlex.join(sys.argv)


def test_commit_and_edits(repository: Path, tmp_path: Path) -> None:
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    for name in (
        "detr_container/__init__.py",
        "detr_container/base/checked.py",
        "detr_container/base/files.py",
        "detr_container/engine/provenance.py",
        "launch/__init__.py",
        "detr_container/base/ownership.py",
        "detr_container/base/processes.py",
        "launch/snapshot.py",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(repository / name, tmp_path / name)
    (tmp_path / "detr_container" / "launch").symlink_to("../launch")
    (tmp_path / ".gitignore").write_text("__pycache__/\n")
    git(tmp_path, "init", "--quiet")
    (tmp_path / "notes.txt").write_text("mine")
    git(tmp_path, "add", "notes.txt")
    git(tmp_path, "commit", "--quiet", "--message", "a repository that the code is not part of")
    assert seen_from(tmp_path) is None
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "--quiet", "--message", "the code")
    commit = git(tmp_path, "rev-parse", "HEAD")
    (tmp_path / "notes.txt").write_text("edited, but no code")
    assert seen_from(tmp_path) == {"commit": commit, "dirty": False}
    (tmp_path / "launch" / "new.py").write_text("")
    assert seen_from(tmp_path) == {"commit": commit, "dirty": True}
