"""detectron2's configurations: ours by name, anybody's by path, with `key=value` on top."""

from __future__ import annotations

import difflib
import inspect
import re
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from detectron2.config import CfgNode, LazyConfig, get_cfg
from detectron2.utils.registry import locate
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from detr_container.tasks.detection.anchors.workarounds import model_zoo_imports_pkg_resources
from detr_container.tasks.detection.catalog import import_module

from .settings import add_detr_container_config, add_keys

T = TypeVar("T")
_FOLDER = Path(__file__).resolve().parent / "configs"
_OURS = ("DETR", "SMCADETR")
# What detectron2's loop reads.
_LAZY = (
    *("model", "optimizer", "lr_multiplier", "dataloader.train"),
    *("train.output_dir", "train.init_checkpoint", "train.max_iter", "train.amp.enabled", "train.ddp"),
    *("train.checkpointer", "train.eval_period", "train.log_period", "train.device"),
)


@dataclass(frozen=True)
class Loaded:
    """A configuration: detectron2's LazyConfig, or its yacs settings. path: the file that it was read from."""

    cfg: Any
    path: str

    @property
    def lazy(self) -> bool:
        """Whether it is a LazyConfig."""
        return isinstance(self.cfg, DictConfig)

    @property
    def output(self) -> Path:
        """The folder that is written to."""
        return Path(self.cfg.train.output_dir if self.lazy else self.cfg.OUTPUT_DIR)

    def into(self, output: Path) -> None:
        """Write to another folder."""
        if self.lazy:
            self.cfg.train.output_dir = str(output)
        else:
            self.cfg.OUTPUT_DIR = str(output)

    @property
    def device(self) -> tuple[str, str]:
        """The key that says on what it is computed, and what it says."""
        return ("train.device", self.cfg.train.device) if self.lazy else ("MODEL.DEVICE", self.cfg.MODEL.DEVICE)

    @property
    def mixed_precision(self) -> tuple[str, bool]:
        """The key of mixed precision, and whether it is on."""
        if self.lazy:
            return "train.amp.enabled", bool(self.cfg.train.amp.enabled)
        return "SOLVER.AMP.ENABLED", bool(self.cfg.SOLVER.AMP.ENABLED)

    @property
    def seed(self) -> int:
        """Of all that is random; negative: another at each start."""
        return int(self.cfg.train.get("seed", -1) if self.lazy else self.cfg.SEED)

    @property
    def workers(self) -> int:
        """Loader processes of each training process."""
        loader = self.cfg.dataloader.train
        return int(loader.get("num_workers", 0) if self.lazy else self.cfg.DATALOADER.NUM_WORKERS)

    @property
    def weights(self) -> tuple[str, str]:
        """The key of weights of the whole model to start from, and the file or address; "" for none."""
        if self.lazy:
            return "train.init_checkpoint", str(self.cfg.train.init_checkpoint or "")
        return "MODEL.WEIGHTS", str(self.cfg.MODEL.WEIGHTS)

    @property
    def data(self) -> list[str]:
        """The names of the data sets, where they are detectron2's catalog's."""
        if not self.lazy:
            return [*self.cfg.DATASETS.TRAIN, *self.cfg.DATASETS.TEST]
        found = (OmegaConf.select(self.cfg, f"dataloader.{split}.dataset.names") for split in ("train", "test"))
        return [name for names in found if names for name in ([names] if isinstance(names, str) else names)]

    @property
    def batch(self) -> tuple[str, int]:
        """The key of the number of images to a step, over all processes, and that number; 0: not known."""
        if self.lazy:
            return "dataloader.train.total_batch_size", int(self.cfg.dataloader.train.get("total_batch_size", 0))
        return "SOLVER.IMS_PER_BATCH", int(self.cfg.SOLVER.IMS_PER_BATCH)


def names() -> list[str]:
    """Of our configurations."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem != "__init__")


def config_file(name: str) -> str:
    """The path of one of our configurations, for `LazyConfig.load`. Raises ValueError where there is none."""
    if name not in names():
        near = difflib.get_close_matches(name, names(), n=2)
        hint = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(names())}."
        raise ValueError(f"there is no configuration {name!r}: {hint} Or give the path of a .py or .yaml file")
    return str(_FOLDER / f"{name}.py")


def load(config: str, overrides: Sequence[str] = (), module: str = "") -> Loaded:
    """A configuration with settings of one's own on top.

    module: what is imported first, since it registers data sets or models.
    config: the name of one of ours, or the path of a LazyConfig (.py, or the .yaml that detectron2 keeps of one) or of
    yacs settings (.yaml). overrides: `key=value`; of a LazyConfig in Hydra's grammar, `+key=value` for a key that is
    not there yet. Raises ValueError for what is missing, misspelt or no configuration.
    """
    path = Path(config)
    if path.suffix not in (".py", ".yaml", ".yml"):
        path = Path(config_file(config))
    if not path.is_file():
        raise ValueError(f"{path}: there is no such configuration")
    model_zoo_imports_pkg_resources()
    if module:
        import_module(module, "--module ")
    if path.suffix == ".py" or re.search(r"^(model|train|dataloader):", path.read_text(encoding="utf-8"), re.MULTILINE):
        return Loaded(_lazy(path, overrides), str(path))
    return Loaded(_yacs(path, overrides), str(path))


def _lazy(path: Path, overrides: Sequence[str]) -> DictConfig:
    cfg = _of_file(path, lambda: LazyConfig.load(str(path)))
    try:
        for override in OverridesParser.create().parse_overrides(list(overrides)):
            if override.is_delete():
                raise ValueError(f"{override.input_line}: a key cannot be taken away; set it to another value")
            _check_key(cfg, override.key_or_group, override.is_add())
        LazyConfig.apply_overrides(cfg, list(overrides))
    except (HydraException, OmegaConfBaseException, KeyError) as error:
        raise ValueError(f"{' '.join(overrides)}: {_line(error)}") from error
    missing = [key for key in _LAZY if OmegaConf.select(cfg, key) is None]
    if missing:
        raise ValueError(
            f"{path} has no {', '.join(missing)}, which detectron2's loop needs: see {config_file('detr_r50_50e')}"
        )
    return cfg


def _check_key(cfg: DictConfig, key: str, added: bool) -> None:
    """Raise ValueError for a key that neither stands there nor is a parameter of what its section calls.

    added: it may be new, but not to a section that calls what does not take it.
    """
    section, _, last = key.rpartition(".")
    parent = OmegaConf.select(cfg, section) if section else cfg
    calls = isinstance(parent, DictConfig) and "_target_" in parent
    if OmegaConf.is_config(parent) and (last in _keys(parent) or last in _parameters(parent) or (added and not calls)):
        return
    if added and calls and any(p.kind is inspect.Parameter.VAR_KEYWORD for p in _signature(parent).parameters.values()):
        return
    near = difflib.get_close_matches(key, dict.fromkeys(_all_keys(cfg)), n=2)
    hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(map(str, cfg))}."
    add = "" if calls or added else f" +{key}=... adds one"
    taker = f", and {_called(parent).__name__} takes no such argument" if calls else ""
    raise ValueError(f"{key}: the configuration has no such key{taker}; {hint}{add}")


def _keys(node: Any) -> list[str]:
    return [str(key) for key in (node if isinstance(node, DictConfig) else range(len(node)))]


def _parameters(node: Any) -> list[str]:
    """What can be given to the function or class that a section calls."""
    return list(_signature(node).parameters) if isinstance(node, DictConfig) and "_target_" in node else []


def _signature(node: DictConfig) -> inspect.Signature:
    return inspect.signature(_called(node))


def _called(node: DictConfig) -> Callable[..., Any]:
    target = node._target_
    called: Callable[..., Any] = locate(target) if isinstance(target, str) else target
    return called


def _all_keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Every key, with those above it."""
    for key in _keys(node):
        below = node._get_node(key if isinstance(node, DictConfig) else int(key))
        yield f"{prefix}{key}"
        if OmegaConf.is_config(below):
            yield from _all_keys(below, f"{prefix}{key}.")
    yield from (f"{prefix}{name}" for name in _parameters(node))


def _yacs(path: Path, overrides: Sequence[str]) -> CfgNode:
    """Settings from a file: the defaults of our models where it is of one, detectron2's own where it is not."""
    trial = get_cfg()
    add_keys(trial)
    _of_file(path, lambda: trial.merge_from_file(str(path)))
    pairs = [override.partition("=") for override in overrides]
    bad = [name or "(nothing)" for name, equals, _ in pairs if not equals or not name]
    if bad:
        raise ValueError(f"{bad[0]}: settings are given as KEY=VALUE, as in SOLVER.BASE_LR=1e-4")
    given = [part for name, _, value in pairs for part in (name, value)]
    unknown = [name for name, _, _ in pairs if name not in set(_yacs_keys(trial))]
    if unknown:
        near = difflib.get_close_matches(unknown[0], _yacs_keys(trial), n=2)
        hint = f": did you mean {' or '.join(near)}?" if near else ""
        raise ValueError(f"{unknown[0]}: detectron2 has no such key{hint}")
    _of_file(path, lambda: trial.merge_from_list(given))
    cfg = get_cfg()
    (add_detr_container_config if trial.MODEL.META_ARCHITECTURE in _OURS else add_keys)(cfg)
    _of_file(path, lambda: cfg.merge_from_file(str(path)))
    cfg.merge_from_list(given)
    return cfg


def _yacs_keys(node: CfgNode, prefix: str = "") -> Iterable[str]:
    for key, value in node.items():
        yield f"{prefix}{key}"
        if isinstance(value, CfgNode):
            yield from _yacs_keys(value, f"{prefix}{key}.")


def _of_file(path: Path, read: Callable[[], T]) -> T:
    """What a configuration's file gives. Raises ValueError naming the line for whatever goes wrong in it."""
    try:
        return read()
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f"{path} cannot be read: {_line(error)}") from error
    except Exception as error:
        own = [
            frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(path.parent))
        ]
        where = f"{own[-1].filename}, line {own[-1].lineno}" if own else str(path)
        raise ValueError(f"{where}: {_line(error)}") from error


def _line(error: BaseException) -> str:
    """An error on one line; of Python's own, which say little by themselves, with their kind."""
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    kind = "" if isinstance(error, ValueError | KeyError | HydraException | OSError) else f"{type(error).__name__}: "
    return kind + " ".join(text.split())
