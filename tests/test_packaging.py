"""The three lists of packages agree, and what gets installed holds every file."""

import importlib.metadata as metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

CONDA_NAMES = {"torch": "pytorch"}
CONDA_ONLY = {"python", "pip", "detectron2"}
# The wheels that torch brings for NVIDIA's libraries; torch itself states which versions (see constraints.txt).
TORCHS_OWN = re.compile(r"(nvidia|cuda)-.*|triton")
LINKED = ("models", "datasets", "launch")


def test_pins_satisfy_pyproject(repository: Path) -> None:
    pins = read_pins(repository)
    requirements = direct(repository)
    assert len(requirements) > 15
    for name, requirement in requirements.items():
        assert name in pins, f"{name} is not pinned in constraints.txt"
        assert requirement.specifier.contains(pins[name]), f"{name}=={pins[name]} is not {requirement}"


def test_environment_names_the_same_packages_and_versions(repository: Path) -> None:
    pins = read_pins(repository)
    environment = yaml.safe_load((repository / "environment.yml").read_text())
    assert environment["channels"] == ["conda-forge", "nodefaults"]
    listed = {}
    entries = [entry for entry in environment["dependencies"] if isinstance(entry, str)]
    by_pip = [entry for group in environment["dependencies"] if isinstance(group, dict) for entry in group["pip"]]
    for entry in entries + by_pip:
        name, _, version = entry.partition("==")
        listed[re.split(r"[<>=]", name)[0]] = version
    expected = {CONDA_NAMES.get(name, name): pins[name] for name in direct(repository)}
    assert {name: version for name, version in listed.items() if name not in CONDA_ONLY} == expected
    assert set(listed) >= CONDA_ONLY
    python = next(entry for entry in entries if entry.startswith("python"))
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    assert SpecifierSet(python.removeprefix("python")) == SpecifierSet(project["requires-python"])


@pytest.mark.parametrize("name", ["constraints.txt", "environment.yml", "pyproject.toml"])
def test_no_address_or_file_of_a_machine(repository: Path, name: str) -> None:
    text = (repository / name).read_text()
    assert not re.search(r"://|index[-]url|find[-]links|\bfile:| @ ", text)


def test_everything_installed_is_pinned(repository: Path) -> None:
    """Only `make test` promises the pinned versions; elsewhere a newer torch may be what is to be tried."""
    if not os.environ.get("DETR_CONTAINER_PINNED"):
        pytest.skip("the versions are the pinned ones only under `make test`")
    pins = read_pins(repository)
    installed = closure(direct(repository).values())
    wrong = {
        name: (version, pins.get(name, "not pinned"))
        for name, version in installed.items()
        if not TORCHS_OWN.fullmatch(name) and version.partition("+")[0] != pins.get(name)
    }
    assert len(installed) > 50
    assert wrong == {}


def test_wheel_holds_every_module(repository: Path, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("detr_container", *LINKED, "pyproject.toml", "README.md", "LICENSE"):
        origin = repository / name
        if origin.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(origin, source / name, symlinks=True, ignore=ignored)
        else:
            shutil.copy(origin, source / name)
    wheels = tmp_path / "wheels"
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", wheels, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        packed = {name for name in wheel.namelist() if ".dist-info/" not in name}
        entry_points = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
        assert "detr-container = detr_container.commands.cli:main" in wheel.read(entry_points).decode()
    assert packed == package_files(source)
    assert {f"detr_container/{name}/__init__.py" for name in LINKED} <= packed


def test_installed_package_finds_the_linked_folders(repository: Path, tmp_path: Path) -> None:
    """From another folder, where only the installation can answer."""
    if "detr-container" not in {canonicalize_name(d.name) for d in metadata.distributions()}:
        pytest.skip("detr-container is not installed in this environment; `make test` installs it")
    code = "import importlib.util as u, sys; print([u.find_spec('detr_container.' + n).origin for n in sys.argv[1:]])"
    environ = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", code, *LINKED], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for name in LINKED:
        assert f"detr_container/{name}/__init__.py" in done.stdout


def read_pins(repository: Path) -> dict[str, str]:
    pins = {}
    for line in (repository / "constraints.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([A-Za-z0-9._-]+)==([0-9][0-9A-Za-z.]*)", line)
            assert match, f"constraints.txt: {line!r} is not name==version"
            name = canonicalize_name(match[1])
            assert name not in pins, f"constraints.txt: {name} twice"
            pins[name] = match[2]
    return pins


def direct(repository: Path) -> dict[str, Requirement]:
    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    texts = [*project["dependencies"], *project["optional-dependencies"]["test"]]
    return {canonicalize_name(requirement.name): requirement for requirement in map(Requirement, texts)}


def closure(requirements) -> dict[str, str]:
    """Name and installed version of the packages and of all that they need here."""
    todo = list(requirements)
    seen: dict[tuple[str, frozenset[str]], str] = {}
    while todo:
        requirement = todo.pop()
        key = (canonicalize_name(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        distribution = metadata.distribution(requirement.name)
        seen[key] = distribution.version
        for text in distribution.requires or []:
            needed = Requirement(text)
            extras = ["", *requirement.extras]
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in extras):
                todo.append(needed)
    return {name: version for (name, _), version in seen.items()}


def package_files(source: Path) -> set[str]:
    """All files below detr_container, through its links, as they are named from the top."""
    found = set()
    for folder, _, files in os.walk(source / "detr_container", followlinks=True):
        found |= {os.path.relpath(os.path.join(folder, name), source) for name in files if "__pycache__" not in folder}
    return found
