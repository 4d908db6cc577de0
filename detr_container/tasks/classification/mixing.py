"""What is done to a batch where the model is: pixels to numbers, erased blocks to noise, images mixed with each other.

All of it has the same shapes for every batch and reads nothing back, so that a step can be recorded as a CUDA graph.
Zhang et al. 2018 (mixup), Yun et al. 2019 (cutmix), Zhong et al. 2020 (random erasing), as the DeiT recipe has them.
Shapes: B images of H x W pixels, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.data.mixup import mixup_target
from timm.loss.cross_entropy import SoftTargetCrossEntropy
from torch import Tensor


class Normalisation:
    """Pixels of 0 to 255 as a model's input: in [0, 1], less `mean`, over `std`, of each channel."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], memory_format: torch.memory_format) -> None:
        self._mean, self._std, self._format = tuple(mean), tuple(std), memory_format
        self._known = dict[torch.device, tuple[Tensor, Tensor]]()

    def __call__(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 to float32 of the same shape, on the same device."""
        mean, scale = self._on(images.device)
        return (images - mean).mul_(scale).contiguous(memory_format=self._format)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Copied once, since a copy from the host cannot be recorded."""
        if device not in self._known:
            # Made in an evaluation perhaps, and used in training.
            with torch.inference_mode(mode=False):
                mean = torch.tensor(self._mean).mul(255)[:, None, None].to(device)
                scale = torch.tensor(self._std).mul(255).reciprocal()[:, None, None].to(device)
            self._known[device] = mean, scale
        return self._known[device]


def erase(images: Tensor, blocks: Tensor) -> Tensor:
    """Normalised images [B, 3, H, W] with a block of each turned to noise, standard normal in every value.

    blocks: [B, 4] int64, top, left, height and width in pixels, zeros for none. The noise is drawn from the device's
    generator, for all pixels, whatever the blocks.
    """
    height, width = images.shape[-2:]
    top, left, high, wide = blocks[:, :, None].unbind(1)
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    inside = ((rows >= top) & (rows < top + high))[:, :, None] & ((columns >= left) & (columns < left + wide))[:, None]
    return torch.where(inside[:, None], torch.randn_like(images), images)


def mix(images: Tensor, share: Tensor, box: Tensor) -> Tensor:
    """Normalised images [B, 3, H, W], each mixed with the one at its place in the reversed batch.

    share: [1], the weight of an image itself; box: [4] int64, top, left, bottom and right of what the other one takes
    over instead, empty for mixup.
    """
    height, width = images.shape[-2:]
    top, left, bottom, right = box.unbind()
    rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
    inside = ((rows >= top) & (rows < bottom))[:, None] & ((columns >= left) & (columns < right))[None]
    own = torch.where(inside.any(), 1 - inside.to(images.dtype), share)
    return images * own + images.flip(0) * (1 - own)


def targets(labels: Tensor, classes: int, share: Tensor, smoothing: float) -> Tensor:
    """[B, K] float32 what is to be learnt: smoothed labels, mixed as the images. labels: [B]; share: see `mix`."""
    found: Tensor = mixup_target(labels, classes, share, smoothing)
    return found


def soft_target_loss(logits: Tensor, wanted: Tensor, images: Tensor) -> Tensor:
    """The cross entropy of logits [B, K] with `targets`, in float32: its sum over the batch, divided by `images`.

    images: a scalar, how many all of a step's batches have, so that their losses add up to the mean.
    """
    mean: Tensor = SoftTargetCrossEntropy()(logits.float(), wanted)
    return mean * len(logits) / images


def mixed_labels(labels: Tensor, share: Tensor) -> Tensor:
    """[B] the label of that part of each mixed image which is larger."""
    return torch.where(share >= 0.5, labels, labels.flip(0))
