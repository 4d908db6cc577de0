"""What README.md and docs/ point at is there, and the commands that they print are those of the program."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from test_layout import FLOORS

from detr_container.base.files import write_json
from detr_container.commands import classifiers, cli, compare, d2, data, detectors, jobs
from detr_container.compare.contest import contest_of
from detr_container.compare.options import CompareOptions
from detr_container.config import arguments
from detr_container.config.experiments import named
from detr_container.config.settings import flatten, to_dict
from detr_container.jobs import sweep
from detr_container.launch.resources import Resources

COMMANDS: tuple[ModuleType, ...] = (cli, classifiers, compare, d2, data, detectors, jobs)
FENCED = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#+ +(.+?) *$", re.MULTILINE)
FILE = re.compile(r"(?:tests|detr_container|models|datasets|launch|docs|\.ci)/[\w./-]*")


class ParsedError(Exception):
    """The options that a command has read; raised where it would begin its work."""


def pages(repository: Path) -> list[Path]:
    """README.md and all pages of docs/."""
    return [repository / "README.md", *sorted((repository / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(prose(page)))
    return {each.replace(" ", "-") for each in words}


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return FENCED.sub("", page.read_text(encoding="utf-8"))


def test_every_link_leads_somewhere(repository: Path) -> None:
    broken, seen = [], 0
    for page in pages(repository):
        for link in LINK.findall(INLINE.sub("", prose(page))):
            if re.match(r"https?://", link):
                continue
            seen += 1
            path, _, anchor = link.partition("#")
            target = (page.parent / path).resolve() if path else page
            if not target.is_file() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.name}: {link}")
    assert broken == []
    assert seen > 20


def test_the_image_of_the_floors_is_that_of_the_imports(repository: Path) -> None:
    image = (repository / "docs" / "floors.svg").read_text(encoding="utf-8")
    drawn = {
        name: int(number)
        for number, floor in re.findall(r'data-floor="(\d+)">(.*?)</g>', image)
        for name in re.findall(r'class="name"[^>]*>(\w+)<', floor)
    }
    assert drawn == FLOORS


def test_every_page_can_be_reached(repository: Path) -> None:
    readme = repository / "README.md"
    linked = {(repository / link.partition("#")[0]).resolve() for link in LINK.findall(prose(readme))}
    assert set(pages(repository)) - {readme} <= linked


def test_every_file_that_is_named_is_there(repository: Path) -> None:
    named_files = [
        (page.name, name)
        for page in pages(repository)
        for code in INLINE.findall(prose(page))
        for name in FILE.findall(code.split(" ")[0])
        if code.startswith(name)
    ]
    assert [(page, name) for page, name in named_files if not (repository / name).exists()] == []
    assert len(named_files) > 20


def printed(page: Path) -> Iterator[str]:
    """The command lines of a page: those of its blocks, and those in a sentence that have no place to fill in."""
    for kind, block in FENCED.findall(page.read_text(encoding="utf-8")):
        if kind == "sh":
            yield from block.replace("\\\n", " ").splitlines()
    yield from (code for code in INLINE.findall(prose(page)) if not re.search(r"\b[A-Z]{2,}\b|\.\.\.", code))


def test_every_make_target_is_there(repository: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (repository / "Makefile").read_text(), re.MULTILINE))
    used = {
        match[1]
        for page in pages(repository)
        for line in printed(page)
        if (match := re.match(r"(?:\w+=\w+ )*make ([\w-]+)", line))
    }
    assert {"demo", "test"} <= used <= targets


def test_every_setting_that_is_named_exists(repository: Path) -> None:
    experiments = [named(name).experiment for name in ("smca_r50_50e", "container_light_in1k")]
    settings = {
        *(name for each in experiments for name in flatten(each)),
        *(f"slurm.{field.name}" for field in fields(Resources)),
    }
    used = {
        match[1].replace("-", "_")
        for page in pages(repository)
        for code in INLINE.findall(prose(page))
        if (match := re.match(r"(?:--)?((?:backbone|head|loss|data|train|slurm)\.[a-z-_]+)(?:$|[ =])", code))
    }
    assert used - settings == set()
    assert len(used) > 10


def test_every_command_is_understood(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As far as its options are read: each by the parser of its command, those of a grid for every run."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(cli.TRACEBACK, "1")
    # `resubmit` begins with the run that it is to resume.
    write_json(tmp_path / "runs" / "smca_r50_50e" / "config.json", to_dict(named("smca_r50_50e").experiment))
    # Of which task a run is, its folder says.
    for name, experiment in (("light", "container_light_in1k"), ("deit", "deit_s_in1k")):
        write_json(tmp_path / "runs" / name / "config.json", to_dict(named(experiment).experiment))
    for module in COMMANDS:
        if hasattr(module, "parse"):
            monkeypatch.setattr(module, "parse", parse_only)
    refused, understood = [], 0
    for page in pages(repository):
        for line in printed(page):
            words = shlex.split(line, comments=True)
            if words[:1] == ["torchrun"] and "detr_container" in words:
                # Without it torchrun takes our --run for one of its own options.
                assert words[words.index("detr_container") - 1] == "--", line
                words = ["detr-container", *words[words.index("detr_container") + 1 :]]
            if words[:1] != ["detr-container"] or len(words) == 1:
                continue
            try:
                cli.main(words[1:])
            except ParsedError as parsed:
                understood += 1
                check_grid(*parsed.args)
            except (ValueError, SystemExit) as error:
                refused.append(f"{page.name}: {line}: {error} {capsys.readouterr().err}")
    assert not refused, "\n".join(refused)
    assert understood > 20


def parse_only(*given: Any) -> None:
    """Read a command's options, and raise them. Raises SystemExit or ValueError for what does not fit."""
    raise ParsedError(arguments.parse(*given))


def check_grid(options: Any) -> None:
    """Raise ValueError where a setting of all runs, or of the grid, does not fit."""
    if isinstance(options, CompareOptions):
        contest_of(options.task).planned(Path(), options)
    elif isinstance(options, jobs.SweepOptions):
        sweep.planned_runs(Path(), options.experiments, options.grid, options.seeds, options.set)
