"""The report's sections that explain the result: what it costs, why, is it fair, and how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detr_container.measure.costs import Costs

from . import plots, results
from .analysis import Analysis
from .disagreement import sheets
from .document import Column, Section, Table, Value
from .errors import KINDS
from .fairness import Difference
from .results import Pair


def curves(analysis: Analysis) -> Section:
    """How the runs got where they are."""
    text = [
        "The training loss is summed over decoder layers, with the loss's weights; its terms are the last layer's, "
        "without them. Totals and classification losses of different heads are not comparable."
    ]
    return Section("curves", "Learning curves", text, figures=plots.learning_curves(analysis))


def costs(analysis: Analysis, known: Mapping[str, Costs], latencies: Mapping[str, Any]) -> Section:
    """What the accuracy costs: AP against GFLOPs, and against latency where it was measured."""
    caption = "AP against GFLOPs of a forward pass, with 95 % intervals."
    drawings = [plots.against(analysis, "gflops", plots.gflops(known), "GFLOPs", caption)]
    shown = {label: _latency(one) for label, one in latencies.items()}
    times = {label: 1000 * found[1] for label, found in shown.items() if found is not None}
    text = ["No latency was measured: `report --measure` does, on the machine where it is called."]
    tables = []
    if times:
        device = next(iter({one.get("device", "") for one in latencies.values()}))
        size = next(found[0] for found in shown.values() if found is not None)
        caption = f"AP against latency, one image of {size} pixels, {device}."
        drawings.append(plots.against(analysis, "latency", times, "ms an image", caption))
        text = [
            f"Latency is that of a forward pass with post-processing on one image of {size}, measured interleaved on "
            f"{device}: the ratios are what to compare."
        ]
        tables.append(_latency_table(latencies, shown))
    return Section("costs", "What it costs", text, tables=tables, figures=drawings)


def _latency(one: Mapping[str, Any]) -> tuple[str, float] | None:
    """Size and seconds of one image."""
    for key, measured in one.get("figures", {}).items():
        parts = key.split("/")
        # Backbone and total are measured together.
        if parts[0] == "forward" and parts[2:] == ["1", "total"] and f"forward/{parts[1]}/1/backbone" in one["figures"]:
            return parts[1], measured["value"]
    return None


def _latency_table(latencies: Mapping[str, Any], shown: Mapping[str, tuple[str, float] | None]) -> Table:
    columns = [Column("detector"), Column("ms"), Column("of it backbone"), Column("ratio", ".2f"), Column("of rounds")]
    rows: list[list[Value]] = []
    for label, one in latencies.items():
        found = shown[label]
        if found is None:
            rows.append([label, None, None, None, str(one.get("failure") or "")])
            continue
        measured = one["figures"]
        total, backbone = measured[f"forward/{found[0]}/1/total"], measured[f"forward/{found[0]}/1/backbone"]
        ratio = total.get("ratio")
        spread = (
            f"{ratio['least']:.2f} to {ratio['most']:.2f}" if ratio else "the first, by which the others are divided"
        )
        rows.append([label, 1000 * total["value"], 1000 * backbone["value"], ratio["median"] if ratio else 1.0, spread])
    return Table("latency", "Latency of one image, and its ratio to the first row's", columns, rows)


def classes(analysis: Analysis, pairs: Sequence[Pair]) -> Section:
    """For each pair under one head, the classes that gain and lose most."""
    within = [pair for pair in pairs if pair.a.head == pair.b.head] or list(pairs)
    tables = list(results.by_class(analysis, within))
    drawings = [
        plots.class_differences(table, pair, table.name)
        for table, pair in zip(tables, within, strict=True)
        if table.rows
    ]
    text = [
        "AP by class with 95 % intervals of the difference. Among many classes some differ by chance alone; the last "
        "column names those that do not, considering all classes of the pair (Holm)."
    ]
    return Section("classes", "By class", text if tables else [results.NO_PAIR], tables=tables, figures=drawings)


def error_kinds(analysis: Analysis) -> Section:
    """What is lost to each kind of error."""
    columns = [Column("backbone"), Column("head"), *(Column(kind, ".2f") for kind in KINDS)]
    rows: list[list[Value]] = []
    for arm in analysis.evaluated:
        lost = [100 * sum(one.errors.cost[kind] for one in arm.results) / len(arm.results) for kind in KINDS]
        rows.append([arm.backbone, arm.head, *lost])
    text = [
        "By how many points AP50 would rise if only errors of one kind were fixed (TIDE, Bolya et al. 2020; IoU 0.5, "
        "background below 0.1), mean over seeds."
    ]
    table = Table("errors", "Points of AP50 lost to each kind of error", columns, rows)
    return Section("errors", "Kinds of errors", text, tables=[table], figures=plots.errors(analysis))


def calibration(analysis: Analysis) -> Section:
    """Whether scores mean what they say."""
    columns = [Column("backbone"), Column("head"), Column("calibration error", ".3f"), Column("detections", ",d")]
    rows: list[list[Value]] = []
    for arm in analysis.evaluated:
        each = [one.calibration for one in arm.results]
        count = sum(int(one.count.sum()) for one in each)
        rows.append([arm.backbone, arm.head, sum(one.error for one in each) / len(each), count])
    text = [
        "Whether a score means what it says: the mean distance between score and share of right detections, over ten "
        "bins of score weighted by their detections. Most detections have low scores, and weigh accordingly."
    ]
    table = Table("calibration", "Calibration of scores", columns, rows)
    return Section("calibration", "Calibration", text, tables=[table], figures=plots.reliability(analysis))


def images(analysis: Analysis) -> Section:
    """The images on which the models are furthest apart."""
    drawings, trouble = sheets(analysis)
    text = [
        "Images of the largest range of the image's own AP between the models (mean over seeds; classes pooled). "
        "Boxes are the surest of each model's first seed, as many as the image has objects."
    ]
    return Section("images", "Where the models disagree", [*text, trouble] if trouble else text, figures=drawings)


def fairness(found: Sequence[Difference]) -> Section:
    """Everything that differs besides backbone and seed."""
    text = ["What differs between the compared runs besides the backbone and the seed."]
    if not found:
        return Section("fair", "Is it fair?", [*text, "Nothing: every other setting, version and device is the same."])
    labels = list(found[0].values)
    columns = [Column("about"), Column("setting"), *(Column(label) for label in labels), Column("verdict")]
    rows: list[list[Value]] = [
        [one.topic, one.name, *one.values.values(), "belongs to the head" if one.expected else "WARNING"]
        for one in found
    ]
    return Section("fair", "Is it fair?", text, tables=[Table("fair", "Differences of settings", columns, rows)])


def again(analysis: Analysis, commands: str) -> Section:
    """Where every start of every run came from; commands: what made the comparison, and what makes this report."""
    columns = [Column(name) for name in ("run", "commit", "torch", "device", "processes", "started", "command")]
    rows: list[list[Value]] = []
    for record in analysis.records:
        for line in record.provenance:
            git, gpus = line.get("git") or {}, line.get("gpus")
            commit = str(git.get("commit", "unknown"))[:12] + (" with changes" if git.get("dirty") else "")
            device = gpus[0] if gpus else line.get("cpu", "")
            rows.append(
                [
                    str(record.folder),
                    commit,
                    str(line.get("packages", {}).get("torch", "")),
                    str(device),
                    str(line.get("world_size", "")),
                    str(line.get("time", "")),
                    str(line.get("command", "")),
                ]
            )
    table = Table("provenance", "Every start of every run", columns, rows)
    text = [
        "Each run's config.json holds all of its settings; `train` with the same settings and commit gives the same "
        "run, bit for bit on a CPU. What made the comparison, if it was one, and this report:"
    ]
    return Section("again", "How to make it again", text, tables=[table], code=commands)
