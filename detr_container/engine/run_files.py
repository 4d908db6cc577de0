"""What the files of a run hold, as far as anything reads it: the schemas by which `checked` reads them.

null stands for a number that was not finite when it was written.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from detr_container.base.checked import PathText, Schema

Step = Annotated[int, Field(ge=0, le=10**12)]
Number = float | None
Positive = Annotated[float, Field(gt=0, le=1e12)] | None
Fraction = Annotated[float, Field(ge=0, le=1)] | None


class MetricsLine(Schema):
    """A line of metrics.jsonl."""

    step: Step
    epoch: Annotated[float, Field(gt=0, le=1e9)]
    loss: Number = None
    losses: dict[str, Number] | None = None
    lr: Number = None
    grad_norm: Number = None
    images_per_second: Positive = None
    data_wait: Fraction = None
    """The share of time that the main process waited for data; older runs have none."""
    memory_gib: Annotated[float, Field(ge=0, le=1e9)] | None = None
    padding_waste: Annotated[float, Field(ge=0, le=1e9)] | None = None


class EvaluationLine(Schema):
    """A line of evaluations.jsonl."""

    step: Step
    epoch: Annotated[int, Field(ge=1, le=10**9)]
    images: Step = 0
    ap: Fraction = None
    ap50: Fraction = None
    ap75: Fraction = None
    ap_small: Fraction = None
    ap_medium: Fraction = None
    ap_large: Fraction = None
    mask_ap: Fraction = None
    mask_ap50: Fraction = None
    mask_ap75: Fraction = None
    mask_ap_small: Fraction = None
    mask_ap_medium: Fraction = None
    mask_ap_large: Fraction = None


class Git(Schema):
    """The code's version."""

    commit: str | None = None
    dirty: bool = False


class DataVersion(Schema):
    """A split's annotation file, or folder of images."""

    annotations: str = ""
    sha256: str
    images: Step | None = None


class Canvases(Schema):
    """What batches were padded to: (height, width) in pixels."""

    sizes: list[list[Annotated[int, Field(ge=1, le=10**6)]]]


class Reached(Schema):
    """The headline metric of a run: after the step in question (null: not evaluated), at its end, and its best."""

    key: str
    label: str
    scale: float = 100.0
    here: Number = None
    last: Number = None
    best: Number = None


class Changed(Schema):
    """A setting that is not as in the named experiment."""

    named: Any = None
    here: Any = None


class Pretraining(Schema):
    """What weights that a run starts from are: of a run of ours, all that makes it what it is; else what is known."""

    kind: Literal["run", "checkpoint", "file", "published"]
    """A checkpoint is one that lies outside its run; published weights have a name instead of a file."""
    name: str = ""
    path: str = ""
    """As the setting has it."""
    file: str = ""
    sha256: str = ""
    experiment: str = ""
    task: str = ""
    backbone: str = ""
    step: Step | None = None
    epoch: Annotated[float, Field(ge=0, le=1e9)] | None = None
    epochs: Step | None = None
    """Of the whole schedule."""
    seed: Step | None = None
    settings: dict[str, Any] | None = None
    """The recipe: all settings that matter to a result, without the backbone's name."""
    difference: dict[str, Changed] | None = None
    folder: str = ""
    """Its data's."""
    data: dict[str, DataVersion] | None = None
    metric: Reached | None = None
    git: Git | None = None
    pretraining: dict[str, Pretraining] | None = None
    """What that run itself started from."""


class ProvenanceLine(Schema):
    """A line of provenance.jsonl, one per start."""

    step: Step = 0
    git: Git | None = None
    packages: dict[str, str] | None = None
    cpu: str = ""
    gpus: list[str] | None = None
    world_size: Annotated[int, Field(ge=1, le=10**6)] = 1
    micro_batch: Annotated[int, Field(ge=1, le=65_536)] | None = None
    """What `train.micro_batch=0` stood for."""
    data: dict[str, DataVersion] | None = None
    canvases: dict[str, Canvases] | None = None
    pretraining: dict[str, Pretraining] | None = None
    """What it started from, by the setting that names it."""


class EvaluatedWith(Schema):
    """On what and how an evaluation's results were computed."""

    annotations: str = ""


class ScoresFile(Schema):
    """scores.json, beside what an evaluation found."""

    evaluated_with: EvaluatedWith


class PlanFile(Schema):
    """compare.json: what belongs to a comparison."""

    command: str = ""
    members: list[PathText] | None = None
    refused: dict[str, str] | None = None


class Ratio(Schema):
    """A measured time over that of the first experiment."""

    least: float
    median: float
    most: float


class Timing(Schema):
    """A measured time, in seconds."""

    value: Annotated[float, Field(ge=0)]
    ratio: Ratio | None = None


class Measurement(Schema):
    """What was measured of one experiment."""

    device: str = ""
    failure: str | None = None
    figures: dict[str, Timing] = Field(default_factory=dict)


class BenchmarkFile(Schema):
    """benchmark.json."""

    experiments: dict[str, Measurement]
