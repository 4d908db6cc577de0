"""One run of a comparison: trained, and when it was the last one to finish, followed by the report.

python -m detr_container.compare.one_run FOLDER trains the run that FOLDER/config.json describes.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from detr_container.base.interrupt import StopRequest
from detr_container.base.shortage import asking
from detr_container.base.terminal import start_logging
from detr_container.config import settings as config
from detr_container.engine.run import Run

_log = logging.getLogger(__name__)


def run_and_report(settings: dict[str, Any], folder: str, stop: StopRequest, home: str = "") -> int:
    """What every process of a submitted run calls; home: the comparison's folder."""
    from detr_container.base.processes import current_process
    from detr_container.jobs.submit import run_training

    status = run_training(settings, folder, stop)
    if status == 0 and home and current_process(os.environ).is_main:
        _report_if_last(Path(home))
    return status


def _report_if_last(home: Path) -> None:
    """Write the report once every run is finished. Training is done: a report that fails is logged, and no more."""
    from .options import ReportOptions
    from .reading import read_runs
    from .report import planned_runs, write_report

    try:
        records = read_runs(planned_runs(home))
        waiting = [str(record.folder) for record in records if not record.finished]
        if waiting:
            _log.info("the comparison waits for %s", ", ".join(waiting))
            return
        _log.info("the comparison is complete: %s", write_report(ReportOptions((str(home),), output=home / "report")))
    except (ValueError, OSError) as error:
        _log.warning("the report could not be written (%s): `detr-container report %s` tries again", error, home)


def main() -> int:
    """Train one run on this machine."""
    from detr_container.engine.train import train

    start_logging()
    folder = Path(sys.argv[1])
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    try:
        with asking("the run", {}):
            return train(config.load(Run(folder).config_path), folder)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 1 if isinstance(error, FloatingPointError) else 2


def _stop_with_parent() -> None:
    """Save and end when the process that started this one is gone, however it went."""
    # Not through sys.stdin, whose lock a thread that waits would hold when Python ends.
    os.read(0, 1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
