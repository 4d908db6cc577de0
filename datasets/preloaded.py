"""What a loader process needs, so that the fork server imports it once for all of them. It starts no thread."""

import torchvision.transforms.v2  # noqa: F401

from . import dataset, handover, images, workers  # noqa: F401

# Pillow's formats, which it otherwise looks for at the first image.
images.known_formats()
