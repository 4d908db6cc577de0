"""A run's own checkpoint that was changed is refused in one line, or taken whole: nothing is lost in silence."""

import copy
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from runs import final_state, one_thread, tiny, train_in

from detr_container.base.interrupt import StopRequest
from detr_container.engine.resume import content_hash
from detr_container.engine.run import Run
from detr_container.engine.session import open_session
from detr_container.engine.trainer import Trainer
from detr_container.tasks.detection.build import open_data
from detr_container.tasks.detection.task import DetectionTask

MUTATIONS = 150
SETTINGS: dict[str, Any] = {"train__ema_decay": 0.9, "train__eval_every": 0, "backbone__norm": "batch"}
State = dict[str, Any]


@pytest.fixture(scope="module")
def saved(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with one checkpoint, of step 3; not to be changed."""
    folder = tmp_path_factory.mktemp("saved") / "run"
    assert train_in(folder, tiny(root, **SETTINGS, train__max_steps=3)) == 0
    return folder


def opened(root: Path, folder: Path, state: State) -> Trainer:
    """The run as it resumes from this state."""
    path = folder / "checkpoints" / "checkpoint-00000003.pt"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(state, path)
    experiment = tiny(root, **SETTINGS)
    with one_thread(), open_session("cpu") as session, StopRequest() as stop:
        return Trainer(DetectionTask(experiment, open_data(experiment)), experiment, Run(folder), session, stop)


def first(state: State) -> State:
    """AdamW's state of one parameter."""
    entry: State = state["optimizer"][0]
    return entry


CHANGES: dict[str, tuple[Callable[[State], object], str]] = {
    "strings": (
        lambda s: s.update(optimizer={str(key): value for key, value in s["optimizer"].items()}),
        "'0' is none of",
    ),
    "fewer": (lambda s: [s["optimizer"].pop(key) for key in list(s["optimizer"])[::2]], "no state of"),
    "more": (lambda s: s["optimizer"].update({999: first(s)}), "more states than parameters"),
    "shapes": (lambda s: first(s).update(exp_avg=first(s)["exp_avg"].flatten()[:1]), r"exp_avg is \[1\], not"),
    "complex moment": (lambda s: first(s).update(exp_avg=first(s)["exp_avg"] + 1j), "complex64"),
    "half moment": (lambda s: first(s).update(exp_avg=first(s)["exp_avg"].half()), "float16, not float32"),
    "nan moment": (lambda s: first(s)["exp_avg"].fill_(float("nan")), "exp_avg is not finite"),
    "negative moment": (lambda s: first(s)["exp_avg_sq"].fill_(-1), "exp_avg_sq is negative"),
    "moment's step": (lambda s: first(s).update(step=3), "step is a int, not a tensor"),
    "no moment": (lambda s: first(s).pop("exp_avg"), "instead of exp_avg, exp_avg_sq, step"),
    "not nested": (lambda s: s["optimizer"].update({0: 1.0}), "1.0 instead of"),
    "no optimizer": (lambda s: s.update(optimizer=[]), "optimizer is a list"),
    "complex weights": (
        lambda s: s["model"].update({"query_embed.weight": s["model"]["query_embed.weight"] + 1j}),
        "c",
    ),
    "double weights": (
        lambda s: s["model"].update({"query_embed.weight": s["model"]["query_embed.weight"].double()}),
        "f",
    ),
    "nan average": (lambda s: s["ema"]["query_embed.weight"].fill_(float("inf")), "average: .* is not finite"),
    "no average": (lambda s: s.pop("ema"), "average: the weights are a NoneType"),
    "no updates": (lambda s: s.pop("ema_updates"), "ema_updates is missing"),
    "no model": (lambda s: s.pop("model"), "the weights are a NoneType"),
    "step text": (lambda s: s.update(step="3"), "step is '3'"),
    "step true": (lambda s: s.update(step=True), "step is True"),
    "step other": (lambda s: s.update(step=2), "step is 2, which is not the file's"),
    "meters text": (lambda s: s.update(meters="x"), "meters is 'x'"),
    "meters short": (lambda s: s.update(meters=[[1.0]]), "not 7 numbers for each process"),
    "classes null": (lambda s: s.update(classes=None), "classes is None"),
    "classes renamed": (
        lambda s: s["classes"][0].__setitem__(1, "cube"),
        "other classes than the data set's: .*'cube'",
    ),
    "classes fewer": (lambda s: s["classes"].pop(), "other classes than the data set's: 'cross'"),
    "experiment": (lambda s: s.update(experiment=[]), "not a configuration"),
    "heads zero": (lambda s: s["experiment"]["head"].update(heads=0), "head.heads"),
    "newer": (lambda s: s.update(format=3), "format is 3, not 1"),
    "no format": (lambda s: s.pop("format"), "format is None"),
    "data": (lambda s: s.update(data={"train": 1}), "data is a dict, not the hashes"),
    "states exchanged": (
        lambda s: s["trained"].insert(0, s["trained"].pop()),
        "the state of .* stands where that of .* is",
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_is_refused(name: str, saved: Path, root: Path, tmp_path: Path) -> None:
    change, message = CHANGES[name]
    state = final_state(saved)
    change(state)
    with pytest.raises(ValueError, match=message) as caught:
        opened(root, tmp_path / "run", state)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "config.json").exists()


def mutated(state: State, draw: random.Random) -> str:
    """Change one value of nested dicts and lists, whichever. Returns where."""
    where: Any = state
    trail = ""
    while True:
        key = draw.choice(list(where) if isinstance(where, dict) else range(len(where)))
        value = where[key]
        trail += f"[{key!r}]"
        if not (isinstance(value, dict | list) and value and draw.random() < 0.9):
            break
        where = value
    if draw.random() < 0.2:
        del where[key]
        return f"{trail} gone"
    others: list[Any] = [None, "x", "1", -1, 10**30, 0.5, True, [], {}, [[[]]], {"a": {"b": 1}}, torch.zeros(1)]
    if isinstance(value, torch.Tensor):
        others += [value.flatten()[:0], value.unsqueeze(0), value.to(torch.complex64), value.to_sparse(), value.bool()]
        others += [value.double(), value.to(torch.bfloat16), value.to("meta"), torch.nn.Parameter(value.float() + 1)]
        others += [value.float().mean().expand(value.shape), value.long().numpy().tolist()]
    where[key] = draw.choice(others)
    return f"{trail} {where[key]!r:.60}"


@pytest.mark.long
def test_a_changed_checkpoint_is_refused_or_the_same_or_taken_whole(
    saved: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seeded changes: a ValueError in one line, or a run whose state is the file's, bit for bit."""
    good, draw = final_state(saved), random.Random(11)
    refused = 0
    for _ in range(MUTATIONS):
        state = copy.deepcopy(good)
        what = mutated(state, draw)
        message, trainer = "", None
        try:
            trainer = opened(root, tmp_path / "run", state)
        except ValueError as error:
            message = str(error)
        assert "\n" not in message, what
        refused += trainer is None
        if trainer is None:
            continue
        taken = trainer._state(state["meters"])
        for key in ("step", "model", "optimizer", "ema", "ema_updates", "meters", "classes"):
            assert content_hash(taken[key]) == content_hash(state[key]), what
    assert refused > MUTATIONS / 2


def test_a_moment_that_lies_otherwise_in_memory_resumes_as_it_should(saved: Path, root: Path, tmp_path: Path) -> None:
    """Transposed, expanded and as a parameter: fused AdamW walks through memory, not through elements."""
    good = final_state(saved)
    changed = copy.deepcopy(good)
    for entry in changed["optimizer"].values():
        for key in ("exp_avg", "exp_avg_sq"):
            if entry[key].dim() > 1:
                entry[key] = torch.nn.Parameter(entry[key].transpose(0, 1).contiguous().transpose(0, 1))
    for name, state in (("a", good), ("b", changed)):
        folder = tmp_path / name
        (folder / "checkpoints").mkdir(parents=True)
        torch.save(state, folder / "checkpoints" / "checkpoint-00000003.pt")
        assert train_in(folder, tiny(root, **SETTINGS, train__max_steps=1)) == 0
    assert content_hash(final_state(tmp_path / "a")["model"]) == content_hash(final_state(tmp_path / "b")["model"])


def test_an_older_checkpoint_resumes(saved: Path, root: Path, tmp_path: Path) -> None:
    """Format 1 had neither the annotation files' hashes nor the names of what was trained."""
    state = final_state(saved)
    state["format"] = 1
    del state["data"], state["trained"]
    assert opened(root, tmp_path / "run", state).step == 3
    state["optimizer"].pop(0)
    with pytest.raises(ValueError, match="no state of"):
        opened(root, tmp_path / "run", state)


@pytest.mark.parametrize("form", [1, 2])
def test_learned_positions_among_the_heads_parameters_are_refused(form: int, root: Path, tmp_path: Path) -> None:
    """Where they stood in format 1, which the format alone shows, and in the first checkpoints of format 2."""
    settings = {"head__position": "learned", "train__eval_every": 0}
    folder = tmp_path / "run"
    assert train_in(folder, tiny(root, **settings, train__max_steps=2)) == 0
    path = folder / "checkpoints" / "checkpoint-00000002.pt"
    state = torch.load(path, weights_only=True)
    entries = dict(zip(state["trained"], state["optimizer"].values(), strict=True))
    # The head as it stands in the model, positions in the middle of it, then the backbone.
    order = [name for name in state["model"] if name in entries and not name.startswith("backbone.")]
    order += [name for name in state["trained"] if name.startswith("backbone.")]
    assert order.index("position.row_embed.weight") < len(order) - 2
    state |= {"format": form, "optimizer": dict(enumerate(entries[name] for name in order)), "trained": order}
    if form == 1:
        del state["data"], state["trained"]
    torch.save(state, path)
    message = {1: "positions trained at the head's rate, now at the backbone's: .* --init", 2: "stands where"}
    with pytest.raises(ValueError, match=message[form]):
        train_in(folder, tiny(root, **settings))


@pytest.mark.parametrize("old", [False, True])
def test_changed_annotations_are_reported_and_recorded(
    old: bool, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data, folder = tmp_path / "data", tmp_path / "run"
    shutil.copytree(root, data)
    assert train_in(folder, tiny(data, **SETTINGS, train__max_steps=2)) == 0
    if old:
        path = Run(folder).checkpoints().paths()[0]
        state = torch.load(path, weights_only=True)
        state["format"] = 1
        del state["data"]
        torch.save(state, path)
    file = data / "annotations" / "instances_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"] = content["annotations"][:3]
    file.write_text(json.dumps(content))
    assert train_in(folder, tiny(data, **SETTINGS, train__max_steps=1)) == 0
    assert f"{file} (validation data) had SHA-256" in caplog.text
    assert "training data" not in caplog.text
    assert "before and after cannot be compared" in caplog.text
    line = json.loads((folder / "provenance.jsonl").read_text().splitlines()[-1])
    assert len(line["changed"]) == 1
    caplog.clear()
    assert train_in(folder, tiny(data, **SETTINGS, train__max_steps=1)) == 0
    assert "SHA-256" not in caplog.text
