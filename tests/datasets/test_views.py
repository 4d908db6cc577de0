"""What a classifier sees of an image: timm's pixels, the published augmentation, and generators left as they were."""

import json
import math
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision.transforms import RandomCrop

from detr_container.datasets.images import read_image
from detr_container.datasets.views import NOTHING, CentreCrop, TrainingView, View, follow, keep_no_bits, kept_generators

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "deit.json").read_text())
CROP, FLIP, RANDAUGMENT, _, _, ERASING = GOLDEN["augmentation"]
SIZES = ((40, 60), (90, 53), (224, 224), (301, 256), (57, 400))


def noisy(height: int, width: int) -> Tensor:
    """An image whose pixels all differ, with light that grows to the right."""
    generator = np.random.default_rng(height * width)
    pixels = generator.integers(0, 100, (3, height, width)) + np.linspace(0, 155, width)
    return torch.from_numpy(pixels.astype(np.uint8))


def pillow(image: Tensor) -> Image.Image:
    return Image.fromarray(image.permute(1, 2, 0).numpy())


def views_of(view: View, image: Tensor, count: int) -> list[Tensor]:
    return [view(image, random.Random(number))[0] for number in range(count)]


def generators() -> tuple[Any, ...]:
    name, numbers, *rest = np.random.get_state()
    return random.getstate(), name, numbers.tobytes(), *rest, torch.get_rng_state().numpy().tobytes()


def test_the_augmentation_is_the_published_one() -> None:
    crop, changes, erasing = TrainingView().parts
    flip, randaugment = changes.transforms
    assert [type(each).__name__ for each in (crop, flip, randaugment, erasing)] == [
        each["name"] for each in (CROP, FLIP, RANDAUGMENT, ERASING)
    ]
    assert (list(crop.size), list(crop.scale), list(crop.ratio)) == (CROP["size"], CROP["scale"], CROP["ratio"])
    assert crop.interpolation.value == "bicubic"
    assert flip.p == FLIP["p"]
    assert (randaugment.num_layers, randaugment.choice_weights) == (RANDAUGMENT["layers"], None)
    found = (erasing.probability, erasing.min_area, erasing.max_area, erasing.min_count, erasing.max_count)
    assert found == tuple(ERASING[name] for name in ("probability", "min_area", "max_area", "min_count", "max_count"))
    assert erasing.log_aspect_ratio == pytest.approx(ERASING["log_aspect_ratio"])


def test_operations_and_their_strengths_are_the_published_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    operations = TrainingView().parts[1].transforms[1].ops
    assert [operation.name for operation in operations] == list(RANDAUGMENT["operations"])
    # Signs are drawn: all are positive here.
    monkeypatch.setattr(random, "random", lambda: 0.0)
    for operation in operations:
        found = (operation.prob, operation.magnitude, operation.magnitude_std, operation.magnitude_max)
        assert found == (RANDAUGMENT["probability"], RANDAUGMENT["magnitude"], RANDAUGMENT["std"], None)
        assert list(operation.kwargs["fillcolor"]) == RANDAUGMENT["fill"]
        assert operation.kwargs["resample"] == RANDAUGMENT["resample"]
        for level, wanted in RANDAUGMENT["operations"][operation.name].items():
            arguments = operation.level_fn(float(level), operation.hparams) if operation.level_fn else ()
            assert list(arguments) == pytest.approx(wanted), (operation.name, level)


@pytest.mark.parametrize("block", GOLDEN["erased_of_224"])
def test_erased_blocks_have_the_published_sizes(block: dict[str, float], monkeypatch: pytest.MonkeyPatch) -> None:
    view = TrainingView(auto_augment="", erasing=1.0)
    image, uniform = noisy(224, 224), random.uniform
    drawn = {(0.02, 1 / 3): block["area"], view.parts[2].log_aspect_ratio: math.log(block["aspect"])}
    monkeypatch.setattr(random, "uniform", lambda low, high: drawn.get((low, high), uniform(low, high)))
    _, (top, left, height, width) = view(image, random.Random(0))
    assert (height, width) == (block["height"], block["width"])
    assert 0 <= top <= 224 - height
    assert 0 <= left <= 224 - width


def test_half_are_flipped_and_a_quarter_erased() -> None:
    """Of 2,000, within four standard deviations; the image grows lighter to the right."""
    view = TrainingView(40, area=(1.0, 1.0), aspect=(1.0, 1.0), auto_augment="")
    image = noisy(40, 40)
    drawn = [view(image, random.Random(number)) for number in range(2000)]
    flipped = sum(bool(seen[..., :10].float().mean() > seen[..., -10:].float().mean()) for seen, _ in drawn)
    erased = [block for _, block in drawn if block != NOTHING]
    assert abs(flipped - 1000) < 4 * math.sqrt(500)
    assert abs(len(erased) - 500) < 4 * math.sqrt(375)
    areas = [height * width / 1600 for _, _, height, width in erased]
    assert min(areas) > 0.015
    assert max(areas) < 0.36
    # The middle of 0.02 to 1/3, less the few that were too long for the image.
    assert np.mean(areas) == pytest.approx(0.175, abs=0.02)


def test_each_operation_is_applied_half_of_the_time() -> None:
    """2,000 images, two operations of fifteen each: 2,000 are applied, of each operation 133."""
    view = TrainingView(33)
    count: Counter[str] = Counter()

    def counted(name: str, function: Callable[..., Image.Image], *arguments: Any, **named: Any) -> Image.Image:
        count[name] += 1
        return function(*arguments, **named)

    operations = view.parts[1].transforms[1].ops
    for operation in operations:
        operation.aug_fn = partial(counted, operation.name, operation.aug_fn)
    views_of(view, noisy(36, 36), 2000)
    assert abs(count.total() - 2000) < 4 * math.sqrt(1000)
    assert all(abs(count[operation.name] - 133) < 5 * math.sqrt(133) for operation in operations)


@pytest.mark.parametrize("policy", ["rand-m10-n9-p1-inc1", "original"])
def test_posterizing_that_keeps_no_bits_gives_a_black_image(policy: str) -> None:
    """As in the versions of Pillow that the recipe was published with; it is 2 % of the operation's uses."""
    view, image = TrainingView(40, auto_augment=policy), pillow(noisy(40, 40))
    augment = view.parts[1].transforms[1]
    operations = augment.ops if hasattr(augment, "ops") else [each for row in augment.policy for each in row]
    posterize = [operation.aug_fn for operation in operations if operation.name.startswith("Posterize")]
    assert posterize
    for function in posterize:
        assert not np.array(function(image, 0, fillcolor=None)).any()
        assert np.array_equal(np.array(function(image, 3)), np.array(image) & 0b11100000)
        assert function(image, 8) is image
    views_of(view, noisy(40, 40), 20)


@pytest.mark.parametrize("auto_augment", ["rand-m9-mstd0.5-inc1", "original", "", "augmix-m5-w2"])
def test_a_training_view_has_the_pixels_of_timms(auto_augment: str) -> None:
    """From the same draws, although ours cuts the image before Pillow has it."""
    settings: dict[str, Any] = {"auto_augment": auto_augment, "color_jitter": 0.4}
    timms = create_transform(64, is_training=True, interpolation="bicubic", normalize=False, **settings)
    keep_no_bits(timms.transforms)
    view = TrainingView(64, **settings)
    for number, size in enumerate(SIZES):
        image = noisy(*size)
        for draw in range(4):
            follow(random.Random(f"{number}/{draw}"))
            wanted = timms(pillow(image))
            assert torch.equal(view(image, random.Random(f"{number}/{draw}"))[0], wanted), (size, draw)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("size", "crop_ratio"), [(64, 0.875), (97, 0.9), (48, 1.0), (224, 0.875), (33, 0.71)])
def test_an_evaluation_has_the_pixels_of_timms(size: int, crop_ratio: float, interpolation: str) -> None:
    timms = create_transform(size, interpolation=interpolation, crop_pct=crop_ratio, normalize=False)
    view = CentreCrop(size, crop_ratio, interpolation=interpolation)
    for height, width in SIZES:
        image = noisy(height, width)
        assert torch.equal(view(image, random.Random())[0], timms(pillow(image)))


@pytest.mark.shared
def test_real_images_have_the_pixels_of_timms_from_the_file_on(shared_data: Path) -> None:
    """Also where the decoder is not Pillow's: validation is then exact to timm's."""
    crops = sorted((shared_data / "cells_imagefolder" / "val").glob("*/*.jpg"))
    photographs = sorted((shared_data / "coco_permissive").glob("*2017/*.jpg"))
    assert min(len(crops), len(photographs)) > 50
    for size, files in ((48, crops), (224, photographs)):
        timms = create_transform(size, interpolation="bicubic", normalize=False)
        for file in files:
            with Image.open(file) as image:
                wanted = timms(image.convert("RGB"))
            assert torch.equal(CentreCrop(size)(read_image(file), random.Random())[0], wanted), file


def test_small_inputs_are_cut_from_a_padded_image_and_not_resized() -> None:
    image = noisy(32, 32)
    view = TrainingView(32, flip=0.0, auto_augment="")
    for seed in range(20):
        follow(random.Random(seed))
        wanted = RandomCrop(32, padding=4)(pillow(image))
        assert torch.equal(view(image, random.Random(seed))[0], torch.from_numpy(np.array(wanted)).permute(2, 0, 1))
    assert torch.equal(CentreCrop(32)(image, random.Random())[0], image)
    assert torch.equal(CentreCrop(24)(image, random.Random())[0], image[:, 4:28, 4:28])
    for refusing in (view, CentreCrop(32)):
        with pytest.raises(ValueError, match="40 x 23 pixels are too few"):
            refusing(noisy(23, 40), random.Random())


def test_an_image_that_would_be_enlarged_beyond_measure_is_refused() -> None:
    """One row of 3,000 pixels would become 256 rows of 768,000, which is more memory than it is worth."""
    image = noisy(1, 3000)
    with pytest.raises(ValueError, match=r"3000 x 1 pixels are too narrow: with a shorter side of 256 .* 100,000,000"):
        CentreCrop(224)(image, random.Random())
    assert CentreCrop(64)(image, random.Random())[0].shape == (3, 64, 64)


@pytest.mark.parametrize("view", [TrainingView(40, grey=True), TrainingView(24, grey=True), CentreCrop(40, grey=True)])
def test_grey_comes_before_anything_else(view: View) -> None:
    image = noisy(50, 60)
    grey = torch.from_numpy(np.array(pillow(image).convert("L")))[None].expand(3, -1, -1)
    for seen, wanted in zip(views_of(view, image, 6), views_of(view, grey, 6), strict=True):
        assert torch.equal(seen, wanted)


@pytest.mark.parametrize("size", [32, 40])
def test_the_same_generator_gives_the_same_view(size: int) -> None:
    view, image = TrainingView(size), noisy(60, 50)
    first = views_of(view, image, 5)
    random.random(), np.random.random(), torch.rand(3)
    again = views_of(view, image, 5)
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert not any(torch.equal(first[0], other) for other in first[1:])


def test_the_processs_own_generators_are_put_back() -> None:
    before = generators()
    with kept_generators():
        views_of(TrainingView(40, auto_augment="", color_jitter=0.4), noisy(60, 50), 2)
        views_of(TrainingView(40), noisy(60, 50), 2)
        assert all(generators()[place] != before[place] for place in (0, 2, -1))
    assert generators() == before
    with pytest.raises(ZeroDivisionError), kept_generators():
        1 / (random.random() < 0)
    assert generators() == before


def test_colour_jitter_only_without_a_policy() -> None:
    names = [type(each).__name__ for each in TrainingView(40, color_jitter=0.4).parts[1].transforms]
    assert names == ["RandomHorizontalFlip", "RandAugment"]
    names = [type(each).__name__ for each in TrainingView(40, auto_augment="", color_jitter=0.4).parts[1].transforms]
    assert names == ["RandomHorizontalFlip", "ColorJitter"]
    assert len(TrainingView(40, flip=0.0, auto_augment="").parts[1].transforms) == 0


@pytest.mark.parametrize("policy", ["rand-q9", "nonsense", "augmix-z3"])
def test_an_unknown_policy_is_refused(policy: str) -> None:
    with pytest.raises(ValueError, match=f"data.auto_augment='{policy}' is no policy"):
        TrainingView(auto_augment=policy)
