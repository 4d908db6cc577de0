"""Memory that is freed stays with the process."""

import subprocess
import sys

import pytest

# Blocks of 40 MiB are above the size from which glibc maps each by itself and hands it back. It needs some steps until
# it finds its old blocks again: they must be a little larger than what is asked for.
LOOP = """
import resource, sys, torch
from detr_container.base.host_memory import keep_freed_memory
if sys.argv[1] == "kept" and not keep_freed_memory():
    sys.exit(77)
def step():
    blocks = [torch.empty(10 << 20).fill_(1.0) for _ in range(3)]
for _ in range(15):
    step()
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
    assert faults("kept") < 50
    # Five times three blocks of 10,240 pages of 4 KiB, or of 20 where the system gives huge pages unasked.
    assert not sys.platform.startswith("linux") or faults("returned") > 200
