"""What a loader process of a classifier needs beside detection's: timm's transforms, half a second more."""

import timm.data.transforms_factory  # noqa: F401

from . import labelled, preloaded, views  # noqa: F401
