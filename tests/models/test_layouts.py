"""Names in published checkpoints and in ours, both ways."""

import pytest
import torch
from golden import published

from detr_container.models.backbones.container import SIZES, Container
from detr_container.models.detr import Detr
from detr_container.models.weights.detectors import detector_weights, scatter_rows
from detr_container.models.weights.find import find_weights
from detr_container.models.weights.hugging_face import from_hugging_face, to_hugging_face
from detr_container.models.weights.layouts import (
    from_container,
    from_published,
    rename,
    reverse,
    to_container,
    to_published,
)


def numbered(names: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """A tensor for every name that says which one it is."""
    return {name: torch.tensor(float(number)) for number, name in enumerate(names)}


@pytest.mark.parametrize("name", published.KEY_LISTS)
def test_published_names_come_back(name: str) -> None:
    convert, back = (from_container, to_container) if name == "container_light" else (from_published, to_published)
    state = numbered(published.shapes(name))
    ours = convert(state)
    assert len(ours) == len(state)
    assert back(ours) == state
    # Nothing is left under its published name where ours differs.
    assert not any(part in key for key in ours for part in ("transformer.", "point1", "point2", "multihead", "blocks1"))


def test_rules_apply_to_whole_names_and_the_first_that_fits_wins() -> None:
    rules = [("a.{i}.{rest}", "b.{i}.{rest}"), ("a.{rest}", "c.{rest}")]
    value = torch.zeros(())
    assert list(rename(dict.fromkeys(["a.1.x.y", "a.x", "xa.1.x", "other"], value), rules)) == [
        "b.1.x.y",
        "c.x",
        "xa.1.x",
        "other",
    ]
    assert list(rename({"b.7.w": value}, reverse(rules))) == ["a.7.w"]


def test_a_detector_on_container_keeps_the_released_names_below_the_backbone() -> None:
    backbone = Container(SIZES["container_light"], frozen_norm=True).at_strides(32)
    model = Detr(backbone, 3, queries=2, width=16, heads=2, encoder_layers=1, decoder_layers=1, feedforward=8)
    names = to_published(model.state_dict())
    released = {f"backbone.0.body.{key}" for key in published.shapes("container_light")}
    ours = {key for key in names if key.startswith("backbone.0.body.")}
    missing = {key.removeprefix("backbone.0.body.") for key in released - ours}
    assert ours <= released
    assert all(key.startswith(("norm.", "head.")) or key.endswith("num_batches_tracked") for key in missing)
    assert from_published(names).keys() == model.state_dict().keys()


@pytest.mark.parametrize("key", ["model", "state_dict", "ema", "model_state_dict"])
def test_weights_are_found_wherever_a_file_keeps_them(key: str) -> None:
    state = {"module.decoder.layers.0.norm1.weight": torch.ones(2)}
    _, found, layout = detector_weights(find_weights({key: state, "epoch": 3}))
    assert list(found) == ["decoder.layers.0.norm1.weight"]
    assert layout == "ours"


def test_averaged_weights_are_preferred() -> None:
    both = {"model": {"a": torch.zeros(1)}, "ema": {"a": torch.ones(1)}}
    assert find_weights(both).state["a"] == 1


def test_files_without_a_detector_are_refused() -> None:
    with pytest.raises(ValueError, match=r"holds no weights \(its entries: epoch"):
        find_weights({"epoch": 3})
    with pytest.raises(ValueError, match=r"not a detector's weights \(first names: fc\.weight\)"):
        detector_weights(find_weights({"fc.weight": torch.zeros(2)}))


def test_three_layouts_of_one_model_give_the_same_weights() -> None:
    state = published.weights("detr_r50")
    _, ours, layout = detector_weights(find_weights({"model": state}))
    assert layout == "published"
    _, again, other = detector_weights(find_weights(to_hugging_face(ours)))
    assert other == "hugging face"
    assert again.keys() == ours.keys()
    assert all(torch.equal(again[key], ours[key]) for key in ours)
    assert from_hugging_face(to_hugging_face(ours)).keys() == ours.keys()


@pytest.mark.parametrize("softmax", [True, False])
def test_class_rows_go_to_their_category_ids(softmax: bool) -> None:
    ids, width = [1, 3, 7], 4
    rows = len(ids) + int(softmax)
    state = {"class_embed.weight": torch.randn(rows, width), "class_embed.bias": torch.randn(rows), "x": torch.ones(1)}
    scattered = scatter_rows(state, ids, softmax)
    weight, bias = scattered["class_embed.weight"], scattered["class_embed.bias"]
    # Ids 0 .. 7, and one more: no object, or the row that stands for nothing.
    assert weight.shape == (9, width)
    assert torch.equal(weight[ids], state["class_embed.weight"][:3])
    assert torch.equal(bias[ids], state["class_embed.bias"][:3])
    unused = [0, 2, 4, 5, 6] + ([] if softmax else [8])
    assert not weight[unused].any()
    assert (bias[unused] == -1e4).all()
    if softmax:
        assert torch.equal(weight[8], state["class_embed.weight"][3])
        assert bias[8] == state["class_embed.bias"][3]
    assert torch.equal(scattered["x"], state["x"])


@pytest.mark.parametrize("softmax", [True, False])
def test_a_row_for_every_id_and_one_more(softmax: bool) -> None:
    """Softmax heads stay as they are; focal ones get the row that stands for nothing, as the published have."""
    rows = 91 + int(softmax)
    state = {"class_embed.weight": torch.randn(rows, 4), "class_embed.bias": torch.randn(rows)}
    scattered = scatter_rows(state, range(91), softmax)
    assert all(scattered[key].shape[0] == 92 for key in state)
    assert all(torch.equal(scattered[key][:rows], state[key]) for key in state)


@pytest.mark.parametrize(("wrong", "message"), [(-1, "no row below 0"), (2_000_000_000, "2,000,000,002 rows")])
def test_ids_without_a_row_are_refused(wrong: int, message: str) -> None:
    state = {"class_embed.weight": torch.randn(3, 4), "class_embed.bias": torch.randn(3)}
    with pytest.raises(ValueError, match=rf"category id {wrong}: .*{message}.*--rows order"):
        scatter_rows(state, [1, wrong], True)
    in_order = scatter_rows(state, [1, wrong], True, by_id=False)
    assert all(torch.equal(in_order[key], state[key]) for key in state)
