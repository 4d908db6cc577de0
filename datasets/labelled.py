"""Images with one label each, as samples and batches for a classifier; all that is random follows from keys."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .dataset import Key, random_of
from .folders import ImageFolder
from .images import read_image
from .mixing import Mixing
from .padding import Padding
from .views import Block, View, kept_generators


@dataclass
class LabelledSample:
    """One view of an image. image: [3, S, S] uint8; index: the image's in its folder; erased: what noise will cover."""

    image: Tensor
    label: int
    index: int
    erased: Block
    key: Key


@dataclass
class LabelledBatch:
    """Views of B images, S pixels square, and what is still to be done to them where the model is.

    images: [B, 3, S, S] uint8; labels: [B] int64; erased: [B, 4] int64, top, left, height and width of the block that
    is to become noise, zeros for none; share: [1] float32 and box: [4] int64 (top, left, bottom, right): what mixing
    drew for the batch. The box is zeros in mixup; without mixing the share is 1 as well. image_ids: rows of the folder,
    on the host.
    """

    images: Tensor
    labels: Tensor
    erased: Tensor
    share: Tensor
    box: Tensor
    image_ids: tuple[int, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of its tensors, always in this order."""
        return self.images, self.labels, self.erased, self.share, self.box

    def with_tensors(self, tensors: Iterable[Tensor]) -> LabelledBatch:
        """The same batch with others in the place of its `tensors`."""
        images, labels, erased, share, box = tensors
        return replace(self, images=images, labels=labels, erased=erased, share=share, box=box)

    @property
    def form(self) -> Hashable:
        """What decides beside the shapes of its tensors which operations are computed: nothing."""
        return ()

    def to(self, device: torch.device | str) -> LabelledBatch:
        """Copy the batch to `device`, without waiting when its memory is pinned."""
        return self.with_tensors(tensor.to(device, non_blocking=True) for tensor in self.tensors)

    def pin_memory(self) -> LabelledBatch:
        """Make page-locked copies, so that `to` can overlap with computation (called by the data loader)."""
        return self.with_tensors(tensor.pin_memory() for tensor in self.tensors)


@dataclass(frozen=True)
class JoinLabelled:
    """How samples become a batch, with one draw of mixing that follows from the seed and the first sample's key."""

    mixing: Mixing
    seed: int

    def __call__(self, samples: Sequence[LabelledSample]) -> LabelledBatch:
        """The batch of these samples, in order."""
        _, height, width = samples[0].image.shape
        # Channels last, as images are decoded: the copy is a plain one.
        images = torch.empty(len(samples), height, width, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        for place, sample in zip(images, samples, strict=True):
            place.copy_(sample.image)
        epoch, item = samples[0].key
        # No image has this number: the draw does not repeat the first image's.
        mix = self.mixing.draw(random_of(self.seed, epoch, -1 - item), height, width)
        return LabelledBatch(
            images,
            torch.tensor([sample.label for sample in samples]),
            torch.tensor([sample.erased for sample in samples]),
            torch.tensor([mix.share], dtype=torch.float32),
            torch.tensor(mix.box),
            tuple(sample.index for sample in samples),
        )


class LabelledImages(Dataset[LabelledSample]):
    """The images of a folder, each as often as asked for; indexed by (epoch, item), item = view x length + index.

    The views of an image differ, also within an epoch: a view's randomness is a function of `seed` and its key alone,
    so any process, worker or resumed run gets the same for the same key.
    """

    preloaded = "detr_container.datasets.preloaded_views"

    def __init__(self, folder: ImageFolder, view: View, mixing: Mixing | None = None, seed: int = 0) -> None:
        self.folder = folder
        self.view = view
        self.mixing = mixing or Mixing()
        self.seed = seed

    def __len__(self) -> int:
        return len(self.folder)

    def __getitem__(self, key: Key) -> LabelledSample:
        """The sample of (epoch, item).

        Raises ValueError, which names the file, when it is missing, cannot be decoded, or is too small.
        """
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[Key]) -> list[LabelledSample]:
        """Those of a batch, which is what a data loader asks for. Raises as for one."""
        with kept_generators(), warnings.catch_warnings():
            # Pillow's hint at a very large image is no news to its owner, and would come once per worker.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            samples, index, image = list[LabelledSample](), -1, torch.empty(0)
            for key in keys:
                before, index = index, key[1] % len(self.folder)
                with self._blaming(index):
                    # Views of one image stand side by side in a batch: it is read once.
                    image = image if index == before else read_image(self.folder.path(index))
                    view, erased = self.view(image, random_of(self.seed, *key))
                samples.append(LabelledSample(view, int(self.folder.labels[index]), index, erased, key))
            return samples

    @contextmanager
    def _blaming(self, index: int) -> Iterator[None]:
        """Name the file in what is wrong with it."""
        try:
            yield
        except FileNotFoundError:
            raise self._refusal(index, "the file does not exist") from None
        except (OSError, ValueError) as error:
            raise self._refusal(index, f"the file cannot be used: {error}") from error

    def _refusal(self, index: int, problem: str) -> ValueError:
        return ValueError(
            f"{self.folder.path(index)}: {problem}; repair or remove the file. `detr-container data check` lists every "
            "such image before training starts"
        )

    def joining(self, padding: Padding) -> JoinLabelled:
        """How samples become a batch; all have one size, whatever the padding."""
        del padding
        return JoinLabelled(self.mixing, self.seed)

    def largest_bytes(self, batch: int, padding: Padding) -> int:
        """Of a batch of so many images."""
        del padding
        return batch * (3 * self.view.size**2 + 1024)
