"""Mixing, targets and losses against the published code, noise, and what a batch costs in waits: nothing."""

from pathlib import Path

import numpy as np
import pytest
import torch
from golden import pattern
from reads import Reads
from torch import Tensor

from detr_container.models.backbones.backbone import IMAGENET_MEAN, IMAGENET_STD
from detr_container.tasks.classification.mixing import (
    Normalisation,
    erase,
    mix,
    mixed_labels,
    soft_target_loss,
    targets,
)

GOLDEN = Path(__file__).parents[2] / "golden" / "deit.npz"
LABELS = torch.tensor([0, 3, 1, 4, 2, 3])
IMAGES = pattern.tensor("mixup/images", (6, 3, 20, 28))


def published(name: str) -> Tensor:
    with np.load(GOLDEN) as arrays:
        return torch.from_numpy(arrays[name])


def share_and_box(name: str) -> tuple[Tensor, Tensor]:
    """Of mixup the share that was given; of cutmix the box that was pasted, and what it leaves."""
    if name == "mixup":
        return torch.tensor([0.3]), torch.zeros(4, dtype=torch.int64)
    pasted = published(f"{name}/pasted")
    rows, columns = pasted.any(1).nonzero().flatten(), pasted.any(0).nonzero().flatten()
    box = torch.stack([rows[0], columns[0], rows[-1] + 1, columns[-1] + 1])
    return 1 - pasted.float().mean()[None], box


@pytest.mark.parametrize("name", ["mixup", "cutmix", "cutmix_corner", "cutmix_all"])
def test_images_and_targets_are_mixed_as_published(name: str) -> None:
    share, box = share_and_box(name)
    torch.testing.assert_close(mix(IMAGES, share, box)[:, :1], published(f"{name}/images"), atol=1e-6, rtol=0)
    torch.testing.assert_close(targets(LABELS, 5, share, 0.1), published(f"{name}/targets"), atol=1e-6, rtol=0)


def test_losses_are_those_published_and_add_up_over_parts_of_a_batch() -> None:
    logits = 3 * pattern.tensor("mixup/logits", (6, 5))
    for share, name in ((0.3, "soft_target_loss"), (1.0, "smoothed_loss")):
        wanted = targets(LABELS, 5, torch.tensor([share]), 0.1)
        whole = soft_target_loss(logits, wanted, torch.tensor(6.0))
        torch.testing.assert_close(whole.double(), published(name), atol=1e-6, rtol=0)
        parts = [soft_target_loss(logits[part], wanted[part], torch.tensor(6.0)) for part in (slice(2), slice(2, 6))]
        torch.testing.assert_close(torch.stack(parts).sum(), whole)
    assert soft_target_loss(logits.bfloat16(), wanted, torch.tensor(6.0)).dtype == torch.float32


def test_what_is_not_mixed_stays_as_it_is() -> None:
    share, none = torch.ones(1), torch.zeros(4, dtype=torch.int64)
    assert torch.equal(mix(IMAGES, share, none), IMAGES)
    plain = targets(LABELS, 5, share, 0.0)
    assert torch.equal(plain, torch.nn.functional.one_hot(LABELS, 5).float())
    assert mixed_labels(LABELS, share).tolist() == LABELS.tolist()
    assert mixed_labels(LABELS, torch.tensor([0.3])).tolist() == LABELS.flip(0).tolist()


def test_pixels_become_what_the_model_was_trained_on() -> None:
    images = torch.randint(0, 256, (2, 3, 8, 9), dtype=torch.uint8)
    mean, std = torch.tensor(IMAGENET_MEAN)[:, None, None], torch.tensor(IMAGENET_STD)[:, None, None]
    normalise = Normalisation(IMAGENET_MEAN, IMAGENET_STD, torch.channels_last)
    with torch.inference_mode():
        normalise(images)
    found = normalise(images)
    torch.testing.assert_close(found, (images.float() / 255 - mean) / std)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert not found.is_inference()


def test_erased_blocks_are_standard_normal_noise_and_nothing_else_changes() -> None:
    blocks = torch.tensor([[4, 6, 40, 50], [0, 0, 0, 0], [50, 0, 14, 64]])
    images = torch.full((3, 3, 64, 64), 7.0)
    torch.manual_seed(5)
    found = erase(images, blocks)
    for image, (top, left, height, width) in zip(found, blocks.tolist(), strict=True):
        block = image[:, top : top + height, left : left + width]
        if height:
            assert abs(float(block.mean())) < 0.05
            assert abs(float(block.std()) - 1) < 0.05
            assert block.unique().numel() > 0.99 * block.numel()
            block.fill_(7.0)
        assert (image == 7).all()
    torch.manual_seed(5)
    again, other = erase(images, blocks), erase(images, blocks)
    torch.manual_seed(5)
    assert torch.equal(again, erase(images, blocks))
    assert not torch.equal(again, other)


def test_nothing_is_read_back() -> None:
    share, box = share_and_box("cutmix")
    normalise = Normalisation(IMAGENET_MEAN, IMAGENET_STD, torch.channels_last)
    pixels = torch.randint(0, 256, (6, 3, 20, 28), dtype=torch.uint8)
    blocks = torch.tensor([[2, 3, 5, 6]] * 6)
    with Reads() as reads:
        mixed = mix(erase(normalise(pixels), blocks), share, box)
        soft_target_loss(mixed.mean((2, 3)), targets(LABELS % 3, 3, share, 0.1), torch.tensor(6.0))
        mixed_labels(LABELS, share)
    assert not reads.found
