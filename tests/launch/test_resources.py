"""What a job asks for, and the file with a cluster's facts."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detr_container.launch.resources import Resources, cluster_facts, minutes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("45m", 45),
        ("12h", 720),
        ("2d", 2880),
        ("1d12h", 2160),
        ("1h30m", 90),
        ("90", 90),
        ("1:30", 2),
        ("12:30:00", 750),
        ("0:00:01", 1),
        ("2-00:00:00", 2880),
        ("2-03", 3060),
        ("1-01:30", 1530),
        (" 3H ", 180),
    ],
)
def test_lengths_of_time(text: str, expected: int) -> None:
    assert minutes(text) == expected


@given(days=st.integers(0, 30), hours=st.integers(0, 23), rest=st.integers(0, 59))
def test_the_same_time_in_both_notations(days: int, hours: int, rest: int) -> None:
    assert minutes(f"{days}d{hours}h{rest}m") == minutes(f"{days}-{hours}:{rest:02d}:00")


@pytest.mark.parametrize("text", ["", "12x", "h", "1:2:3:4", "-5", "one hour", "1.5h"])
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write 45m, 12h, 2d"):
        minutes(text)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"nodes": 0}, r"slurm\.nodes=0"),
        ({"gpus_per_node": -1}, r"slurm\.gpus-per-node=-1"),
        (
            {"time": "10m", "lead": 600},
            r"slurm\.lead=600 seconds before a time limit of slurm\.time=10m",
        ),
        ({"lead": 0}, r"slurm\.lead=0"),
        ({"mem": "lots"}, r"slurm\.mem=lots: give a number with its unit"),
        ({"extra": ("a b",)}, r"slurm\.extra 'a b'"),
    ],
)
def test_what_no_cluster_can_give_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Resources(**wrong).validate()


def test_processes_and_options() -> None:
    assert [Resources(gpus_per_node=8).tasks, Resources(gpus_per_node=0).tasks] == [8, 1]
    assert Resources(gpus_per_node=8, tasks_per_node=2).tasks == 2
    resources = Resources(extra=("reservation=x", "--mail-type=FAIL", "exclusive"))
    resources.validate()
    assert resources.options == {"reservation": "x", "mail-type": "FAIL", "exclusive": True}


def test_a_cluster_file(tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    assert cluster_facts(path) == Resources()
    path.write_text('partition = "gpu"\ntime = "12h"\nsetup = ["module load cuda"]\n')
    assert cluster_facts(path) == Resources(partition="gpu", time="12h", setup=("module load cuda",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('partiton = "gpu"', r"cluster\.toml: partiton: .* It may name partition, nodes"),
        ('nodes = "many"', r"cluster\.toml: nodes: "),
        ("nodes = ", r"cluster\.toml is not valid TOML"),
        ('time = "soon"', r"cluster\.toml: a time of 'soon'"),
    ],
)
def test_a_wrong_cluster_file_is_named(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "cluster.toml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        cluster_facts(path)
