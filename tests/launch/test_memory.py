"""Memory that is freed stays with the process."""

import subprocess
import sys

import pytest

# Three blocks of 24 MiB are below the size from which glibc maps each by itself, and above what it leaves untrimmed.
LOOP = """
import resource, sys, torch
from detr_container.launch.memory import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit(77)
def step():
    blocks = [torch.empty(6 << 20).fill_(1.0) for _ in range(3)]
step(); step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how: str) -> int:
    done = subprocess.run([sys.executable, "-c", LOOP, how], capture_output=True, text=True, timeout=300)
    if done.returncode == 77:
        pytest.skip("the C library is not glibc")
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_a_step_finds_the_memory_of_the_step_before() -> None:
    kept = faults("kept")
    # 72 MiB have 18,432 pages of 4 KiB.
    assert kept < 500
    if sys.platform.startswith("linux"):
        assert faults("returned") > 20 * max(kept, 100)
