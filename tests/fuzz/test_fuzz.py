"""Whatever the program is handed: no traceback, no hang, no death by a signal, nothing written elsewhere.

DETR_CONTAINER_FUZZ_SEED and DETR_CONTAINER_FUZZ_SHARE make other inputs, and more of them:

    DETR_CONTAINER_FUZZ_SEED=7 DETR_CONTAINER_FUZZ_SHARE=4 python -m pytest -m long tests/fuzz -n 2
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from cases import KINDS, OUTPUTS, Base, Case, Maker, contents, make_base, readable
from processes import Ended, Forks, forks
from runs import environment

COUNTS = {
    "run_files": 160,
    "checkpoints": 90,
    "images": 80,
    "folders": 60,
    "annotations": 80,
    "command_lines": 100,
    "environments": 20,
    "names": 30,
}
SEED = int(os.environ.get("DETR_CONTAINER_FUZZ_SEED", "0"))
SHARE = float(os.environ.get("DETR_CONTAINER_FUZZ_SHARE", "1"))
PARTS = 4
"""Every kind is tried in so many parts, which processes can share."""

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return make_base(tmp_path_factory.mktemp("base"), environment())


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forks]:
    # What matplotlib caches would otherwise be written, and computed, for every command.
    kept = tmp_path_factory.mktemp("matplotlib")
    # Nor may a cluster that happens to run on this machine take the jobs.
    with forks(environment(MPLCONFIGDIR=str(kept), SLURM_CONF=str(kept / "no-slurm.conf"))) as server:
        yield server


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("kind", KINDS)
def test_inputs(kind: str, part: int, base: Base, server: Forks, tmp_path: Path) -> None:
    before = contents(base.data.parent)
    wrong = []
    for case in Maker(base, tmp_path, SEED * PARTS + part).make(kind, max(1, round(COUNTS[kind] * SHARE / PARTS))):
        names = set(os.listdir(case.folder / "work"))
        ended = server.run(case.arguments, case.folder, **case.environment)
        if faults := list(faults_of(case, ended, names)):
            wrong.append(
                f"{case.folder.name}: {readable(case.arguments)}\n  {case.what}\n"
                f"  status {ended.status}: {'; '.join(faults)}\n  {ended.errors.strip()[-600:]}"
            )
        else:
            shutil.rmtree(case.folder)
    assert contents(base.data.parent) == before, "a command wrote into the runs or the data that it was to read"
    assert not wrong, f"{len(wrong)} inputs:\n" + "\n".join(wrong)


def faults_of(case: Case, ended: Ended, names: set[str]) -> Iterator[str]:
    """What is wrong with how a command ended."""
    output = ended.output + ended.errors
    if "Traceback (most recent call last)" in output:
        yield "a traceback"
    if ended.status < 0:
        yield f"ended by signal {-ended.status}"
    if ended.stopped and not (case.long and ended.stopped == "it did not end by itself" and ended.status >= 0):
        yield ended.stopped
    if ended.status in (1, 2) and not output.strip():
        yield "it failed without a word"
    if ended.left:
        yield f"processes left: {ended.left}"
    if case.refused and ended.status == 0:
        yield "taken in silence"
    if case.shown and case.shown not in output:
        yield f"nothing of {case.shown}"
    # What it was asked to write it may write, in its working folder.
    named = {Path(word).parts[0] for word in case.arguments if Path(word).parts}
    yield from written_elsewhere(case.folder, names | named)


def written_elsewhere(folder: Path, expected: set[str]) -> Iterator[str]:
    """Files where a command has no business; expected: names in its working folder."""
    if new := set(os.listdir(folder / "work")) - expected - OUTPUTS:
        yield f"files outside: {sorted(new)}"
    for name in ("home", "tmp"):
        if stray := sorted(contents(folder / name)):
            yield f"files in its {name}: {stray[:3]}"
    if new := set(os.listdir(folder)) - {"work", "home", "tmp", "stdout", "stderr"}:
        yield f"files outside: {sorted(new)}"
    if left := [path for path in contents(folder) if path.endswith(".tmp")]:
        yield f"temporary files: {left}"
