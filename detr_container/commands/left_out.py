"""What is said of files that a command could not use, while it went on with the others."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from detr_container.base.terminal import shown


def report_refused(refused: Sequence[str]) -> int:
    """Print what is wrong with files that were left out. Returns the exit status."""
    sys.stderr.write("".join(f"error: {shown(message)}\n" for message in refused))
    return int(bool(refused))
