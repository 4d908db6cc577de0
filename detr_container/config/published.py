"""What was published of an experiment, in per cent, with its source."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Published:
    """A published metric. what: which one, in words."""

    value: float
    source: str
    what: ClassVar[str]

    def __str__(self) -> str:
        return f"{self.value}, {self.source}"


@dataclass(frozen=True)
class PublishedAp(Published):
    """Box AP on COCO val2017, by size where given, and mask AP of a detector of masks."""

    ap50: float | None = None
    ap75: float | None = None
    ap_small: float | None = None
    ap_medium: float | None = None
    ap_large: float | None = None
    mask_ap: float | None = None
    what: ClassVar[str] = "box AP on COCO val2017"

    def __str__(self) -> str:
        mask = "" if self.mask_ap is None else f" (mask AP {self.mask_ap})"
        return f"{self.value}{mask}, {self.source}"

    @property
    def ap(self) -> float:
        """The AP."""
        return self.value


@dataclass(frozen=True)
class PublishedTop1(Published):
    """Top-1 accuracy on ImageNet's validation set, and top-5 where given."""

    top5: float | None = None
    what: ClassVar[str] = "top-1 on ImageNet val"
