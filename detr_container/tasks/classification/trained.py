"""A trained classifier from a run's folder, a checkpoint or published file, or timm by name, ready for images."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from detr_container.config.backbones import BackboneConfig
from detr_container.config.classification import ClassificationExperiment, FoldersConfig, classification
from detr_container.config.experiments import named
from detr_container.config.settings import from_file
from detr_container.engine.run import Run
from detr_container.engine.weight_files import is_weights_folder, load_weights
from detr_container.models.backbones.resnet import DEPTHS
from detr_container.models.classifier import BackboneClassifier, ImageClassifier
from detr_container.models.weights.classifiers import load_classifier
from detr_container.models.weights.find import CLASSIFIER, Which, check_sound, find_weights
from detr_container.models.weights.fit import load_checked

from .build import model_of
from .class_names import IMAGENET, imagenet_ids, read_names
from .note import read_note

_log = logging.getLogger(__name__)
_CONTAINER = "patch_embed1.proj.weight"
_OTHER_NETWORK = "Name its network with --backbone timm/NAME, or its experiment with --experiment NAME"
_OVERRULES = "--experiment NAME or --backbone timm/NAME overrules"


@dataclass(frozen=True)
class Asked:
    """What a person says of a model that does not say everything itself.

    experiment: the named experiment, and backbone: the network (`timm/NAME`, `resnet50`, ...), that a published file
    is of; which: of averaged and raw weights; classes: a file or folder that names the rows; interpolate:
    affinities of one input size for others.
    """

    experiment: str = ""
    backbone: str = ""
    which: Which = "auto"
    classes: Path | None = None
    interpolate: bool = False


@dataclass
class Trained:
    """A model in evaluation mode with what it was trained for.

    classes: the rows' names, empty where nothing says them; rows: their number; source: the checkpoint's path, or
    `timm/NAME`; step: 0 when unknown; raw: of a run that keeps averaged weights, which it evaluates, the others.
    """

    model: ImageClassifier
    experiment: ClassificationExperiment
    classes: tuple[str, ...]
    rows: int
    source: str
    step: int = 0
    raw: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """A name for every row."""
        return self.classes or tuple(f"class {row}" for row in range(self.rows))

    def check_size(self, size: int) -> None:
        """Raise ValueError for an input size that the model does not take."""
        try:
            self.model.check_side(size)
        except ValueError as error:
            raise ValueError(f"--size {size}: {error}") from error

    def at(self, size: int) -> Trained:
        """The same for images of another input size. Raises ValueError for one that the model does not take."""
        self.check_size(size)
        data = replace(self.experiment.data, eval_size=size)
        return replace(self, experiment=replace(self.experiment, data=data))


def open_trained(source: str, device: torch.device, asked: Asked | None = None) -> Trained:
    """Load the newest good checkpoint of a run, one file, a folder of weights, or timm's own weights of `timm/NAME`.

    Raises ValueError or OSError, saying what would help.
    """
    asked = asked or Asked()
    path = Path(source)
    if source.startswith("timm/") and not path.exists():
        trained = _of_timm(source, asked)
    else:
        trained = _of_file(_checkpoint(path), asked)
    if asked.interpolate:
        trained = _interpolated(trained)
    trained.model.to(device).eval()
    return trained


def _interpolated(trained: Trained) -> Trained:
    """The same, taking images of any size."""
    name = trained.experiment.backbone.name
    if not isinstance(trained.model, BackboneClassifier):
        raise ValueError(f"--interpolate: {name} has no dense affinities to interpolate: leave it out")
    backbone = replace(trained.experiment.backbone, dense="interpolate")
    experiment = replace(trained.experiment, backbone=backbone)
    return replace(trained, model=trained.model.interpolated(), experiment=experiment)


def _checkpoint(path: Path) -> Path:
    """The file that stands for a run; of anything else itself."""
    if not path.is_dir() or is_weights_folder(path):
        return path
    run = Run(path)
    run.experiment()
    found = run.checkpoints().newest()
    if found is None:
        raise ValueError(f"{path} has no checkpoint yet: train it first, or wait for its first epoch")
    return found[0]


def _of_timm(name: str, asked: Asked) -> Trained:
    settings, rows = _of_network(name, asked)
    settings = replace(settings, backbone=replace(settings.backbone, weights="imagenet"))
    try:
        model = model_of(settings, rows)
    except (ValueError, OSError) as error:
        raise ValueError(f"{error}. A file of them is evaluated by `evaluate FILE --backbone {name}`") from error
    return Trained(model, settings, _row_names(rows, asked), rows, name)


def _of_file(path: Path, asked: Asked) -> Trained:
    checkpoint = load_weights(path)
    if "experiment" in checkpoint:
        return _own(path, checkpoint, asked)
    try:
        found = find_weights(checkpoint, asked.which)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    names: tuple[str, ...] = ()
    settings = _stated(asked)
    noted = None if asked.experiment else read_note(path, checkpoint)
    if noted and asked.backbone in ("", noted[0].backbone.name):
        settings, names = noted
    rows = _rows(path, found.state, settings.backbone.name if settings else "")
    settings = settings or _of_network(_guess(path, found.state), asked)[0]
    backbone = replace(settings.backbone, weights=str(path), file_weights=asked.which)
    settings = replace(settings, backbone=backbone)
    model = model_of(settings, rows, weights=False)
    became = load_classifier(model, checkpoint, str(path), asked.which, _OTHER_NETWORK)
    if not became.kept:
        raise ValueError(f"{path}: {became.words}, so that it would not be what was trained. {_OTHER_NETWORK}")
    if len(names) != rows or asked.classes is not None:
        names = _row_names(rows, asked)
    return Trained(model, settings, names, rows, str(path))


def _stated(asked: Asked) -> ClassificationExperiment | None:
    """The settings of the experiment or of the network that a person names, if any."""
    if asked.experiment:
        return classification(named(asked.experiment).experiment)
    return _of_network(asked.backbone, asked)[0] if asked.backbone else None


def _rows(path: Path, state: Mapping[str, Tensor], network: str) -> int:
    """How many classes the classifier of a published file has. network: whose it is, where that is known.

    Raises ValueError for a file without one.
    """
    for pattern in (*_linear_layers(network), CLASSIFIER):
        found = [value for name, value in state.items() if pattern.search(name) and value.dim() in (2, 4)]
        if found:
            return len(found[-1])
    raise ValueError(
        f"{path} holds no classifier, only a backbone or another network: no tensor is called head.weight or "
        "fc.weight. Train one from it (train EXPERIMENT --backbone.weights FILE), or name its network with --backbone "
        "timm/NAME"
    )


def _linear_layers(network: str) -> list[re.Pattern[str]]:
    """What the weights of a timm model's classifier are called, which for some is what no others call them."""
    if not network.startswith("timm/"):
        return []
    import timm

    config = timm.get_pretrained_cfg(network.removeprefix("timm/"))
    said = config.classifier if config is not None else None
    names = [said] if isinstance(said, str) else list(said or ())
    return [re.compile(rf"(?:^|\.){re.escape(name)}\.weight$") for name in names]


def _own(path: Path, checkpoint: Mapping[str, Any], asked: Asked) -> Trained:
    """A checkpoint of this program's own."""
    settings = classification(from_file(checkpoint["experiment"], f"{path}: its experiment"))
    classes = _classes(path, checkpoint.get("classes"))
    try:
        found = find_weights(checkpoint, asked.which)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    check_sound(found.state, path)
    for remark in found.remarks(path, "--weights"):
        _log.warning("%s", remark)
    model = model_of(settings, len(classes), weights=False)
    own = model.state_dict()
    # Frozen norms count no batches, though files may have the count.
    state = {name: v for name, v in found.state.items() if name in own or not name.endswith("num_batches_tracked")}
    load_checked(model, state, f"{path} does not fit the experiment that it states", "Use another copy")
    if asked.classes is not None:
        classes = read_names(asked.classes, len(classes))
    raw = bool(found.others) and not found.averaged
    return Trained(model, settings, classes, len(classes), str(path), _step(path, checkpoint.get("step", 0)), raw)


def _classes(path: Path, values: Any) -> tuple[str, ...]:
    names = tuple(values) if isinstance(values, list | tuple) else ()
    if len(names) < 2 or not all(isinstance(name, str) for name in names) or len(set(names)) < len(names):
        raise ValueError(f"{path}: its class list must be two names or more, each once. Use another copy")
    return names


def _step(path: Path, step: Any) -> int:
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(f"{path}: its step is {step!r}, not a number of steps. Use another copy")
    return step


def _of_network(name: str, asked: Asked) -> tuple[ClassificationExperiment, int]:
    """The settings under which a published network is evaluated, and how many classes it was published for.

    Of timm's they are what timm says of those weights. Raises ValueError for a name that there is not.
    """
    backbone = BackboneConfig(name=name, weights="none", frozen_stages=0, norm="batch")
    if not name.startswith("timm/"):
        # torchvision's are evaluated with bilinear resizing.
        data = FoldersConfig(interpolation="bilinear" if name in DEPTHS else "bicubic")
        return ClassificationExperiment(name=asked.experiment, backbone=backbone, data=data), IMAGENET
    import timm

    from detr_container.models.backbones.timm_fit import check_known

    check_known(name.removeprefix("timm/"))
    config = timm.get_pretrained_cfg(name.removeprefix("timm/"))
    if config is None:
        raise ValueError(f"{name}: timm has no weights of it and says nothing of its images: train it, or name another")
    if config.crop_mode != "center":
        _log.warning(
            "%s: timm evaluates it on whole images (crop_mode=%s), and here it is shown their centre, so that its "
            "accuracy is not quite timm's",
            *(name, config.crop_mode),
        )
    side = config.test_input_size or config.input_size
    resize: Literal["bicubic", "bilinear"] = "bilinear" if config.interpolation == "bilinear" else "bicubic"
    data = FoldersConfig(size=side[-1], crop_ratio=config.test_crop_pct or config.crop_pct, interpolation=resize)
    return ClassificationExperiment(name=asked.experiment, backbone=backbone, data=data), config.num_classes


def _guess(path: Path, state: Mapping[str, Tensor]) -> str:
    """The network that has these tensors, said; only of those that published files are seen of without a name."""
    name = ""
    if any(each.endswith(_CONTAINER) for each in state):
        name = "container_light"
    elif "layer1.0.conv1.weight" in state:
        blocks = len({each.split(".")[1] for each in state if each.startswith("layer3.")})
        deep = "layer1.0.conv3.weight" in state
        fitting = (
            key for key, (block, depths) in DEPTHS.items() if (depths[2], block.expansion == 4) == (blocks, deep)
        )
        name = next(fitting, "")
    if not name:
        raise ValueError(
            f"{path} does not state which network it is of: say so with --backbone timm/NAME (as timm spells it), or "
            "with --experiment NAME"
        )
    _log.warning("%s does not state what it is: taken for %s (%s)", path, name, _OVERRULES)
    return name


def _row_names(rows: int, asked: Asked) -> tuple[str, ...]:
    if asked.classes is not None:
        return read_names(asked.classes, rows)
    return imagenet_ids() if rows == IMAGENET else ()
