"""The tree keeps its shape: real links, no shadowing names, files of readable length, nothing of anybody's machine."""

import ast
import os
import re
import subprocess
from pathlib import Path
from statistics import median

import pytest

LINKED = ("models", "datasets", "launch")
MODULES = ("detr_container", *LINKED)
FLOORS = {
    **dict.fromkeys(("base",), 0),
    **dict.fromkeys(("datasets", "launch"), 1),
    **dict.fromkeys(("models", "config", "drawing"), 2),
    **dict.fromkeys(("engine",), 3),
    **dict.fromkeys(("jobs",), 4),
    **dict.fromkeys(("tasks", "measure"), 5),
    **dict.fromkeys(("compare", "d2"), 6),
    **dict.fromkeys(("commands",), 7),
}
"""What may import what: a package those of smaller numbers, none of the same."""
# Written in pieces, so that this file does not find itself.
FORBIDDEN = {
    "a folder of somebody's machine": "/"
    + r"(?:work|root|opt/wheels|home/[a-z][\w.-]*|Users/[A-Za-z][\w.-]*)"
    + r"/\w",
    "a package registry": r"pypi\.org/"
    + r"simple|files\.python"
    + r"hosted|artif"
    + r"actory|jf"
    + r"rog|dev"
    + r"pi\b",
    "a password in an address": r"://[^/\s:@]+:[^/\s:@]+" + "@",
}


@pytest.mark.parametrize("name", LINKED)
def test_links_are_relative_and_resolve(repository: Path, name: str) -> None:
    link = repository / "detr_container" / name
    assert link.is_symlink()
    assert os.readlink(link) == f"../{name}"
    assert link.resolve() == repository / name
    assert (link / "__init__.py").is_file()


def test_git_keeps_the_links_as_links(repository: Path) -> None:
    done = subprocess.run(
        ["git", "-C", repository, "ls-files", "--stage", *(f"detr_container/{name}" for name in LINKED)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode or not done.stdout:
        pytest.skip("not a git repository with these links in it")
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["120000"] * len(LINKED)


def test_nothing_imports_the_bare_names(repository: Path) -> None:
    offenders = [
        f"{path}: {name}"
        for path in python_files(repository)
        for name in imported(ast.parse((repository / path).read_text(encoding="utf-8")))
        if name.split(".")[0] in LINKED
    ]
    assert offenders == []


def test_imports_go_down(repository: Path) -> None:
    """To a lower floor or within one's own, so that there is no circle between floors."""
    up = []
    for path in python_files(repository):
        own = floor(module(path))
        for name in imported(ast.parse((repository / path).read_text(encoding="utf-8")), module(path)):
            other = floor(name)
            if own and other and own != other and FLOORS[other] >= FLOORS[own]:
                up.append(f"{path}: {name}")
    assert up == []


def test_launching_does_without_torch(repository: Path) -> None:
    """So that a job's batch script and `status` need not wait for it."""
    for name in ("launch", "detr_container/base", "detr_container/config"):
        for path in (repository / name).glob("*.py"):
            used = imported(ast.parse(path.read_text(encoding="utf-8")))
            assert not {each.split(".")[0] for each in used} & {"torch", "torchvision", "numpy"}, path


def test_no_file_is_too_long_to_read(repository: Path) -> None:
    lengths = {path: len((repository / path).read_text().splitlines()) for path in python_files(repository)}
    assert len(lengths) > 20
    assert {path: length for path, length in lengths.items() if length > 400} == {}
    assert median(length for path, length in lengths.items() if path.parts[0] in MODULES) <= 120


def test_every_module_states_what_it_is(repository: Path) -> None:
    silent = [
        str(path)
        for path in python_files(repository)
        if path.parts[0] in MODULES and not ast.get_docstring(ast.parse((repository / path).read_text()))
    ]
    assert silent == []


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_trace_of_a_machine(repository: Path, what: str) -> None:
    pattern = re.compile(FORBIDDEN[what])
    found = []
    for path in project_files(repository):
        content = (repository / path).read_bytes()
        if b"\0" in content:
            continue
        lines = content.decode("utf-8").splitlines()
        found += [f"{path}:{number}: {line.strip()}" for number, line in enumerate(lines, 1) if pattern.search(line)]
    assert found == []


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ("a folder of somebody's machine", "cd /" + "work/main"),
        ("a folder of somebody's machine", "data: /" + "home/ada/coco"),
        ("a package registry", "index = https://pypi.org/" + "simple"),
        ("a password in an address", "git clone https://ada:secret" + "@example.org/x"),
    ],
)
def test_traces_would_be_noticed(what: str, line: str) -> None:
    assert re.search(FORBIDDEN[what], line)


def project_files(repository: Path) -> list[Path]:
    """Every file that is or will be committed; without git, every file outside ignored folders."""
    done = subprocess.run(
        ["git", "-C", repository, "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0 and done.stdout:
        names = {Path(name) for name in done.stdout.split("\0") if name}
    else:
        names = set()
        for folder, folders, files in os.walk(repository):
            folders[:] = [name for name in folders if name in (".ci", ".github") or not skipped(name)]
            names |= {Path(folder, name).relative_to(repository) for name in files if name != ".git"}
    return sorted(name for name in names if (repository / name).is_file() and not (repository / name).is_symlink())


def skipped(name: str) -> bool:
    return (
        name.startswith(".") or name.endswith(".egg-info") or name in ("__pycache__", "build", "dist", "runs", "data")
    )


def python_files(repository: Path) -> list[Path]:
    return [path for path in project_files(repository) if path.suffix == ".py"]


def module(path: Path) -> str:
    """The absolute name under which a file is imported; empty for one that is not part of the program."""
    if path.parts[0] not in MODULES:
        return ""
    return ".".join(("detr_container", *path.with_suffix("").parts[path.parts[0] == "detr_container" :]))


def floor(name: str) -> str:
    """The package right below detr_container that a module is in; empty for another's."""
    parts = name.split(".")
    return parts[1] if parts[0] == "detr_container" and len(parts) > 1 and parts[1] in FLOORS else ""


def imported(tree: ast.Module, importer: str = "") -> list[str]:
    """The absolute names that a module imports; relative ones where it is given who imports."""
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.ImportFrom) and node.level and importer:
            names.append(".".join((*importer.split(".")[: -node.level], node.module or "")))
    return names
