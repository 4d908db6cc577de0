"""What a person may hand to the program, one thing wrong with each: made from a seed, in a folder of its own."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mutations import WORDS, replace_file, spoil_bytes, spoil_checkpoint, spoil_json
from PIL import Image

OUTPUTS = {"runs", "data", "predictions", "inspection", "report", "out", "evaluation"}
"""What commands may make in the folder in which they are called."""
ODD = (
    *("[/sw] bolt", "bolt [m8]", ":smile:", "a|b", "<b>x</b>", "$x$", "\\frac", "_under", "名前", "x\ny"),
    *("\x1b[31mred", "a\udcffb", "é" * 100, "-dash", "a b", "'\"", "%s {0}", "*?", "~"),
)
"""Names that mean something to somebody."""
FEW = ("--data.workers", "0", "--train.max-steps", "1", "--train.eval-every", "0", "--device", "cpu")
"""Settings with which `train` ends soon."""


@dataclass
class Case:
    """A command on something that may be wrong.

    folder: holds `work`, in which the command runs, `home` and `tmp`; refused: it must not be taken for right;
    shown: what the command must print all the same; long: a number may rightly make it run for long.
    """

    folder: Path
    what: str
    arguments: Sequence[str]
    environment: dict[str, str] = field(default_factory=dict)
    refused: bool = False
    shown: str = ""
    long: bool = False


@dataclass(frozen=True)
class Base:
    """What all cases start from: a small data set, and two finished runs on it that were local jobs."""

    data: Path
    runs: Path

    @property
    def checkpoint(self) -> Path:
        """The newest checkpoint of the first run."""
        return max((self.runs / "one" / "checkpoints").glob("*.pt"))


def make_base(folder: Path, environment: dict[str, str]) -> Base:
    """Make the data set and both runs, as a person would."""
    base = Base(folder / "data", folder / "runs")
    call = [sys.executable, "-m", "detr_container"]
    shapes = ["data", "make-shapes", str(base.data), "--train", "8", "--val", "4", "--size", "64", "--workers", "1"]
    subprocess.run([*call, *shapes], cwd=folder, env=environment, check=True, capture_output=True)
    for seed, name in enumerate(("one", "two")):
        job = [
            "submit",
            "debug",
            "--run",
            name,
            "--seed",
            str(seed),
            "--cluster",
            "local",
            "--data.root",
            str(base.data),
            "--device",
            "cpu",
        ]
        job += ["--data.workers", "0", "--data.make-shapes", "0", "0", "0"]
        subprocess.run([*call, *job], cwd=folder, env=environment, check=True, capture_output=True)
    end = time.monotonic() + 300
    while not all((base.runs / name / "job" / "history.jsonl").exists() for name in ("one", "two")):
        if time.monotonic() > end:
            raise RuntimeError(f"the runs in {base.runs} did not end")
        time.sleep(0.5)
    return base


class Maker:
    """Makes the cases of one kind. home: where their folders go."""

    def __init__(self, base: Base, home: Path, seed: int) -> None:
        self.base, self.home, self.seed = base, home, seed

    def make(self, kind: str, count: int) -> Iterator[Case]:
        """So many cases of a kind, which is the name of a function below; each is made when it is asked for."""
        for number in range(count):
            folder = self.home / f"{kind}-{number:03d}"
            for name in ("work", "home", "tmp"):
                (folder / name).mkdir(parents=True)
            # By case, so that one of them can be made again alone.
            yield KINDS[kind](self, folder, random.Random(f"{kind} {self.seed} {number}"))

    # -- helpers ------------------------------------------------------------------------------------------------

    def run_copy(self, folder: Path, name: str = "one") -> Path:
        """A copy of a run that may be damaged."""
        return shutil.copytree(self.base.runs / name, folder / "work" / "runs" / name, symlinks=True)

    def data_copy(self, folder: Path) -> Path:
        """A copy of the data set that may be damaged."""
        return shutil.copytree(self.base.data, folder / "work" / "data")

    def images(self) -> list[str]:
        """The validation images."""
        return [str(path) for path in sorted((self.base.data / "val2017").iterdir())]


def run_files(maker: Maker, folder: Path, rng: random.Random) -> Case:
    """A file of a run is not what the program wrote; another run beside it is as it should be."""
    run = maker.run_copy(folder)
    maker.run_copy(folder, "two")
    files = [p for p in run.rglob("*") if p.suffix in (".json", ".jsonl") and p.is_file() and "code" not in p.parts]
    # Kinds of files alike, of which some are in every epoch's folder.
    by_name = {path.name: path for path in files}
    path = by_name[rng.choice(sorted(by_name))]
    what = f"{path.relative_to(run)}: {spoil_json(path, rng)}"
    one, two, image = "runs/one", "runs/two", maker.images()[0]
    calls: dict[str, tuple[list[str], str]] = {
        "status": ([one, two], "runs/two"),
        "report": ([one, two, "--resamples", "8"], "report/index.html"),
        "predict": ([one, image, "--device", "cpu"], ""),
        "evaluate": ([one, "--device", "cpu"], ""),
        "inspect": ([one, two, "--image", image, "--device", "cpu"], ""),
        "logs": ([one], ""),
        "resubmit": ([one, "--cluster", "slurm", "--train.epochs", "3"], ""),
        "cancel": ([one], ""),
        "export": ([one, "out"], ""),
        "train": (["debug", "--run", "one", "--data.root", str(maker.base.data), *FEW], ""),
    }
    command = rng.choice([*calls, "status", "report"])
    arguments, shown = calls[command]
    return Case(folder, what, [command, *arguments], shown=shown)


def checkpoints(maker: Maker, folder: Path, rng: random.Random) -> Case:
    """A checkpoint is damaged, or one of something else."""
    data = ["--data.root", str(maker.base.data)]
    if rng.random() < 0.4:
        run = maker.run_copy(folder)
        newest, *older = sorted((run / "checkpoints").glob("*.pt"), reverse=True)
        for path in older:
            path.unlink()
        what = spoil_checkpoint(newest, rng)
        more = [*FEW, "--train.epochs", "3"]
        calls = [
            ["train", "debug", "--run", "one", *data, *more],
            ["evaluate", "runs/one"],
            ["export", "runs/one", "out"],
        ]
        return Case(folder, what, rng.choice(calls))
    path = Path(shutil.copy(maker.base.checkpoint, folder / "work" / "weights.pth"))
    what = spoil_checkpoint(path, rng)
    calls = [
        ["train", "debug", "--init", "weights.pth", *data, *FEW],
        ["train", "debug", "--backbone.weights", "weights.pth", *data, *FEW],
        ["predict", "weights.pth", maker.images()[0]],
        ["evaluate", "weights.pth", "--data-root", str(maker.base.data), "--output", "out"],
        ["export", "weights.pth", "out", "--layout", rng.choice(("published", "hugging-face", "hugging-face-folder"))],
        ["inspect", "weights.pth", str(maker.base.runs / "two"), "--image", maker.images()[0]],
    ]
    return Case(folder, what, rng.choice(calls))


def images(maker: Maker, folder: Path, rng: random.Random) -> Case:
    """An image that a decoder may die of, among good ones."""
    draw = rng.random()
    if draw < 0.5:
        root = maker.data_copy(folder)
        split = rng.choice(("train", "val"))
        path = rng.choice(sorted((root / f"{split}2017").iterdir()))
        what = _spoil_image(path, rng)
        workers = ["--workers", "1"]
        calls = [
            ["data", "check", "data", *workers],
            ["train", "debug", "--data.root", "data", *FEW, "--train.max-steps", "2", "--data.workers", "1"],
            ["evaluate", str(maker.base.runs / "one"), "--data-root", "data", "--output", "out", "--workers", "0"],
        ]
        return Case(folder, f"{path.name}: {what}", rng.choice(calls))
    inside = folder / "work" / "images"
    inside.mkdir()
    suffix, mode = rng.choice(
        (("png", "RGB"), ("png", "P"), ("png", "I;16"), ("jpg", "RGB"), ("jpg", "CMYK"), ("tif", "RGB"), ("tif", "F"),
         ("bmp", "RGB"), ("gif", "P"), ("webp", "RGBA"), ("png", "LA"))
    )  # fmt: skip
    path = inside / f"it.{suffix}"
    with Image.open(maker.images()[0]) as whole:
        whole.convert("L" if mode == "I;16" else mode).convert(mode).save(path)
    shutil.copy(maker.images()[1], inside / "good.png")
    what = _spoil_image(path, rng)
    shown = "good.png" if rng.random() < 0.5 else ""
    given = "images" if shown else str(path.relative_to(folder / "work"))
    return Case(folder, f"{path.name}: {what}", ["predict", str(maker.base.runs / "one"), given], shown=shown)


def _spoil_image(path: Path, rng: random.Random) -> str:
    if rng.random() < 0.15:
        return replace_file(path, rng)
    data, what = spoil_bytes(path.read_bytes(), rng)
    path.write_bytes(data)
    return what


def folders(maker: Maker, folder: Path, rng: random.Random) -> Case:
    """Image folders of two classes: an image is damaged, or a file or a class has an odd name."""
    root = folder / "work" / "folders"
    for split in ("train", "val"):
        for number, path in enumerate(sorted((maker.base.data / f"{split}2017").iterdir())):
            (root / split / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / split / "ab"[number % 2])
    victim = rng.choice(sorted(root.rglob("*.*")))
    if rng.random() < 0.6:
        what = _spoil_image(victim, rng)
    else:
        named = rng.choice((victim, victim.parent))
        what = f"{rng.choice(ODD)}{'' if named.is_dir() else rng.choice(('', '.jpg', '.PNG'))}".replace("/", "_")
        named.rename(named.with_name(what))
    calls = [
        ["data", "check", "folders", "--workers", "1", "--size", "32"],
        ["data", "check", "folders", "--workers", "1", "--duplicates", "--sample", "1"],
        ["train", "classify_debug", "--data.root", "folders", "--data.make-shapes", "0", "0", "0", *FEW],
    ]
    return Case(folder, f"{victim.relative_to(root)}: {what!r}", rng.choice(calls))


def annotations(maker: Maker, folder: Path, rng: random.Random) -> Case:
    """An annotation file with one thing wrong."""
    root = maker.data_copy(folder)
    split = rng.choice(("train", "val"))
    path = root / "annotations" / f"instances_{split}2017.json"
    what = f"{split}: {spoil_json(path, rng)}"
    calls = [
        ["data", "check", "data", "--workers", "0"],
        ["train", "debug", "--data.root", "data", *FEW],
        ["evaluate", str(maker.base.runs / "one"), "--data-root", "data", "--output", "out"],
        ["report", str(maker.base.runs / "one"), "--annotations", str(path), "--resamples", "8"],
    ]
    return Case(folder, what, rng.choice(calls))


def command_lines(maker: Maker, folder: Path, rng: random.Random) -> Case:
    """An option with a value that nobody thought of, a word too many or too few."""
    os.mkfifo(folder / "work" / "pipe")
    one, two = (str(maker.base.runs / name) for name in ("one", "two"))
    image, data = maker.images()[0], str(maker.base.data)
    usual: dict[str, list[str]] = {
        "train": ["debug", "--data.root", data, *FEW],
        "submit": ["debug", "--data.root", data, "--dry-run"],
        "sweep": ["s", "--experiments", "debug", "--set", f"data.root={data}", "--dry-run"],
        "evaluate": [one, "--output", "out"],
        "predict": [one, image],
        "inspect": [one, two, "--image", image],
        "export": [one, "out"],
        "report": [one, two, "--resamples", "8"],
        "status": [one],
        "logs": [one],
        "data check": [data, "--workers", "0"],
        "data make-shapes": ["data", "--train", "2", "--val", "1", "--size", "32", "--workers", "0"],
        "experiments": [],
        "resubmit": [one, "--cluster", "slurm"],
        "benchmark": ["debug", "--sizes", "32x32", "--rounds", "1"],
        "compare": ["--heads", "detr", "--backbones", "container_light_tiny", "--base", "debug", "--seeds", "0",
                    "--setting", f"data.root={data}", "--dry-run"],
    }  # fmt: skip
    command = rng.choice(
        [name for name in usual if name not in ("compare", "benchmark")] + ["train"] * 6 + ["submit"] * 3
    )
    arguments, what = list(usual[command]), ""
    for _ in range(rng.choice((1, 1, 1, 2))):
        option, word = rng.choice(_options(command)), rng.choice(WORDS)
        place = rng.random()
        if place < 0.7:
            arguments += [option, word]
            what += f" {option} {word!r:.30}"
        elif place < 0.8 and arguments:
            index = rng.randrange(len(arguments))
            what += f" {arguments[index]!r:.20} is {word!r:.30}"
            arguments[index] = word
        elif place < 0.9 and arguments:
            what += f" without {arguments.pop(rng.randrange(len(arguments)))!r:.20}"
        else:
            wrong = option[: rng.randrange(2, len(option))] + rng.choice(("x", ""))
            arguments += [wrong, word]
            what += f" {wrong} {word!r:.30}"
    return Case(folder, what.strip(), [*command.split(), *arguments], long=True)


def _options(command: str) -> list[str]:
    from detr_container.compare.options import ReportOptions
    from detr_container.config.detection import DetectionExperiment
    from detr_container.config.settings import flatten
    from detr_container.launch.resources import Resources

    settings = [f"--{name.replace('_', '-')}" for name in flatten(DetectionExperiment())]
    slurm = [f"--slurm.{name.replace('_', '-')}" for name in Resources.__dataclass_fields__]
    runs = ["--run", "--runs"]
    own = {
        "train": [*settings, *runs],
        "submit": [*settings, *slurm, *slurm, *runs],
        "resubmit": [*settings, *slurm],
        "sweep": ["--grid", "--seeds", "--set", "--at-once", "--runs", *slurm],
        "evaluate": ["--experiment", "--data-root", "--images", "--annotations", "--output", "--evaluator",
                     "--eval-batch", "--workers"],
        "predict": ["--output", "--threshold", "--maps", "--experiment", "--classes"],
        "inspect": ["--output", "--threshold", "--objects", "--experiment", "--weights", "--classes"],
        "export": ["--layout", "--rows", "--classes"],
        "report": [f"--{name}" for name in ReportOptions.__dataclass_fields__ if name != "measure"],
        "logs": ["--rank"],
        "data check": ["--train-images", "--train-annotations", "--val-images", "--val-annotations", "--workers",
                       "--examples", "--sample", "--duplicates", "--size"],
        "data make-shapes": ["--train", "--val", "--size", "--seed"],
    }  # fmt: skip
    return own.get(command, ["--help", "--no-such-option"])


def environments(maker: Maker, folder: Path, rng: random.Random) -> Case:
    """Variables of a launcher with values that cannot be."""
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "SLURM_PROCID",
             "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_CPUS_PER_TASK", "SLURM_JOB_ID", "SLURM_NODEID",
             "SLURM_RESTART_COUNT", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "COLUMNS", "LANG", "PYTHONIOENCODING",
             "TERM", "NO_COLOR")  # fmt: skip
    given = {name: rng.choice(("x", "", "-1", "0", "1", "2", "0.5", "99999999999999999999", "a\nb", "[b]"))
             for name in rng.sample(names, rng.choice((1, 2, 3)))}  # fmt: skip
    if rng.random() < 0.5:
        given = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", **given}
    calls = [
        ["train", "debug", "--data.root", str(maker.base.data), *FEW],
        ["status", str(maker.base.runs / "one")],
        ["submit", "debug", "--data.root", str(maker.base.data), "--dry-run"],
        ["evaluate", str(maker.base.runs / "one"), "--output", "out"],
    ]
    return Case(folder, json.dumps(given), rng.choice(calls), given, long=True)


def names(maker: Maker, folder: Path, rng: random.Random) -> Case:
    """Class names, files and runs whose names mean something to a terminal, a page, a shell or a file system."""
    odd = rng.choice(ODD)
    if rng.random() < 0.6:
        root = maker.data_copy(folder)
        for split in ("train", "val"):
            path = root / "annotations" / f"instances_{split}2017.json"
            content = json.loads(path.read_text())
            content["categories"][0]["name"] = odd
            path.write_text(json.dumps(content))
        longer = [*FEW[:2], "--train.epochs", "1", "--device", "cpu"]
        calls = [["train", "debug", "--data.root", "data", *longer], ["data", "check", "data", "--workers", "0"]]
        return Case(folder, f"class {odd!r}", rng.choice(calls))
    image = folder / "work" / f"{odd.replace('/', '_')}.png"
    shutil.copy(maker.images()[0], image)
    run = maker.run_copy(folder)
    if rng.random() < 0.5:
        renamed = run.with_name(odd.replace("/", "_"))
        run.rename(renamed)
        calls = [
            ["status", "runs"],
            ["report", f"runs/{renamed.name}", "--resamples", "8"],
            ["evaluate", f"runs/{renamed.name}"],
        ]
        return Case(folder, f"run {renamed.name!r}", rng.choice(calls))
    return Case(folder, f"image {image.name!r}", ["predict", "runs/one", f"./{image.name}", "--threshold", "0"])


KINDS: dict[str, Callable[[Maker, Path, random.Random], Case]] = {
    kind.__name__: kind
    for kind in (run_files, checkpoints, images, folders, annotations, command_lines, environments, names)
}


def readable(arguments: Sequence[str]) -> str:
    """A command as one can read it."""
    return " ".join(f"{word!r}" if any(mark in word for mark in " \n[") or not word else word for word in arguments)


def contents(folder: Path) -> dict[str, Any]:
    """Every file below a folder, with what changes when it is written."""
    return {
        str(path.relative_to(folder)): (path.lstat().st_size, path.lstat().st_mtime_ns)
        for path in sorted(folder.rglob("*"))
        if not path.is_dir()
    }
