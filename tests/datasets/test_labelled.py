"""Samples and batches of image folders: the same for a key, whoever loads them; errors name the file."""

import random
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from detr_container.datasets.folders import open_folder
from detr_container.datasets.labelled import LabelledBatch, LabelledImages
from detr_container.datasets.loader import StepBatches, batches, evaluation_loader, training_loader
from detr_container.datasets.mixing import Mixing
from detr_container.datasets.padding import TO_LARGEST
from detr_container.datasets.views import CentreCrop, TrainingView
from detr_container.engine.task import StaticBatch

PER_CLASS = 6


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with six noisy images each, of different sizes."""
    root = tmp_path_factory.mktemp("folders")
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        (root / name).mkdir()
        for number in range(PER_CLASS):
            pixels = generator.integers(0, 256, (44 + 5 * number, 60 - number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.jpg")
    return root


def generators() -> tuple[Any, ...]:
    name, numbers, *rest = np.random.get_state()
    return random.getstate(), name, numbers.tobytes(), *rest, torch.get_rng_state().numpy().tobytes()


def training(root: Path, seed: int = 3) -> LabelledImages:
    return LabelledImages(open_folder(root), TrainingView(40, erasing=0.5), Mixing(0.8, 1.0), seed)


def steps(start: int = 0, total: int = 6) -> StepBatches:
    return StepBatches(2 * PER_CLASS, seed=5, batch=4, micro_batch=4, start_step=start, total_steps=total)


def assert_same(one: list[LabelledBatch], other: list[LabelledBatch]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        assert a.image_ids == b.image_ids
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(a.tensors, b.tensors, strict=True))
        assert [each.stride() for each in a.tensors] == [each.stride() for each in b.tensors]


def test_a_batch_is_what_its_samples_are(root: Path) -> None:
    data = training(root)
    keys = [(2, 3), (2, 11), (2, 3 + 24), (2, 0)]
    samples = [data[key] for key in keys]
    batch = data.joining(TO_LARGEST)(samples)
    assert isinstance(batch, StaticBatch)
    assert batch.image_ids == (3, 11, 3, 0)
    assert batch.labels.tolist() == [0, 1, 0, 0]
    assert [(each.dtype, tuple(each.shape)) for each in batch.tensors] == [
        (torch.uint8, (4, 3, 40, 40)),
        (torch.int64, (4,)),
        (torch.int64, (4, 4)),
        (torch.float32, (1,)),
        (torch.int64, (4,)),
    ]
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    for row, sample in enumerate(samples):
        assert torch.equal(batch.images[row], sample.image)
        assert tuple(batch.erased[row].tolist()) == sample.erased
    # Two views of one image, and the same view in another epoch.
    assert not torch.equal(samples[0].image, samples[2].image)
    assert not torch.equal(samples[0].image, data[3, 3].image)
    moved = batch.with_tensors(each + 0 for each in batch.tensors)
    assert_same([moved, batch.to("cpu")], [batch, batch])
    assert moved.form == batch.form


def test_processes_and_resuming_change_nothing(root: Path) -> None:
    data = training(root)
    alone = list(batches(training_loader(data, steps())))
    assert_same(list(batches(training_loader(data, steps(), workers=2))), alone)
    assert_same(list(batches(training_loader(data, steps(2), workers=1))), alone[2:])
    shares = {float(batch.share) for batch in alone}
    assert len(shares) == len(alone)
    assert any(batch.erased.any() for batch in alone)
    other = list(batches(training_loader(training(root, seed=4), steps())))
    assert not any(torch.equal(one.images, two.images) for one, two in zip(alone, other, strict=True))


def test_loading_in_this_process_leaves_its_generators_alone(root: Path) -> None:
    data, before = training(root), generators()
    list(batches(training_loader(data, steps())))
    data[0, 1]
    assert generators() == before


def test_a_batch_draws_its_mixing_from_its_first_key(root: Path) -> None:
    data = training(root)
    join = data.joining(TO_LARGEST)

    def drawn(*keys: tuple[int, int]) -> tuple[float, list[int]]:
        batch = join([data[key] for key in keys])
        return float(batch.share), batch.box.tolist()

    assert drawn((0, 1), (0, 2)) == drawn((0, 1), (0, 7))
    assert len({str(drawn((epoch, item), (0, 2))) for epoch in (0, 1) for item in (1, 13)}) == 4
    assert float(LabelledImages(data.folder, CentreCrop(40)).joining(TO_LARGEST)([data[0, 0]]).share) == 1


def test_an_evaluation_shows_each_image_once_as_it_is(root: Path) -> None:
    data = LabelledImages(open_folder(root), CentreCrop(40))
    seen = [batch for rank in (0, 1) for batch in batches(evaluation_loader(data, batch=5, rank=rank, world=2))]
    assert sorted(index for batch in seen for index in batch.image_ids) == list(range(2 * PER_CLASS))
    for batch in seen:
        assert batch.labels.tolist() == [index // PER_CLASS for index in batch.image_ids]
        assert (float(batch.share), int(batch.box.sum()), int(batch.erased.sum())) == (1.0, 0, 0)


@pytest.fixture
def damaged(root: Path, tmp_path: Path) -> LabelledImages:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = (root / "a" / "5.jpg").read_bytes()
    (tmp_path / "a" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "a" / "text.png").write_text("no image")
    (tmp_path / "b" / "gone.jpg").symlink_to("nowhere")
    return LabelledImages(open_folder(tmp_path), CentreCrop(40))


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        (0, r"a/cut.jpg: the file cannot be used: not a complete image"),
        (1, r"a/text.png: the file cannot be used: not an image in any format known here"),
        (2, r"b/gone.jpg: the file does not exist"),
    ],
)
def test_a_file_that_cannot_be_used_is_named(damaged: LabelledImages, row: int, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as raised:
        damaged[0, row]
    assert "\n" not in str(raised.value)
    assert "`detr-container data check` lists every such image" in str(raised.value)


def test_it_is_named_by_a_process_that_loads_as_well(damaged: LabelledImages) -> None:
    with (
        closing(batches(evaluation_loader(damaged, batch=1, workers=1))) as stream,
        pytest.raises(ValueError, match=r"^[^\n]*cut\.jpg: the file cannot be used: [^\n]*$"),
    ):
        next(stream)


def test_a_small_image_is_named(root: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (20, 30)).save(tmp_path / name / "tiny.png")
    with pytest.raises(ValueError, match=r"a/tiny\.png: the file cannot be used: 20 x 30 pixels are too few for"):
        LabelledImages(open_folder(tmp_path), CentreCrop(32))[0, 0]


def test_a_batch_fits_its_slot(root: Path) -> None:
    data = training(root)
    batch = data.joining(TO_LARGEST)([data[0, item] for item in range(8)])
    assert sum(each.nbytes + 64 for each in batch.tensors) < data.largest_bytes(8, TO_LARGEST)
    one = data.joining(TO_LARGEST)([data[0, 0]])
    assert sum(each.nbytes + 64 for each in one.tensors) < data.largest_bytes(1, TO_LARGEST)


@pytest.mark.gpu
def test_batches_for_a_gpu_arrive_page_locked(root: Path) -> None:
    data = training(root)
    alone = list(batches(training_loader(data, steps())))
    pinned = list(batches(training_loader(data, steps(), workers=2, pin_memory=True)))
    assert_same(pinned, alone)
    assert all(each.is_pinned() for batch in pinned for each in batch.tensors)
