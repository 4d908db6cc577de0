"""How long resamples of a data set of COCO's size take: python tests/time_resamples.py [1000]."""

from __future__ import annotations

import sys
import time

import numpy as np
from simulated import detect, scene

from detr_container.compare.intervals import resamples
from detr_container.compare.matching import match
from detr_container.compare.precision import metrics_of

IMAGES, CLASSES = 5000, 80


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    world = scene(IMAGES, CLASSES, seed=0)
    found = detect(world, skill=1.5, seed=1)
    began = time.perf_counter()
    matches = match(world.ground, found)
    matched = time.perf_counter()
    weights = np.concatenate([np.ones((1, IMAGES)), resamples(IMAGES, count)])
    rated = metrics_of(matches, weights).overall[:, 0]
    done = time.perf_counter()
    sys.stdout.write(
        f"{IMAGES} images, {len(world.ground.image):,} objects, {len(found.scores):,} detections, "
        f"AP {100 * rated[0]:.1f} (standard error {100 * rated[1:].std():.2f})\n"
        f"matching {matched - began:.1f} s, {count} resamples {done - matched:.1f} s\n"
    )


if __name__ == "__main__":
    main()
