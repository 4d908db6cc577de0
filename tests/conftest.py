"""What all tests share: where things are, fixed seeds, and why a test is skipped."""

import os
import random
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import settings

# Before torch is imported: threads that wait must not spin, or two busy processes slow each other down tenfold.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("GOMP_SPINCOUNT", "3000")

# A background job of a script ignores SIGINT, and so would every program that a test starts and interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

REPOSITORY = Path(__file__).resolve().parent.parent
DATA_FOLDERS = ("coco_permissive", "bccd", "cells_imagefolder", "cocoeval_fixture")

LONGEST = (
    "test_slurm_jobs.py",
    "test_compare.py",
    "test_jobs.py",
    "test_local.py",
    "test_robustness.py",
    "test_parallel.py",
    "test_benchmark.py",
    "test_report.py",
    "test_page.py",
)

# The same examples at every run, whatever the machine's speed; `--hypothesis-profile=explore` draws new ones.
settings.register_profile("fixed", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, derandomize=False, print_blob=True)
settings.load_profile("fixed")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with the real images; the test is skipped where it is absent."""
    named = os.environ.get("DETR_CONTAINER_DATA")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    missing = [name for name in DATA_FOLDERS if not (folder / name).is_dir()]
    if missing:
        where = "DETR_CONTAINER_DATA" if named else "../shared/data (set DETR_CONTAINER_DATA to look elsewhere)"
        pytest.skip(f"the real images are not here: no {', '.join(missing)} in {where}")
    return folder


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """The same random numbers for a test, whichever tests ran before it."""
    random.seed(0)
    # A test that draws from numpy or torch has imported it by now; the others need not pay for the import.
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


def pytest_xdist_auto_num_workers() -> int:
    """Two more than there are cores: much of the time, tests of jobs wait for a limit, a queue or a pause."""
    return len(os.sched_getaffinity(0)) + 2


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take minutes first, so that no process is left alone with one of them at the end."""
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where there is none."""
    if item.get_closest_marker("gpu") is not None:
        import torch

        if not torch.cuda.is_available():
            pytest.skip("needs a CUDA device")


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few small images of shapes, made once."""
    from runs import shapes_folder

    return shapes_folder(tmp_path_factory)
