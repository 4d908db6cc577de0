"""Work for jobs that has nothing to do with detection: counting, slowly."""

import os
import time
from pathlib import Path

from detr_container.base.interrupt import StopRequest

TICKS = 100


def count(folder: str, stop: StopRequest, seconds: float = 0.02) -> int:
    """Count to TICKS in steps of `seconds`, resuming from the newest file; stops when it is asked to."""
    place = Path(folder)
    place.mkdir(exist_ok=True)
    done = max((int(path.name[5:]) for path in place.glob("tick-*")), default=0)
    while done < TICKS:
        time.sleep(seconds)
        done += 1
        if os.environ["RANK"] == "0":
            (place / f"tick-{done:05d}").touch()
        if stop.requested:
            return stop.exit_code
    return 0


def crash(folder: str, stop: StopRequest) -> int:
    """Fail in a way that another attempt might fix."""
    raise RuntimeError(f"crashed on rank {os.environ['RANK']}")


def hang_beside_a_crash(folder: str, stop: StopRequest) -> int:
    """Rank 0 waits for ever for rank 1, which refuses its settings."""
    if os.environ["RANK"] == "1":
        raise ValueError("setting=7 is wrong")
    time.sleep(600)
    return 0


def show_gpus(folder: str, stop: StopRequest, crash: bool = False) -> int:
    """Write down which GPUs this process sees, a line per start, and keep them for a while; crash: the first time."""
    place = Path(folder)
    place.mkdir(exist_ok=True)
    with (place / f"gpus-{os.environ['RANK']}").open("a") as file:
        file.write(f"{time.time()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    time.sleep(1.5)
    if crash and not (place / "crashed").exists():
        (place / "crashed").touch()
        raise RuntimeError("crashed once")
    return 0


def show_place(folder: str, stop: StopRequest) -> int:
    """Write down what this process knows of the others."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    place = Path(folder)
    place.mkdir(exist_ok=True)
    text = "\n".join(f"{name}={os.environ.get(name, '')}" for name in names)
    (place / f"place-{os.environ['LAUNCH_ATTEMPT']}-{os.environ['RANK']}").write_text(text)
    return 0
