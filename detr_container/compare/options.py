"""What can be asked of `compare` and `report`; without torch, so that --help need not wait for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from detr_container.base.limits import AtOnce, Many, Seed, between, positive
from detr_container.launch.resources import Resources

PLAN = "compare.json"
"""In a comparison's folder: which runs belong to it."""
RESAMPLES = 1000


@dataclass(frozen=True)
class CompareOptions:
    """Options of `compare`."""

    task: Literal["detection", "classification"] = "detection"
    """What is learnt: boxes, by heads on backbones, or the classes of whole images, by backbones alone."""
    heads: tuple[Literal["detr", "smca", "retinanet", "mask_rcnn"], ...] = ()
    """Heads of detection: each gets every backbone; default: detr and smca. retinanet and mask_rcnn need detectron2."""
    backbones: tuple[str, ...] = ("resnet50", "container_light")
    """Backbones, as backbone.name has them; with =FILE where the pretrained weights are a file."""
    seeds: tuple[Seed, ...] = (0, 1, 2)
    """Seeds: every arm is trained with each. The same seed shows the same images to all."""
    base: str = ""
    """The experiment that all derive from; default: each head's published one, of classification
    container_light_in1k."""
    setting: tuple[str, ...] = ()
    """Settings of all runs: data.root=/data/coco train.epochs=12."""
    name: str = "comparison"
    """Name of the comparison; its runs and its report are in runs/NAME/."""
    runs: Path = Path("runs")
    """The folder that holds the comparison."""
    at_once: AtOnce = 0
    """How many runs at a time; 0: one on this machine, as many as the cluster lets with --submit."""
    submit: bool = False
    """Submit the runs as a Slurm job array; the run that finishes last writes the report."""
    slurm: Resources = field(default_factory=Resources)
    cluster: Literal["slurm", "local"] = "slurm"
    """With --submit: `slurm`, or `local` for the same jobs on this machine, in the background."""
    dry_run: bool = False
    """Show the plan and its cost, and train nothing."""
    measure: bool = True
    """Measure the models' latency, interleaved, for the report; not with --submit."""


@dataclass(frozen=True)
class ReportOptions:
    """Options of `report`."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Runs, folders of runs, or patterns ("runs/*-seed?"); also folders that detectron2 wrote (its OUTPUT_DIR)."""
    output: Path = Path("report")
    """The folder that the report is written to."""
    annotations: Path | None = None
    """The annotation file of the evaluations, where it is not where they name it; it must be the same file. Of folders
    of detectron2's alone it must be given, since they do not name it."""
    epoch: Many = 0
    """Evaluate all runs after this epoch; 0: after their last, and if none is finished after the latest they share."""
    target: Annotated[float, between(0, 1)] = 0.0
    """Of classification: the accuracy to which epochs are counted (0.799); 0: what the weakest arm ended at."""
    resamples: Annotated[int, positive(100_000)] = RESAMPLES
    """How often the validation images are drawn again for the intervals."""
    title: str = ""
    """The page's title."""
    measure: bool = False
    """Measure the models' speed on this machine, too, interleaved; some minutes."""
