"""Is the comparison fair? What differs between the compared runs beyond backbone and seed, setting by setting."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from detr_container.config.classification import ClassificationExperiment
from detr_container.config.detection import DetectionExperiment
from detr_container.config.settings import Experiment
from detr_container.config.traits import traits_of
from detr_container.models.weights.backbones import origin
from detr_container.tasks.detection.canvases import name_of

from . import pretraining
from .arms import Arm
from .detectron2.experiment import is_theirs
from .reading import RunRecord, settings_of

_STARTS = ("MODEL.WEIGHTS", "train.init_checkpoint")
"""Of the settings of a model of detectron2's, those that do not belong to what is compared."""
_SPLITS = {"train": "training", "val": "validation"}


@dataclass(frozen=True)
class Difference:
    """Something that differs: what it is about, its name, and its value in each of the arms, by label.

    expected: it belongs to what is compared (a head and its loss), so it is listed but is no warning.
    """

    topic: str
    name: str
    values: dict[str, str]
    expected: bool = False

    def __str__(self) -> str:
        """One line."""
        groups: dict[str, list[str]] = {}
        for label, value in self.values.items():
            groups.setdefault(value, []).append(label)
        values = "; ".join(f"{value} ({' and '.join(labels)})" for value, labels in groups.items())
        return f"{self.topic}: {self.name} differs: {values}"


def differences(
    arms: Sequence[Arm],
    eval_settings: Mapping[Path, Mapping[str, Any]],
    data: str = "annotations",
    splits: Sequence[str] = ("train", "val"),
) -> list[Difference]:
    """Everything that differs between the arms, warnings first.

    eval_settings: how each run's evaluation was made; data: what a split's digest is of; splits: of which all runs
    should have the same.
    """
    found = [*_settings_of_all(arms), *_facts(arms, {split: f"{_SPLITS[split]} {data}" for split in splits})]
    found += _evaluations(arms, eval_settings, {difference.name for difference in found})
    return sorted(found, key=lambda difference: difference.expected)


def of_strides(strides: Mapping[str, tuple[int, ...] | None], pyramids: Mapping[str, str]) -> list[Difference]:
    """Whether heads read feature maps of another stride, by arm's label: half of it is four times the positions.

    pyramids: the heads of those arms that read several maps, which belongs to the head as long as all its arms agree.
    """
    known: dict[str, set[tuple[int, ...]]] = {}
    for label, each in strides.items():
        if each is not None:
            known.setdefault(pyramids.get(label, ""), set()).add(each)
    values = {
        label: "unknown" if each is None else f"{', '.join(map(str, each))} pixels" for label, each in strides.items()
    }
    if len(set.union(set(), *known.values())) < 2:
        return []
    return [Difference("feature map", "stride", values, expected=all(len(group) == 1 for group in known.values()))]


def refuse_other_data(records: Sequence[RunRecord], data: str = "the annotation file") -> None:
    """Raise ValueError when runs were trained or evaluated on different data, as far as they noted on which.

    data: what their digests are of.
    """
    for split, word in (("val", "evaluated"), ("train", "trained")):
        groups: dict[str, list[str]] = {}
        for record in records:
            version = record.version(split)
            if version is not None:
                groups.setdefault(version, []).append(str(record.folder))
        if len(groups) > 1:
            listed = "; ".join(f"{version[:12]}: {', '.join(folders)}" for version, folders in groups.items())
            raise ValueError(
                f"these runs were {word} on different data (SHA-256 of {data}, and the runs: {listed}), so "
                "their metrics cannot be compared: report each group by itself"
            )


def _settings_of_all(arms: Sequence[Arm]) -> list[Difference]:
    """Settings that differ between arms of ours, and between those that detectron2 trained, but not between both."""
    labels = [arm.label for arm in arms]
    theirs = {arm.label: arm.experiment.settings for arm in arms if is_theirs(arm.experiment)}
    found = _settings([arm for arm in arms if arm.label not in theirs])
    names = set.intersection(*(set(settings) for settings in theirs.values())) if theirs else ()
    for name in sorted(names):
        values = {label: _text(settings[name]) for label, settings in theirs.items()}
        if len(set(values.values())) > 1:
            compared = name.lower().startswith("model.") and name not in _STARTS
            found.append(Difference("detectron2's settings", name, values, expected=compared))
    if 0 < len(theirs) < len(arms):
        other = "trained by detectron2 (settings not compared)"
        program = {label: other if label in theirs else "trained here" for label in labels}
        found.insert(0, Difference("training", "program", program))
    return [replace(one, values={label: one.values.get(label, "not compared") for label in labels}) for one in found]


def _settings(arms: Sequence[Arm]) -> list[Difference]:
    found: list[Difference] = []
    settings = {arm.label: _settings_of(arm.experiment) for arm in arms}
    # Where all backbones come from runs, what these were says more than their paths.
    records = pretraining.records_of(arms)
    found += [Difference("pretraining", name, values) for name, values in pretraining.differing(records)]
    for name in settings_of(arms[0].experiment) if arms else ():
        values = {label: _text(mine[name]) for label, mine in settings.items()}
        named_above = name == "backbone.name" or (name == pretraining.BACKBONE and bool(records))
        if named_above or len(set(values.values())) == 1:
            continue
        topic = traits_of(type(arms[0].experiment))[name].topic
        by_head: dict[str, set[str]] = {}
        for arm in arms:
            by_head.setdefault(arm.head, set()).add(values[arm.label])
        same_within_heads = all(len(group) == 1 for group in by_head.values())
        found.append(Difference(topic.name, name, values, expected=topic.compared and same_within_heads))
    return found


def _settings_of(experiment: Experiment) -> dict[str, Any]:
    """Settings with what they stand for: one word names other weights for every backbone."""
    if not isinstance(experiment, DetectionExperiment | ClassificationExperiment):
        return settings_of(experiment)
    backbone = experiment.backbone
    return {**settings_of(experiment), "backbone.weights": origin(backbone.name, backbone.weights)}


def _facts(arms: Sequence[Arm], splits: Mapping[str, str]) -> list[Difference]:
    """What provenance says: code, versions, machine."""
    facts: tuple[tuple[str, str, Callable[[dict[str, Any]], str]], ...] = (
        ("code version", "commit", _commit),
        ("code version", "torch", lambda line: str((line.get("packages") or {}).get("torch", "unknown"))),
        ("code version", "torchvision", lambda line: str((line.get("packages") or {}).get("torchvision", "unknown"))),
        ("code version", "timm", lambda line: str((line.get("packages") or {}).get("timm", "unknown"))),
        ("device", "device", _device),
        ("device", "processes", lambda line: str(line.get("world_size", "unknown"))),
        ("images per forward pass", "found to fit", lambda line: str(line.get("micro_batch") or "as set")),
        ("padding", "canvases in training", lambda line: _canvases(line, "training")),
        ("padding", "canvases in evaluation", lambda line: _canvases(line, "evaluation")),
        *(("data version", name, partial(_data, split)) for split, name in splits.items()),
    )
    found = []
    for topic, name, read in facts:
        noted = {arm.label: {read(line) for run in arm.runs for line in run.provenance} for arm in arms}
        # Runs of one arm may share machines of two kinds, as those of the others do.
        mixed = name != "device" and any(len(values) > 1 for values in noted.values())
        values = {label: ", ".join(sorted(values)) or "unknown" for label, values in noted.items()}
        if mixed or len(set(values.values())) > 1:
            found.append(Difference(topic, name, values))
    return found


def _evaluations(
    arms: Sequence[Arm], eval_settings: Mapping[Path, Mapping[str, Any]], listed: set[str]
) -> Iterator[Difference]:
    """What the evaluations themselves noted; listed: names of what differs and is reported already."""
    names = dict.fromkeys(name for one in eval_settings.values() for name in one if name != "annotations")
    for name in names:
        noted = {
            arm.label: {
                _text(eval_settings[run.folder].get(name, "not noted"))
                for run in arm.runs
                if run.folder in eval_settings
            }
            for arm in arms
        }
        mixed = any(len(values) > 1 for values in noted.values())
        values = {label: ", ".join(sorted(values)) for label, values in noted.items()}
        if (mixed or len(set(values.values())) > 1) and not {f"data.{name}", f"train.{name}"} & listed:
            yield Difference("evaluation", name, values)


def _commit(line: dict[str, Any]) -> str:
    git = line.get("git") or {}
    if not git.get("commit"):
        return "unknown"
    return str(git["commit"])[:12] + (" with changes" if git.get("dirty") else "")


def _device(line: dict[str, Any]) -> str:
    gpus = line.get("gpus")
    return str(gpus[0]) if gpus else f"CPU {line.get('cpu', '')}".strip()


def _canvases(line: dict[str, Any], part: str) -> str:
    noted = (line.get("canvases") or {}).get(part)
    return name_of(noted) if noted else "none"


def _data(split: str, line: dict[str, Any]) -> str:
    try:
        return str(line["data"][split]["sha256"])[:12]
    except (KeyError, TypeError):
        return "not noted"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
