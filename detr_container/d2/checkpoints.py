"""detectron2's checkpoints in its own format, but written whole or not at all, and read with one to fall back on."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.utils import comm

from detr_container.base.files import atomic_write
from detr_container.engine.checkpoint import load

_log = logging.getLogger(__name__)
LAST = "last_checkpoint"
"""detectron2's file with the name of the newest one."""
FINAL = "model_final.pth"
_NUMBERED = re.compile(r"model_(\d+)\.pth")


def name_of(iteration: int) -> str:
    """How detectron2 calls the checkpoint of an iteration, counted from 0."""
    return f"model_{iteration:07d}"


def numbered(folder: Path) -> list[Path]:
    """The checkpoints of iterations in a folder, damaged or not, newest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NUMBERED.fullmatch(path.name) and path.is_file()]
    return sorted(found, key=iteration_of, reverse=True)


def iteration_of(path: Path) -> int:
    """That of a numbered checkpoint."""
    return int(path.stem.rpartition("_")[2])


def done(folder: Path) -> int:
    """How many iterations a folder's checkpoints say were made; 0 where there is none with a number."""
    return next((iteration_of(path) + 1 for path in numbered(folder)), 0)


def newest(folder: Path) -> Path | None:
    """The newest checkpoint that can be read, None where there is none at all.

    The one that detectron2 calls the last comes first; where it is damaged, a warning says so and the one before it is
    taken. Raises ValueError when all are damaged.
    """
    paths = _candidates(folder)
    for path in paths:
        try:
            load(path)
        except (ValueError, FileNotFoundError) as error:
            _log.warning("%s; trying the checkpoint before it", error)
        else:
            return path
    if not paths:
        return None
    raise ValueError(
        f"{folder}: none of its {len(paths)} checkpoints can be read ({', '.join(path.name for path in paths)}). Put "
        "back a copy of one of them, or remove them to start again from the beginning"
    )


def _candidates(folder: Path) -> list[Path]:
    """Checkpoints, the likeliest newest first."""
    paths = numbered(folder)
    final = [folder / FINAL] if (folder / FINAL).is_file() else []
    try:
        last = folder / (folder / LAST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return final + paths
    rest = [path for path in final + paths if path != last]
    if last.parent != folder or last.suffix != ".pth" or not last.is_file():
        return rest
    # A kill between a checkpoint and its name in that file leaves one that is newer.
    newer = [path for path in rest if path in paths and last in paths and paths.index(path) < paths.index(last)]
    return [*newer, last, *(path for path in rest if path not in newer)]


class AtomicCheckpointer(DetectionCheckpointer):
    """detectron2's, with the same files and names; `resume_or_load` is told by `newest` where it resumes."""

    _resumed: bool | None = None

    def save(self, name: str, **others: Any) -> None:
        """Write `name`.pth, then its name into `last_checkpoint`; at every moment both are whole."""
        if not self.save_dir or not self.save_to_disk:
            return
        state = {"model": self.model.state_dict()}
        state |= {key: each.state_dict() for key, each in self.checkpointables.items()}
        path = Path(self.save_dir) / f"{name}.pth"
        self.logger.info("Saving checkpoint to %s", path)
        atomic_write(path, lambda file: torch.save({**state, **others}, file))
        self.tag_last_checkpoint(path.name)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """See `Checkpointer`."""
        atomic_write(Path(self.save_dir) / LAST, lambda file: file.write(last_filename_basename.encode()))

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the newest checkpoint that can be read, or load weights from `path` where there is none.

        Of several processes the first decides. Raises ValueError when all checkpoints are damaged.
        """
        found = str(newest(Path(self.save_dir)) or "") if resume and comm.is_main_process() else ""
        found = comm.all_gather(found)[0]
        self._resumed = bool(found)
        if found:
            return dict(self.load(found))
        return dict(self.load(path, checkpointables=[]))

    def has_checkpoint(self) -> bool:
        """Whether it has resumed from one; before it was asked to, whether there is one, under whatever name."""
        # A process that sees the folder later than the first one does must not think otherwise.
        return bool(_candidates(Path(self.save_dir))) if self._resumed is None else self._resumed

    def get_checkpoint_file(self) -> str:
        """The newest, damaged or not; "" where there is none."""
        return str(next(iter(_candidates(Path(self.save_dir))), ""))
