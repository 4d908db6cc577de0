"""The sections that a report of any task has beside its results: what they cost, is it fair, how to repeat it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from detr_container.config.settings import Metric

from . import drawings
from .compared import Compared, R
from .detectron2.experiment import is_theirs
from .document import Column, Section, Table, Value
from .fairness import Difference


def costs(
    analysis: Compared[R],
    metric: Metric,
    model: str,
    unit: str,
    amounts: Mapping[str, float],
    latencies: Mapping[str, Any],
) -> Section:
    """What the headline metric costs: against GFLOPs or the like, and against latency where it was measured.

    model: what is compared (a detector); unit: of the amounts, which are by arm's label, as latencies are.
    """
    caption = f"{_capital(metric.label)} against {unit} of a forward pass, with 95 % intervals."
    figures = [drawings.against(analysis, metric, unit.lower(), amounts, unit, caption)]
    shown = {label: _latency(one) for label, one in latencies.items()}
    times = milliseconds(latencies)
    text = ["No latency was measured: `report --measure` does, on the machine where it is called."]
    tables = []
    if times:
        device = next(iter({one.get("device", "") for one in latencies.values()}))
        size = next(found[0] for found in shown.values() if found is not None)
        caption = f"{_capital(metric.label)} against latency, one image of {size} pixels, {device}."
        figures.append(drawings.against(analysis, metric, "latency", times, "ms an image", caption))
        after = " with post-processing" if model == "detector" else ""
        text = [
            f"Latency is that of a forward pass{after} on one image of {size}, measured interleaved on "
            f"{device}: the ratios are what to compare."
        ]
        tables.append(_latency_table(latencies, shown, model))
    return Section("costs", "What it costs", text, tables=tables, figures=figures)


def _capital(words: str) -> str:
    return words[:1].upper() + words[1:]


def milliseconds(latencies: Mapping[str, Any]) -> dict[str, float]:
    """Of one image, by label, where it was measured."""
    shown = {label: _latency(one) for label, one in latencies.items()}
    return {label: 1000 * found[1] for label, found in shown.items() if found is not None}


def _latency(one: Mapping[str, Any]) -> tuple[str, float] | None:
    """Size and seconds of one image."""
    for key, measured in one.get("figures", {}).items():
        parts = key.split("/")
        # Backbone and total are measured together.
        if parts[0] == "forward" and parts[2:] == ["1", "total"] and f"forward/{parts[1]}/1/backbone" in one["figures"]:
            return parts[1], measured["value"]
    return None


def _latency_table(latencies: Mapping[str, Any], shown: Mapping[str, tuple[str, float] | None], model: str) -> Table:
    columns = [Column(model), Column("ms"), Column("of it backbone"), Column("ratio", ".2f"), Column("of rounds")]
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


def again(analysis: Compared[R], commands: str) -> Section:
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
    theirs = any(is_theirs(arm.experiment) for arm in analysis.arms)
    text = [
        "Each run's config.json holds all of its settings; `train` with the same settings and commit gives the same "
        "run, bit for bit on a CPU."
        + " What detectron2 trained has a config.yaml, and is not promised to come out the same." * theirs
        + " What made the comparison, if it was one, and this report:"
    ]
    return Section("again", "How to make it again", text, tables=[table], code=commands)
