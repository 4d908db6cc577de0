"""The data set of this folder's runs, made once."""

from pathlib import Path

import pytest

from detr_container.datasets.single_shapes import make_single_shapes


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four training and twenty validation images of ten classes, 40 pixels."""
    folder = tmp_path_factory.getbasetemp() / "single-shapes"
    if not folder.exists():
        make_single_shapes(folder, 24, 20, 40)
    return folder
