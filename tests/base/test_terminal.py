"""Names of classes, files and runs are shown as text everywhere: nothing swallows them, and they command nothing."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from detr_container.base import terminal
from detr_container.base.files import write_json
from detr_container.commands import cli
from detr_container.tasks.detection.scores import METRICS, ClassScore, Scores, markdown, table

NAMES = (
    "[/sw] bolt",
    "bolt [m8]",
    "[bold]x[/bold]",
    ":smile:",
    "[link=x]",
    "a\\[b",
    "\x1b[31mred\x1b]0;title",
    "a\u202eb",
)


def printed(renderable: object) -> str:
    screen = terminal.console(width=200)
    screen.file = io.StringIO()
    screen.print(renderable)
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def scores_of(names: tuple[str, ...]) -> Scores:
    classes = tuple(ClassScore(number, name, 0.5, 0.5, 1) for number, name in enumerate(names))
    return Scores(**dict.fromkeys(METRICS, 0.5), per_class=classes, images=1)


@pytest.mark.parametrize("name", NAMES)
def test_a_name_is_shown_as_it_is_in_lines_tables_and_progress(name: str) -> None:
    grid = Table(name, title=f"of {name}")
    grid.add_row(name)
    for renderable in (name, grid, table(scores_of((name,)))):
        text = printed(renderable)
        assert terminal.shown(name) in text
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", text)
    screen = terminal.console(width=200)
    screen.file = io.StringIO()
    with Progress(terminal.column("{task.description}"), console=screen) as bar:
        bar.add_task(name)
    assert terminal.shown(name) in screen.file.getvalue()


def test_what_would_act_on_a_terminal_or_cannot_be_encoded_is_escaped() -> None:
    assert terminal.shown("a\x1b[2J\nb\u202ec\x9bd\ud800") == r"a\x1b[2J\nb\u202ec\x9bd\ud800"
    assert terminal.shown("a\nb\x1b", keep="\n") == "a\nb\\x1b"
    assert terminal.shown(os.fsdecode(b"caf\xe9")) == r"caf\xe9"
    plain = "\N{SLICE OF PIZZA} [m8] \N{HEBREW LETTER SHIN} e\N{COMBINING ACUTE ACCENT}"
    assert terminal.shown(plain) == plain


def test_a_name_ends_no_cell_of_a_markdown_table() -> None:
    lines = markdown(scores_of(("a | b", "two\nlines"))).splitlines()
    assert r"| a \| b | 50.0 | 50.0 | 1 |" in lines
    assert "| two lines | 50.0 | 50.0 | 1 |" in lines


def test_every_console_is_the_one_that_takes_text_as_text() -> None:
    """The library's own would read brackets and colons in names as commands."""
    root = Path(cli.__file__).resolve().parents[2]
    maker = re.compile(r"\b(Console|TextColumn)\(")
    found = [
        str(path.relative_to(root))
        for folder in ("detr_container", "datasets", "launch", "models")
        for path in sorted((root / folder).rglob("*.py"))
        if maker.search(path.read_text()) and path.name != "terminal.py"
    ]
    assert not found
    # Such is what it prevents.
    written = io.StringIO()
    Console(file=written, width=80).print("bolt [m8]")
    assert "m8" not in written.getvalue()


def test_stray_bytes_of_a_file_name_are_written_as_json_that_all_can_read(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    path = write_json(tmp_path / "a.json", {"file": Path(name), name: [name, float("nan"), "\N{GRINNING FACE}"]})
    escaped = "caf\\udce9.png"
    assert json.loads(path.read_bytes()) == {"file": escaped, escaped: [escaped, None, "\N{GRINNING FACE}"]}
    path.read_bytes().decode().encode()


FOUR_COMMANDS = """
import sys
from detr_container.commands.cli import main
folder = sys.argv[1]
for words in ["status", folder], ["logs", folder], ["report", folder], ["evaluate", folder + "/none.pt"]:
    assert main(words) in (0, 2)
    print("--")
    print("--", file=sys.stderr)
"""


@pytest.mark.parametrize("encoding", ["ascii", "utf-8", "latin-1"])
def test_stray_bytes_are_shown_whatever_the_terminal_can_show(encoding: str, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9 [m8] \x1b[31m"))
    folder.mkdir()
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C", "COLUMNS": "300"}
    done = subprocess.run(
        [sys.executable, "-c", FOUR_COMMANDS, folder], env=environment, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    written = [stream.decode().split("--\n")[:-1] for stream in (done.stdout, done.stderr)]
    assert [len(parts) for parts in written] == [4, 4]
    for output in map("".join, zip(*written, strict=True)):
        assert "Traceback" not in output
        assert r"caf\xe9 [m8] \x1b[31m" in output


def test_predict_without_images_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["predict", str(tmp_path)]) == 2
    assert "error: no image is given" in capsys.readouterr().err


def test_messages_of_a_download_are_printed_once(repository: Path) -> None:
    """timm downloads through huggingface_hub, whose messages have a handler of their own."""
    code = (
        "from detr_container.base.terminal import start_logging; start_logging();"
        "from huggingface_hub.utils import logging; logging.get_logger('huggingface_hub.utils').warning('Retrying')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=repository, stderr=subprocess.PIPE, text=True, check=True)
    assert done.stderr.count("Retrying") == 1
