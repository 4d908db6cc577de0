"""What a batch is padded to: its images, and the lists of their objects. Sizes are (height, width) in pixels."""

from __future__ import annotations

from dataclasses import dataclass

from .transforms import Size


@dataclass(frozen=True)
class Padding:
    """How the sides of a batch follow from its highest and its widest image.

    multiple: both sides are multiples of so many pixels (a backbone's `size_multiple`); canvas: when not 0, pad to this
    square instead of to the largest image; canvases: when there are any, pad to the smallest of these that holds the
    batch. At most one of the last two. slots: for the objects of each image, or as many as the fullest image needs.
    """

    multiple: int = 1
    canvas: int = 0
    canvases: tuple[Size, ...] = ()
    slots: int = 0

    def size(self, height: int, width: int) -> Size:
        """What a batch of these sides is padded to. Raises ValueError when it does not fit."""
        if self.canvases:
            fitting = [size for size in self.canvases if size[0] >= height and size[1] >= width]
            if not fitting:
                raise ValueError(
                    f"a batch of {height} x {width} pixels fits none of the {len(self.canvases)} canvases, which "
                    "follow from the sizes in the annotation file: start again if that has changed, or use "
                    "data.canvases=off"
                )
            return min(fitting, key=lambda size: size[0] * size[1])
        if self.canvas:
            if max(height, width) > self.canvas:
                raise ValueError(
                    f"an image of {height} x {width} pixels does not fit data.canvas={self.canvas}: "
                    "raise data.canvas, or lower data.max_size"
                )
            height = width = self.canvas
        return up(height, self.multiple), up(width, self.multiple)

    def largest(self, longest: int) -> int:
        """Pixels of an image in the largest batch; longest: the longest side that an image can have."""
        side = (self.canvas or longest) + max(1, self.multiple)
        return max((height * width for height, width in self.canvases), default=side**2)


TO_LARGEST = Padding()


def up(side: int, multiple: int) -> int:
    """The next multiple."""
    return -(-side // multiple) * multiple
