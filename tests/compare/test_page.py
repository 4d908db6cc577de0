"""The report in a real browser: complete without a network, legible on a phone and on paper, for all eyes, right."""

from __future__ import annotations

import csv
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import synthetic_classifiers
import synthetic_reports
import synthetic_runs
from browser import SIGHTS, Media, Scheme, apart, browser, contrast, settle
from PIL import Image
from playwright.sync_api import Browser, Page

from detr_container.compare.options import ReportOptions
from detr_container.compare.report import write_report
from detr_container.compare.svg import series_style

REPORTS = ("two seeds", "one seed", "masks", "awkward", "classifiers", "awkward classifiers")
A4_LANDSCAPE = 1032
"""CSS pixels between the margins of 12 mm."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("reports")
    return {
        "two seeds": synthetic_reports.ordinary(folder / "two", seeds=2),
        "one seed": synthetic_reports.ordinary(folder / "one", seeds=1),
        "masks": synthetic_reports.ordinary(folder / "masks", seeds=2, arms=synthetic_runs.WITH_MASKS),
        "awkward": synthetic_reports.awkward(folder / "awkward"),
        "classifiers": synthetic_classifiers.ordinary(folder / "classifiers", seeds=2),
        "awkward classifiers": synthetic_classifiers.awkward(folder / "awkward-classifiers"),
    }


@pytest.fixture(scope="module", params=REPORTS)
def report(request: pytest.FixtureRequest, reports: dict[str, Path]) -> Path:
    return reports[request.param]


@pytest.fixture
def page(chromium: Browser, report: Path) -> Iterator[Page]:
    opened = chromium.new_page()
    opened.goto(report.as_uri())
    yield opened
    opened.close()


def colour(text: str) -> list[float]:
    """`rgb(1, 2, 3)` or `#010203` as numbers."""
    if text.startswith("#"):
        text = "".join(2 * one for one in text[1:]) if len(text) == 4 else text[1:]
        return [int(text[place : place + 2], 16) for place in (0, 2, 4)]
    return [float(number) for number in re.findall(r"[\d.]+", text)]


def test_nothing_is_fetched_or_run(chromium: Browser, report: Path) -> None:
    context = chromium.new_context()
    opened, tried, messages = context.new_page(), [], []
    opened.route("**/*", lambda route: route.continue_() if route.request.url == report.as_uri() else route.abort())
    opened.on("request", lambda request: tried.append(request.url))
    opened.on("console", lambda message: messages.append(message.text))
    opened.on("pageerror", lambda error: messages.append(str(error)))
    opened.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
    opened.goto(report.as_uri(), wait_until="networkidle")
    for width in (360, 1280):
        settle(opened, width)
    assert {url for url in tried if not url.startswith("data:")} == {report.as_uri()}
    assert not messages
    strange = opened.evaluate("""() => [...document.querySelectorAll('*')].filter(one =>
        ['SCRIPT', 'IFRAME', 'OBJECT', 'EMBED', 'LINK', 'FORM', 'foreignObject'].includes(one.tagName)
        || [...one.attributes].some(a => a.name.startsWith('on')
            || (['href', 'src', 'xlink:href', 'action'].includes(a.name) && !/^(#|data:image.jpeg)/.test(a.value))
            || (a.name == 'style' && /url\\((?!#)/.test(a.value)))).map(one => one.outerHTML.slice(0, 200))""")
    assert not strange
    context.close()


def test_it_never_scrolls_sideways_but_in_its_tables(page: Page) -> None:
    for width in (320, 360, 768, 1280):
        settle(page, width)
        wide, beyond = page.evaluate("""() => [document.documentElement.scrollWidth,
            [...document.body.querySelectorAll('*')]
                .filter(one => !one.closest('.scroll > *') && !one.closest('svg > *'))
                .filter(one => one.getBoundingClientRect().right > innerWidth + .5)
                .map(one => one.outerHTML.slice(0, 100))]""")
        assert wide <= width
        assert not beyond
    regions = page.evaluate("""() => [...document.querySelectorAll('.scroll')].map(one => { one.focus(); return [
        one.tabIndex, one.getAttribute('role'), !!one.getAttribute('aria-label').trim(), document.activeElement === one,
        getComputedStyle(one).overflowX]; })""")
    assert regions
    assert all(one == [0, "region", True, True, "auto"] for one in regions)


def test_letters_are_large_enough_and_whole_on_a_phone_and_a_desk(page: Page) -> None:
    for width, least in ((320, 10.5), (360, 11), (768, 11), (1280, 11)):
        settle(page, width)
        small = page.evaluate(
            """least => { const found = [], walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
            while (walk.nextNode()) { const one = walk.currentNode.parentElement;
                if (!walk.currentNode.data.trim() || one.closest('title') || !one.getClientRects().length) continue;
                const svg = one.closest('svg'), scale = svg ? svg.getScreenCTM().a : 1;
                const size = scale * parseFloat(getComputedStyle(one).fontSize);
                if (size < least) found.push([size, walk.currentNode.data]); }
            return found; }""",
            least,
        )
        assert not small
        cut = page.evaluate("""() => [...document.querySelectorAll('svg text')].filter(one => {
            const a = one.getBoundingClientRect(), b = one.closest('svg').getBoundingClientRect();
            return a.left < b.left - 1 || a.right > b.right + 1 || a.top < b.top - 1 || a.bottom > b.bottom + 1;
        }).map(one => [one.textContent, one.closest('figure').id])""")
        assert not cut


def test_top_1_is_never_broken(chromium: Browser, reports: dict[str, Path]) -> None:
    page = chromium.new_page()
    page.goto(reports["classifiers"].as_uri())
    for width in (360, 1180):
        settle(page, width)
        lines = page.evaluate("""() => { const found = [], walk = document.createTreeWalker(document.body, 4);
            while (walk.nextNode()) { const one = walk.currentNode;
                if (one.parentElement.closest('svg, code, pre')) continue;
                for (const match of one.data.matchAll(/top-[15]/g)) { const range = document.createRange();
                    range.setStart(one, match.index); range.setEnd(one, match.index + 5);
                    found.push([one.data, new Set([...range.getClientRects()].map(box => box.top)).size]); } }
            return found; }""")
        assert len(lines) > 10
        assert [text for text, count in lines if count > 1] == []
    page.close()


def test_names_of_series_and_ticks_do_not_lie_on_one_another(page: Page) -> None:
    for width in (360, 1280):
        settle(page, width)
        upon = page.evaluate("""() => [...document.querySelectorAll('svg')].flatMap(svg => {
            const all = [...svg.querySelectorAll('text')].map(one => [one.textContent, one.getBoundingClientRect()]);
            return all.flatMap(([name, a], i) => all.slice(i + 1).filter(([_, b]) =>
                Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
                && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 4)
                .map(([other]) => [svg.closest('figure').id, name, other])); })""")
        assert not upon


def test_it_can_be_read_aloud_and_walked_through(page: Page) -> None:
    content = page.evaluate("""() => { const all = name => [...document.querySelectorAll(name)]; return {
        lang: document.documentElement.lang, title: document.title, levels: all('h1,h2,h3,h4').map(h => +h.tagName[1]),
        images: all('img').map(one => one.alt.trim()), main: all('main').length,
        drawings: all('svg').map(svg => [svg.getAttribute('role'), svg.firstElementChild.tagName,
            svg.firstElementChild.textContent.trim().length > 20, svg.closest('figure').innerText.trim().length > 5]),
        tables: all('table').map(one => [one.caption.textContent.trim() != '', !!one.closest('.scroll'),
            [...one.tHead.rows[0].cells].every(c => c.scope == 'col' && c.textContent.trim()),
            [...one.tBodies[0].rows].every(row => row.cells[0].scope == 'row' && row.cells[0].textContent.trim())]),
        anchors: all('nav a').map(one => document.getElementById(one.hash.slice(1))?.tagName),
        sections: all('main > section').length,
        ids: all('[id]').map(one => one.id) }; }""")
    assert content["lang"] == "en"
    assert content["title"] == page.locator("h1").inner_text()
    assert content["levels"][0] == 1
    assert content["levels"].count(1) == 1
    assert max(b - a for a, b in zip(content["levels"], content["levels"][1:], strict=False)) == 1
    assert content["main"] == 1
    assert content["images"]
    assert all(content["images"])
    assert content["drawings"]
    assert all(one == ["img", "title", True, True] for one in content["drawings"])
    assert content["tables"]
    assert all(all(one) for one in content["tables"])
    assert content["anchors"] == ["SECTION"] * content["sections"]
    assert len(set(content["ids"])) == len(content["ids"])


def test_the_contents_lead_to_the_sections(page: Page) -> None:
    settle(page, 360)
    for link in page.locator("nav a").all():
        link.click()
        title = page.locator(f"section{page.evaluate('location.hash')} > h2")
        assert title.inner_text() == link.inner_text()
        box = title.bounding_box()
        assert box is not None
        assert -1 <= box["y"] < 800


SCHEMES: dict[str, tuple[Media, Scheme]] = {
    "light": ("screen", "light"),
    "dark": ("screen", "dark"),
    "paper": ("print", "dark"),
}


def _series(page: Page) -> list[list[float]]:
    names = [f"--s{number}" for number in range(8)]
    found = page.evaluate("all => all.map(one => getComputedStyle(document.body).getPropertyValue(one).trim())", names)
    return [colour(one) for one in found]


def _ground(page: Page) -> list[float]:
    return colour(page.evaluate("getComputedStyle(document.body).backgroundColor"))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_text_and_series_stand_out(page: Page, scheme: str) -> None:
    settle(page, 1280, *SCHEMES[scheme])
    pairs = page.evaluate("""() => { const found = {}, walk = document.createTreeWalker(document.body, 4);
        while (walk.nextNode()) { const one = walk.currentNode.parentElement;
            if (!walk.currentNode.data.trim() || one.closest('title') || !one.getClientRects().length) continue;
            let under = one, ground = 'rgba(0, 0, 0, 0)';
            while (under && ground == 'rgba(0, 0, 0, 0)') {
                ground = getComputedStyle(under).backgroundColor; under = under.parentElement; }
            const style = getComputedStyle(one);
            found[(one.closest('svg') ? style.fill : style.color) + '/' + ground] = walk.currentNode.data; }
        return found; }""")
    assert len(pairs) >= 3
    faint = {text: pair for pair, text in pairs.items() if contrast(*map(colour, pair.split("/"))) < 4.5}
    assert not faint
    ground = _ground(page)
    assert (ground == [255, 255, 255]) == (scheme != "dark")
    assert min(contrast(one, ground) for one in _series(page)) >= 3
    used = page.evaluate("""() => [...new Set([...document.querySelectorAll('svg path, svg use')].flatMap(one => {
        const style = getComputedStyle(one); return [style.fill, style.stroke]; }))]""")
    known = [*_series(page), ground]
    for name in ("--ink", "--grid"):
        known.append(colour(page.evaluate(f"getComputedStyle(document.body).getPropertyValue('{name}').trim()")))
    # Nothing is drawn in a colour that does not follow the page.
    plain = [colour(one)[:3] for one in used if one.startswith("rgb")]
    assert [one for one in plain if one not in known and one != [0, 0, 0]] == []


def test_series_are_told_apart_by_all_eyes_and_without_colour(chromium: Browser, reports: dict[str, Path]) -> None:
    page = chromium.new_page()
    page.goto(reports["awkward"].as_uri())
    for scheme in SCHEMES.values():
        settle(page, 1280, *scheme)
        series = _series(page)
        for sight in SIGHTS:
            assert apart(series[:4], sight) > 20
            assert apart(series, sight) > 10
    assert len({series_style(number)["marker"] for number in range(8)}) == 8
    dashes = page.evaluate("""() => [...document.querySelectorAll('#figure-curves-ap-1 svg path')]
        .map(one => one.getAttribute('style') ?? '')
        .filter(style => /var\\(--s\\d/.test(style) && !/opacity/.test(style))
        .map(style => [style.match(/--s\\d/)[0], (style.match(/dasharray: ([^;]*)/) ?? ['', ''])[1]])""")
    lines = {name: {dash for other, dash in dashes if other == name} for name, _ in dashes}
    assert len(lines) == 4
    assert len({dash for each in lines.values() for dash in each if dash or len(each) == 1}) >= 4
    bars = page.evaluate("""() => [...document.querySelectorAll('#figure-errors-1 svg g > path')]
        .map(one => one.getAttribute('style') ?? '').map(style => style.match(/fill: (url\\(#[^)]*\\)|var\\(--s\\d)/))
        .filter(one => one).map(one => one[1])""")
    assert len(set(bars)) == 4, "one plain and three hatched"
    page.close()


def test_a_backbone_has_one_colour_in_the_whole_report(reports: dict[str, Path]) -> None:
    """Also under a head with which another backbone has no result."""
    drawing = (
        (reports["awkward"].parent / "index.html").read_text().split('id="figure-precision-2"')[1].split("</svg>")[0]
    )
    assert {"--s0", "--s1", "--s3"} == set(re.findall(r"--s\d", drawing))


def test_it_can_be_printed(page: Page) -> None:
    settle(page, A4_LANDSCAPE, "print", "dark")
    assert _ground(page) == [255, 255, 255]
    beyond = page.evaluate("""() => [...document.body.querySelectorAll('*')]
        .filter(one => one.getBoundingClientRect().right > innerWidth + .5).map(one => one.outerHTML.slice(0, 100))""")
    assert not beyond
    assert page.evaluate("[...document.querySelectorAll('main > section')].every(one => one.offsetHeight > 40)")
    titles = page.locator("h2").all_inner_texts()
    paper = page.pdf(prefer_css_page_size=True, print_background=True, tagged=True, outline=True)
    outline = re.findall(rb"/Title \(((?:[^()\\]|\\.)*)\)", paper)
    assert [title.encode() for title in titles if title.encode() not in outline] == []


def _numbers(text: str) -> list[str]:
    return re.findall(r"-?\d[\d,]*(?:\.\d+)?", text.replace("\N{MINUS SIGN}", "-"))


def _shown(page: Page, name: str) -> list[dict[str, str]]:
    rows: Any = page.evaluate(
        """name => [...document.getElementById(name).rows].map(row => [...row.cells].map(cell => cell.textContent))""",
        f"table-{name}",
    )
    return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]


def test_numbers_are_those_of_the_files(page: Page, report: Path) -> None:
    held = json.loads((report.parent / "report.json").read_text())
    tables = {name: rows for section in held["sections"] for name, rows in section["tables"].items()}
    assert {path.stem for path in (report.parent / "tables").iterdir()} == set(tables)
    compared = 0
    for name, rows in tables.items():
        with (report.parent / "tables" / f"{name}.csv").open(newline="") as file:
            plain = list(csv.DictReader(file))
        assert len(rows) == len(plain)
        for row, cells in zip(rows, plain, strict=True):
            assert {key: text for key, text in cells.items() if text} == {
                key: str(value) for key, value in row.items() if value not in (None, "")
            }
        for shown, row in zip(_shown(page, name), rows, strict=True):
            for title, text in shown.items():
                # The heading has the word on a line of its own.
                theirs = title.removesuffix("published")
                title = title if theirs == title else theirs if theirs == "source" else f"published {theirs}"
                values = [row[title], *(row.get(f"{title} {part}") for part in ("sd", "low", "high"))]
                if not isinstance(values[0], float | int) or isinstance(values[0], bool):
                    assert text == {None: "\N{EN DASH}", True: "yes", False: "no"}.get(values[0], values[0])
                    continue
                if text.startswith("<"):
                    assert 0 <= values[0] < float(text[1:])
                    continue
                known = [value for value in values if value is not None]
                written = _numbers(text.replace("+", ""))
                assert len(known) == len(written)
                for value, number in zip(known, written, strict=True):
                    assert f"{value:,.{len(number.partition('.')[2])}f}" == number
                    compared += 1
    assert compared > 100


def test_markdown_has_the_same_tables_and_sentences(chromium: Browser, reports: dict[str, Path]) -> None:
    page, report = chromium.new_page(), reports["two seeds"]
    page.goto(report.as_uri())
    text = (report.parent / "report.md").read_text().replace("&lt;", "<")
    lines = [line for line in text.splitlines() if line.startswith("| ") and not line.startswith("| :---")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    shown = page.evaluate("[...document.querySelectorAll('tr')].map(row => [...row.cells].map(c => c.textContent))")
    assert [[cell.replace(" (published)", "published") for cell in row] for row in cells] == shown
    for sentence in page.locator("p, .warnings li").all_text_contents():
        assert sentence in text.replace("`", "")
    for name in re.findall(r"!\[[^]]+\]\((figures/[^)]+)\)", text):
        assert (report.parent / name).is_file()
    page.close()


def test_every_figure_is_a_file_of_its_own(page: Page, report: Path) -> None:
    names = page.evaluate("[...document.querySelectorAll('figure')].map(one => one.id.replace('figure-', ''))")
    files = {path.stem: path for path in (report.parent / "figures").iterdir()}
    assert set(names) == set(files)
    for path in files.values():
        if path.suffix == ".jpg":
            with Image.open(path) as image:
                image.load()
            continue
        drawing = ET.parse(path).getroot()
        assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
        assert drawing.get("viewBox")
        assert drawing.findtext("{http://www.w3.org/2000/svg}title")
        # Not every program that shows SVG knows variables.
        assert "var(" not in path.read_text()
    text = report.read_text()
    used, bare = set(re.findall(r"var\((--[\w-]+), ", text)), re.findall(r'style="[^"]*var\(--[\w-]+\)', text)
    assert used
    assert not bare, "a drawing's variable needs a colour for where there is no page"
    assert {name for name in used if f"{name}: " not in text} == set()


def test_names_are_shown_as_they_are(chromium: Browser, reports: dict[str, Path]) -> None:
    page = chromium.new_page()
    page.goto(reports["awkward"].as_uri())
    rows = page.locator("#table-results tbody th").all_text_contents()
    assert rows == 2 * list(synthetic_reports.BACKBONES)
    drawn = page.locator("#figure-curves-ap-1 svg text").all_text_contents()
    for name in synthetic_reports.BACKBONES:
        assert name.replace(" ", "") in "".join(drawn).replace(" ", "")
    assert synthetic_reports.ATTACK in page.locator(".warnings").first.inner_text()
    page.close()


def test_the_same_runs_give_the_same_bytes(reports: dict[str, Path]) -> None:
    folder = reports["one seed"].parent
    before = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    write_report(ReportOptions((str(folder.parent / "runs"),), output=folder, resamples=50))
    after = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert [name for name in before if before[name] != after[name]] == []
    assert before.keys() == after.keys()
