"""A real browser without a window, and what a reader's eyes make of colours."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from playwright.sync_api import Browser, Page, sync_playwright

Media = Literal["screen", "print"]
Scheme = Literal["light", "dark"]
NAMES = ("chromium", "chromium-browser", "google-chrome")

# Machado, Oliveira and Fernandes 2009, of severity 1, on linear RGB.
SIGHTS = {
    "all cones": np.eye(3),
    "no long cones": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "no middle cones": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "no short cones": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}
_XYZ = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]])


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium; the test is skipped where there is none."""
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, NAMES)), None)
        if found is None and Path(playwright.chromium.executable_path).is_file():
            found = playwright.chromium.executable_path
        if found is None:
            pytest.skip(f"no browser is here: none of {', '.join(NAMES)} (apt-get install chromium)")
        # Its sandbox is not for root.
        flags = ["--no-sandbox"] if os.geteuid() == 0 else []
        started = playwright.chromium.launch(executable_path=found, args=flags)
        try:
            yield started
        finally:
            started.close()


def settle(page: Page, width: int, media: Media = "screen", scheme: Scheme = "light") -> None:
    """Show a page on a screen of this width, or on paper, to someone who prefers light or dark."""
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(media=media, color_scheme=scheme)


def linear(colour: ArrayLike) -> NDArray[np.float64]:
    """Linear RGB of sRGB from 0 to 1."""
    value = np.asarray(colour, dtype=np.float64)
    return np.where(value <= 0.04045, value / 12.92, ((value + 0.055) / 1.055) ** 2.4)


def contrast(one: Sequence[float], other: Sequence[float]) -> float:
    """WCAG 2's ratio of two opaque colours, 0 to 255."""
    dark, light = sorted(float(linear(np.array(c[:3]) / 255) @ _XYZ[1]) for c in (one, other))
    return (light + 0.05) / (dark + 0.05)


def apart(colours: Sequence[Sequence[float]], sight: str) -> float:
    """The least CIE76 difference between any two of some colours, 0 to 255, as somebody sees them."""
    seen = np.clip(linear(np.array(colours) / 255) @ SIGHTS[sight].T, 0, 1)
    ratio = seen @ _XYZ.T / np.array([0.95047, 1, 1.08883])
    part = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    lab = np.stack([116 * part[:, 1], 500 * (part[:, 0] - part[:, 1]), 200 * (part[:, 1] - part[:, 2])], axis=1)
    distance = np.linalg.norm(lab[:, None] - lab, axis=-1)
    return float(distance[np.triu_indices(len(lab), 1)].min())
