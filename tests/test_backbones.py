import pytest

from detr_container.backbones import Entry, entries, names_of
from detr_container.cli import main


def test_names_are_ours_first_and_fit_a_pattern() -> None:
    assert names_of("resnet18")[0] == "resnet18"
    assert "timm/resnet18" in names_of("resnet18")
    assert names_of("container*") == ["container_light", "container_light_small", "container_light_tiny"]
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


def test_the_command_lists_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "test_vit*"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("timm/test_vit ") and "any size, multiple 16" in line for line in lines)
    assert any(line.startswith("timm/test_vit_relpos ") and "one size (made for 160)" in line for line in lines)
    assert lines[-1].endswith(f"of {len(lines) - 1} work")
    assert main(["backbones", "no-such-thing-at-all"]) == 2
