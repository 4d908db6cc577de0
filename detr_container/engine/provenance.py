"""Where a result came from: code, versions, machine and command, so that two results can be compared honestly."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch

from detr_container.base.processes import current_process
from detr_container.launch.snapshot import read_note

PACKAGES = (
    "detr-container",
    "torch",
    "torchvision",
    "numpy",
    "scipy",
    "pillow",
    "timm",
    "pycocotools",
    "faster-coco-eval",
    "submitit",
    "detectron2",
)
_CODE = ("detr_container", "models", "datasets", "launch", "pyproject.toml")


def provenance() -> dict[str, Any]:
    """Everything about this process that a result depends on or a reader will ask for; JSON can hold it.

    `git` is None when the code runs neither from its own repository nor from a copy of it; packages that are not
    installed are left out.
    """
    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "git": code_version(),
        "packages": _versions(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": psutil.virtual_memory().total,
        "threads": torch.get_num_threads(),
        "gpus": _gpus(),
        "cuda": torch.version.cuda,
        "world_size": current_process(os.environ).world,
        "slurm_job": os.environ.get("SLURM_JOB_ID"),
    }


def code_version() -> dict[str, Any] | None:
    """Commit of the code and whether it was edited since; of a copy made for a job, what was true when it was made.

    None when neither is known.
    """
    root = Path(__file__).resolve().parents[2]
    copied = read_note(root)
    if copied is not None:
        return {**(copied.get("git") or {}), "copied_from": copied["package"], "sha256": copied["sha256"]}
    return _git(root)


def _git(root: Path) -> dict[str, Any] | None:
    # A package installed inside somebody else's repository must not report that repository's commit.
    if _run_git(root, "ls-files", "--error-unmatch", "detr_container/engine/provenance.py") is None:
        return None
    commit = _run_git(root, "rev-parse", "HEAD")
    if commit is None:
        return None
    changes = _run_git(root, "status", "--porcelain", "--", *_CODE)
    return {"commit": commit, "dirty": changes != ""}


def _run_git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=20, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    versions["torch"] = torch.__version__
    return versions


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpus() -> list[str]:
    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
