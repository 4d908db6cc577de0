import json
from pathlib import Path

import pytest

from detr_container.commands.cli import main
from detr_container.measure.backbones import Entry, _examine, _take_steps, entries, names_of


def test_names_are_ours_first_and_fit_a_pattern() -> None:
    assert names_of("resnet18")[0] == "resnet18"
    assert "timm/resnet18" in names_of("resnet18")
    light = [f"container_light{ending}" for ending in ("", "_small", "_tiny")]
    assert names_of("container_light*") == light
    assert names_of("container*")[:3] == light
    assert {"container", "container_small", "container_pam", "container_pam_tiny"} < set(names_of("container*"))
    assert names_of("timm/levit_128s") == ["timm/levit_128s"]
    assert len(names_of("")) > 1000
    with pytest.raises(ValueError, match=r"no backbone's name fits 'resnet19x': near are .*resnet1"):
        names_of("resnet19x")


def test_each_entry_says_what_it_takes_or_why_it_is_none() -> None:
    ours, vit, levit, pit = entries(["container_light_tiny", "timm/test_vit", "timm/levit_128s", "timm/pit_ti_224"])
    assert (ours.strides, ours.multiple, ours.side, ours.refused) == ([4, 8, 16], 16, 0, "")
    assert isinstance(vit, Entry)
    assert (vit.multiple, vit.side) == (16, 0)
    assert vit.parameters > 0
    assert levit.side == levit.multiple == 256
    assert "where it states 64 x 28 x 28" in pit.refused


def test_one_that_hangs_is_named() -> None:
    (entry,) = entries(["timm/test_vit"], limit=-60.0)
    assert entry.refused.startswith("it took more than")


@pytest.mark.long
def test_training_steps_are_taken_where_they_are_asked_for() -> None:
    """Of kinds that once crashed in the gradient, give huge values from random weights, or take one size only."""
    names = ["resnet18", "timm/fastvit_t8", "timm/mobileone_s0", "timm/visformer_tiny", "timm/pit_ti_224"]
    found = list(entries(names, tried=True, processes=2))
    assert [entry.name for entry in found] == names
    assert [(entry.steps, entry.untried, bool(entry.refused)) for entry in found] == [(2, "", False)] * 4 + [
        (0, "", True)
    ]
    assert found[3].side == 224


def test_what_memory_does_not_suffice_for_is_not_tried() -> None:
    found = Entry(**_examine("timm/test_vit", 1 << 20))
    assert (found.steps, found.refused) == (0, "")
    assert found.untried == "steps would take 0.0 GiB, of which 0.0 GiB are free"
    assert _examine("timm/test_vit", 0)["untried"] == ""


def test_a_step_that_gives_other_maps_than_stated_is_refused() -> None:
    entry = Entry("timm/test_vit", (64,), (8,), 1, 16)
    with pytest.raises(ValueError, match=r"in training its map of stride 8 is \[2, 64, 6, 8\], not \[2, 64, 12, 16\]"):
        _take_steps(entry)


def test_the_command_lists_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "test_vit_r*", "--output", str(tmp_path / "table.json"), "--processes", "2"]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert head.split() == ["name", "parameters", "images", "strides", "channels", "works"]
    assert any(row.startswith("timm/test_vit_relpos ") and "one size (made for 160)" in row for row in rows)
    # Few enough to be tried without being asked to.
    assert all(row.endswith("yes, 2 training steps") for row in rows)
    assert last == f"{len(rows)} of {len(rows)} work"
    written = json.loads((tmp_path / "table.json").read_text())
    assert [entry["name"] for entry in written["backbones"]] == [row.split()[0] for row in rows]
    assert main(["backbones", "test_vit2", "--try", "no"]) == 0
    head, *rows, last = capsys.readouterr().out.splitlines()
    assert any(row.startswith("timm/test_vit2 ") and "any size, multiple 16" in row for row in rows)
    assert all(row.endswith("by its shapes") for row in rows)
    assert last.endswith("work; only shapes were checked: --try yes takes training steps, too")
    assert main(["backbones", "no-such-thing-at-all"]) == 2
