"""Inside detectron2: our backbones and detectors in its registries, its configurations of them, and its loop.

Importing this registers the backbones (`backbones.py`) and the meta-architectures `DETR` and `SMCADETR`
(`meta_archs.py`). Raises NotInstalledError, an ImportError, where detectron2 is missing.
"""

from detr_container.base.optional import require_detectron2
from detr_container.tasks.detection.anchors.workarounds import deprecated_functions_of_torch_are_called

require_detectron2()
with deprecated_functions_of_torch_are_called():
    from . import backbones, meta_archs
    from .catalog import register, register_shapes
    from .config_files import config_file
    from .settings import add_detr_container_config
    from .training import Trainer

__all__ = [
    "Trainer",
    "add_detr_container_config",
    "backbones",
    "config_file",
    "meta_archs",
    "register",
    "register_shapes",
]
