"""Names that hold anything: markup, formulas, mathematics, HTML and commands of a terminal are text
wherever a run shows them, and what a terminal cannot spell ends no run."""

from __future__ import annotations

import csv
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from kit.repository import ROOT
from rich.table import Table
from rich.text import Text

from fedshift.cli.console import PlainConsole
from fedshift.protocol.tables import cell_text, csv_text, text_cell
from fedshift.protocol.words import plural, short, some, visible
from fedshift.server.tables.files import read_shift, write_shift

Command = Callable[..., Any]

ESC = "\x1b[2J"
SITES = ("[red]x", "=1+1", "$a_b^", "<script>", 'a"b', f"c{ESC}", "_\N{GRINNING FACE}ü", "x" * 200)
"""A slash and what else no folder may be called are refused as a site's name."""
OTHERS = ("[/old]", "=cmd|' /C calc'!A0", "$x^$", "</td><script>alert(1)</script>", f"{ESC}evil")
STRUCTURES = "[/old]", "$wall_^", "<script>x"


def plain_file(path: Path) -> str:
    return path.read_bytes().decode("utf-8")


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of the sites above, of three subjects each, whose images show two structures."""
    folder = tmp_path_factory.mktemp("images")
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:16, :16]
    distance = (rows - 8) ** 2 + (columns - 7) ** 2
    label = (distance < 30).astype(np.uint8) + (distance < 10)
    lines = [("path", "label_path", "site", "subject", "vendor", "label_values")]
    for place, site in enumerate(SITES):
        for number in range(3):
            stem = f"{place}_{number}"
            image = 100.0 * label + random.normal(0, 5, label.shape)
            for name, array in ((stem, image.astype(np.float32)), (f"{stem}_label", label)):
                volume = nib.Nifti1Image(array[..., None].repeat(2, axis=2), np.diag([1, 1, 5, 1]))
                nib.save(volume, folder / f"{name}.nii")
            other = OTHERS[place % len(OTHERS)]
            names = f"0=bg,1={STRUCTURES[0]},2={STRUCTURES[1]}"
            line = (f"{stem}.nii", f"{stem}_label.nii", site, f"{other}{number}", other, names)
            lines.append(line)
    path = folder / "MANIFEST.csv"
    text = io.StringIO()
    csv.writer(text).writerows(lines)
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


class Tags(HTMLParser):
    """The elements of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def check_folder(run: Path) -> None:
    """No page of ``run`` holds a script but its own; no text cell of a table is a formula."""
    pages = sorted(run.rglob("*.html"))
    assert pages
    for page in pages:
        assert Tags(plain_file(page)).tags.count("script") == 1, page
    tables = sorted(run.rglob("*.csv"))
    assert tables
    for path in tables:
        with path.open(newline="", encoding="utf-8") as file:
            for line in csv.reader(file):
                for cell in line:
                    assert cell[:1] not in ("=", "+", "@", "\t", "\r"), path
                    if cell.startswith("-"):
                        float(cell)


def check_screen(outcome: Any) -> None:
    printed = outcome.out + outcome.err
    assert "Traceback" not in printed
    assert "Warning" not in printed, printed
    assert "\x1b" not in printed


def options(table: Path, out: Path) -> tuple[str, ...]:
    return (
        # The same subjects stand at every site.
        "federation=manifest", f"data.manifest={table}", "data.accept=all",
        "data.size=16", "data.spacing_mm=1",
        "method.depth=2", "method.width=2", "rounds=1", "local_steps=1", "engine.devices=cpu",
        "engine.workers=1", f"out={out}",
    )  # fmt: skip


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def finished(table: Path, runs: Path) -> Path:
    """A run of that federation with its report."""
    from fedshift.cli.simulate import simulate

    simulate([*options(table, runs / "run"), "evaluated=[local,global]", "baselines=[local]"])
    return runs / "run"


def test_a_run_shows_such_names_as_they_are(finished: Path) -> None:
    check_folder(finished)
    page = Tags(plain_file(finished / "report.html"))
    for name in (*SITES, *OTHERS, *STRUCTURES[:2]):
        assert name in page.text, name
    with (finished / "cases.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {cell_text(row["site"]) for row in rows} == set(SITES)
    assert {cell_text(row["vendor"]) for row in rows} <= set(OTHERS)


@pytest.mark.parametrize(
    "arguments",
    [
        ("advise",),
        ("evaluate",),
        ("explain",),
        ("sites", "list"),
        ("sites", "inspect"),
        ("sites", "check"),
    ],
    ids=" ".join,
)
def test_every_command_prints_such_names(
    command: Command, table: Path, finished: Path, arguments: tuple[str, ...]
) -> None:
    if arguments[0] in ("advise", "evaluate"):
        trusted = ["--trusted"] if arguments[0] == "evaluate" else []
        outcome = command(*arguments, str(finished), *trusted)
    else:
        outcome = command(*arguments, *options(table, finished)[:6])
    check_screen(outcome)
    assert outcome.code in ((0, 2) if arguments[-1] == "check" else (0,)), outcome.err
    if arguments[0] != "advise":
        assert "[red]x" in outcome.out
    if arguments == ("sites", "list"):
        assert "c\u241b[2J" in outcome.out


def test_a_comparison_of_such_sites(command: Command, table: Path, runs: Path) -> None:
    outcome = command("compare", *options(table, runs / "compare"), "strategy=fedavg,fedprox")
    check_screen(outcome)
    assert outcome.code == 0, outcome.err
    page = runs / "compare" / "comparison.html"
    assert Tags(plain_file(page)).tags.count("script") == 1
    check_folder(runs / "compare")
    assert not re.search(r"<[a-z]", plain_file(runs / "compare" / "comparison.md"))


@pytest.mark.parametrize("name", ["a/b", "..", "all", "a::b", "y" * 201, "ü" * 101])
def test_a_site_that_cannot_be_a_folder_is_refused(
    command: Command, table: Path, tmp_path: Path, name: str
) -> None:
    copy = table.with_name("refused.csv")
    copy.write_text(plain_file(table).replace("=1+1", name), encoding="utf-8")
    outcome = command("sites", "list", "federation=manifest", f"data.manifest={copy}")
    assert outcome.code == 2
    assert len(outcome.err.splitlines()) == 1
    assert name[:20] in outcome.err


# The console.


def shown(*printed: Any, **settings: Any) -> str:
    console = PlainConsole(file=io.StringIO(), width=80, **settings)
    for item in printed:
        console.print(item)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.mark.parametrize("name", ["[/old]", "[red]x[/red]", ":smile:", "[link=a]b", "12 [bold]3"])
def test_the_console_takes_no_name_for_markup(name: str) -> None:
    grid = Table(title=name, caption=name)
    grid.add_column(name)
    grid.add_row(name)
    assert shown(name, grid, Text(name), force_terminal=False).count(name) == 6


def test_the_console_shows_what_a_terminal_would_obey() -> None:
    hostile = "a\x1b[2Jb\x07\x9b31m\x7f\u202egnp.exe\r"
    grid = Table(hostile)
    grid.add_row(Text(hostile, style="bold"))
    seen = shown(hostile, grid, Text.assemble((hostile, "red"), hostile), force_terminal=True)
    seen = re.sub(r"\x1b\[[0-9;]*m", "", seen)  # The console's own colours.
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", seen)
    assert "a\u241b[2Jb\u2407\ufffd31m\u2421\ufffdgnp.exe" in seen


def test_marks_keep_the_length_and_lines_and_tabs_stay() -> None:
    text = "".join(map(chr, range(0x300))) + "\ud800"
    assert len(visible(text)) == len(text)
    assert visible("a\tb\nc ü – 漢") == "a\tb\nc ü – 漢"
    assert visible("\ud83d") == "\ufffd"


def test_long_names_keep_both_ends() -> None:
    assert short("hospital") == "hospital"
    long = [short(f"{'x' * 200}_{number:03d}") for number in (1, 2)]
    assert long[0] != long[1]
    assert {len(name) for name in long} == {40}
    assert short("a\n b\tc\x1b") == "a b c\u241b"


def test_a_sentence_names_three_and_counts_the_rest() -> None:
    names = [f"s{number:03d}" for number in range(500)]
    assert some(names) == "s000, s001, s002 and 497 more"
    assert some(names[:4]) == "s000, s001, s002, s003"
    assert some(names[:5]) == "s000, s001, s002 and 2 more"


# Tables.


@pytest.mark.parametrize(
    "text",
    ["=1+1", "+1", "-1", "@x", "\tx", "\rx", "\nx", "＝1", "'=1", "''-1", "'", "", "'x", " =1",
     "a,b", 'a"b', "a\rb", "a\nb", "\x1b[2J", "x" * 200, "ü –"],
)  # fmt: skip
def test_no_text_cell_is_a_formula_and_all_read_back(text: str, tmp_path: Path) -> None:
    assert cell_text(text_cell(text)) == text
    assert text_cell(text)[:1] not in ("=", "+", "-", "@", "\t", "\r", "\n", "＝")
    row = {"site_a": text, "site_b": "z", "metric": "m", "value": -0.1}
    write_shift(tmp_path / "shift.csv", [row])
    assert read_shift(tmp_path / "shift.csv") == [row]
    assert plain_file(tmp_path / "shift.csv").endswith(",-0.1\n")


def test_numbers_are_written_as_numbers() -> None:
    assert csv_text(["a", "=b"], [[-1, -0.5], ["-1", float("nan")]]) == (
        "a,'=b\n-1,-0.5\n'-1,nan\n"
    )


# Encodings.


@pytest.mark.parametrize(
    ("environment", "arguments"),
    [
        ({"PYTHONIOENCODING": "ascii"}, ("report",)),
        ({"PYTHONIOENCODING": "latin-1"}, ("sites", "list")),
        ({"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, ("sites", "list")),
    ],
    ids=["ascii", "latin-1", "C"],
)
def test_output_that_is_not_utf_8_never_raises(
    table: Path, finished: Path, environment: dict[str, str], arguments: tuple[str, ...]
) -> None:
    """Box characters, en dashes, umlauts; files are read and written as UTF-8 all the same."""
    told = (str(finished),) if arguments == ("report",) else options(table, finished)[:2]
    inherited = {key: text for key, text in os.environ.items() if key[:3] not in ("LC_", "LAN")}
    package = ROOT
    done = subprocess.run(
        [sys.executable, "-c", "from fedshift.cli import main; main()", *arguments, *told],
        env={**inherited, "PYTHONPATH": str(package.parent), **environment},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == b""
    if arguments == ("report",):
        assert b"+---" in done.stdout
        assert SITES[-2] in Tags(plain_file(finished / "report.html")).text
    else:
        assert b"[red]x" in done.stdout
        assert b"\\U0001f600" in done.stdout


def test_a_file_that_the_locale_cannot_name_is_one_sentence(table: Path, tmp_path: Path) -> None:
    """The manifest is read as UTF-8 whatever the locale, and what it names cannot be opened."""
    copy = tmp_path / "images.csv"
    text = plain_file(table).replace("0_0.nii", "ü.nii")
    copy.write_text(text.replace(",=1+1,", ",south,"), encoding="utf-8")
    inherited = {key: text for key, text in os.environ.items() if key[:3] not in ("LC_", "LAN")}
    package = ROOT
    done = subprocess.run(
        [
            sys.executable, "-c", "from fedshift.cli import main; main()", "sites", "inspect",
            "federation=manifest", f"data.manifest={copy}",
        ],
        env={
            **inherited, "PYTHONPATH": str(package.parent), "LC_ALL": "C", "PYTHONUTF8": "0",
            "PYTHONCOERCECLOCALE": "0",
        },
        capture_output=True,
        timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr


def test_several_of_a_noun() -> None:
    nouns = ("mask", "class", "category", "box", "site", "day", "patch")
    several = ["masks", "classes", "categories", "boxes", "sites", "days", "patches"]
    assert [plural(noun) for noun in nouns] == several
