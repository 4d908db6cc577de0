"""What classifiers cost is the sum over their layers, and the table of the documentation is the program's."""

import json
from pathlib import Path

import pytest
from golden import pattern

from detr_container.commands.cli import main
from detr_container.config.backbones import BackboneConfig
from detr_container.engine.classifiers import build_classifier
from detr_container.measure.classifier_costs import FAMILY, classifier_costs, markdown_row
from detr_container.measure.costs import count_flops
from detr_container.models.backbones.container import SIZES
from detr_container.models.backbones.plain import PLAIN


def by_hand(name: str, pixels: int, classes: int) -> tuple[int, int]:
    """Multiply-adds of a hierarchical classifier: of its layers, and with affinities."""
    size = SIZES[name]
    layers = size.channels[-1] * classes
    products, inputs, patch, side = 0, 3, 4, pixels
    for width, depth, ratio, affinities in zip(size.channels, size.depths, size.ratios, size.affinities, strict=True):
        side //= patch
        positions = side**2
        expansion = 3 if affinities.dynamic else 1
        window = 25 if affinities.static != "none" else 0
        each = width**2 * (expansion + 1 + 2 * ratio) + width * (9 + window)
        layers += positions * (patch**2 * inputs * width + depth * each)
        products += 2 * depth * positions**2 * width * affinities.dynamic
        inputs, patch = width, 2
    return layers, products


@pytest.mark.parametrize("name", ["container", "container_light_tiny", "mh_dw_small", "self_attention_tiny"])
def test_multiply_adds_are_those_of_the_layers(name: str) -> None:
    found = classifier_costs(name, 64, 10)
    layers, products = by_hand(name, 64, 10)
    assert found.affinities == pytest.approx(products / 1e9, rel=1e-12)
    assert found.multiply_adds == pytest.approx((layers + products) / 1e9, rel=1e-12)


@pytest.mark.parametrize("name", ["container_pam_tiny", "mh_mlp_tiny"])
def test_multiply_adds_of_the_plain_ones(name: str) -> None:
    size, pam = PLAIN[name], name.startswith("container_pam")
    tokens, width = 64 + int(pam), size.channels
    layers = 64 * 3 * size.patch**2 * width + width * 10
    layers += size.blocks * tokens * width**2 * ((4 if pam else 2) + 8)
    products = size.blocks * tokens**2 * width * (3 if pam else 1)
    found = classifier_costs(name, 64, 10)
    assert found.affinities == pytest.approx(products / 1e9, rel=1e-12)
    assert found.multiply_adds == pytest.approx((layers + products) / 1e9, rel=1e-12)


def test_the_backbone_of_a_classifier_that_reads_the_class_token_is_counted() -> None:
    config = BackboneConfig(name="container_pam_tiny", weights="none", frozen_stages=0)
    model = build_classifier(config, 10, 64)
    image = pattern.image(64, 64)[None]
    found = count_flops(model, (64, 64), lambda model, size: (image,))
    assert found.head == pytest.approx(2 * 64 * 10 / 1e9)
    total = classifier_costs("container_pam_tiny", 64, 10).multiply_adds
    assert found.backbone == pytest.approx(2 * total - found.head)


def test_what_was_published_comes_out() -> None:
    light, deit, resnet = (classifier_costs(name, 224) for name in ("container_light", FAMILY[-2], "resnet50"))
    assert (light.parameters, round(light.multiply_adds, 2)) == (20_633_643, 3.85)
    assert (round(deit.parameters / 1e6, 2), round(deit.multiply_adds, 2)) == (22.05, 4.60)
    assert round(resnet.multiply_adds, 2) == 4.09


def test_container_has_the_published_widths_depths_and_parameters() -> None:
    """Of the text: the released network's block with attention beside the window in every stage, 22 M in all."""
    dims, depths, ratios = (128, 256, 320, 512), (2, 3, 8, 2), (8, 8, 4, 4)
    parameters, inputs, patch = 512 * 2 + 512 * 1000 + 1000, 3, 4
    for width, depth, ratio in zip(dims, depths, ratios, strict=True):
        # Patches and their norm; two norms, two windows with biases, values, queries and keys, the MLP; alpha and beta.
        parameters += inputs * width * patch**2 + 3 * width
        block = 4 * width + width * (9 + 1 + 25 + 1) + 3 * width * (width + 1) + width * (width + 1)
        block += 2 * width * width * ratio + width * ratio + width + 2 * (width // 32)
        parameters += depth * block
        inputs, patch = width, 2
    found = classifier_costs("container", 224)
    assert found.parameters == parameters
    assert found.parameters // 10**6 == 22


def test_the_table_of_the_documentation_is_the_commands(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["backbones", "--costs", "224", "--output", str(tmp_path / "costs.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(FAMILY)
    assert "\n".join(lines) in (repository / "docs" / "classification.md").read_text()
    written = json.loads((tmp_path / "costs.json").read_text())
    assert [each["name"] for each in written["classifiers"]] == list(FAMILY)


def test_other_names_and_sizes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backbones", "resnet18_*", "--costs", "64"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert "multiply-adds at 64" in head
    expected = [markdown_row(classifier_costs(name, 64)) for name in ("resnet18_tiny", "resnet18_small")]
    assert rows == expected
    assert main(["backbones", "resnet18_*", "--costs", "-1"]) == 2


def test_narrow_networks_are_of_like_size() -> None:
    for ending in ("tiny", "small"):
        narrow, light = (classifier_costs(f"{name}_{ending}", 64, 3) for name in ("resnet18", "container_light"))
        assert narrow.parameters == pytest.approx(light.parameters, rel=0.02)
