"""``fedshift reproduce``: the table beside the paper's, claims judged by seed, runs used again."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from kit.repository import ROOT
from rich.console import Console

from fedshift import UserError
from fedshift.cli.reproduce import render
from fedshift.papers import NUMBERS, PAPERS
from fedshift.papers.bench import Bench, Claim, Paper, Table
from fedshift.papers.result import Reproduction, markdown, number, spread, verdict

Command = Callable[..., Any]


def paper(
    measure: Callable[[Bench, int], Table], *, claims: tuple[Claim, ...] = (), note: str = ""
) -> Paper:
    return Paper(
        number="99",
        title="A paper of the test",
        citation="Nobody et al., 2026",
        published={"clean": {"Dice": 0.5, "HD (mm)": 12.0}, "theirs alone": {"Dice": 0.7}},
        measure=measure,
        claims=claims,
        note=note,
    )


def measured(tables: dict[int, Table], claims: tuple[Claim, ...] = (), note: str = "") -> Any:
    fake = paper(lambda bench, seed: tables[seed], claims=claims, note=note)
    return Reproduction(fake, "small", tables, (), 75.4, {"fedshift": "0"})


def printed(result: Reproduction) -> list[str]:
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(render(result))
    return capture.get().splitlines()


# The table


TABLES: dict[int, Table] = {
    0: {"clean": {"Dice": 0.25, "HD (mm)": 20.0}, "gan": {"Dice": 0.75}},
    1: {"clean": {"Dice": 0.35, "HD (mm)": math.nan}, "gan": {"Dice": 0.80}},
    2: {"clean": {"Dice": 0.30, "HD (mm)": 30.0}, "gan": {"Dice": 0.85}},
}


def test_each_column_shows_the_paper_beside_ours() -> None:
    blocks = dict(measured(TABLES).blocks())

    assert list(blocks) == ["Dice", "HD (mm)"]
    rows = {row: (published, found) for row, published, found in blocks["Dice"]}
    # What was measured comes first; of the paper's own rows the value is kept.
    assert list(rows) == ["clean", "gan", "theirs alone"]
    assert rows["clean"] == (0.5, [0.25, 0.35, 0.30])
    assert math.isnan(rows["gan"][0])
    assert rows["theirs alone"][0] == 0.7
    assert all(map(math.isnan, rows["theirs alone"][1]))
    # A row without any value in this column is left out.
    assert [row for row, *_ in blocks["HD (mm)"]] == ["clean"]


def test_the_printed_table_fits_80_columns_and_holds_mean_sd_and_seeds() -> None:
    lines = printed(measured(TABLES))

    assert max(map(len, lines)) <= 80
    clean = next(line for line in lines if line.startswith(" clean"))
    # 0.25, 0.35, 0.30: mean 0.3, standard deviation (n - 1) 0.05.
    assert clean.split() == ["clean", "0.500", "0.300", "±", "0.050", "0.250", "0.350", "0.300"]
    assert any(line.split()[:5] == ["gan", "–", "0.800", "±", "0.050"] for line in lines)
    assert "0 runs in 1 min 15 s; preset small." in lines


def test_numbers_keep_the_digits_that_matter() -> None:
    values = (math.nan, 0.0, 0.5, -0.12345, 12.345, 0.00012345, -0.0042, 93.2)
    expected = ["–", "0.000", "0.500", "-0.123", "12.35", "0.00012", "-0.0042", "93.20"]
    assert [number(value) for value in values] == [pytest.approx(text) for text in expected]


def test_the_spread_is_over_the_seeds_that_have_a_value() -> None:
    assert spread([math.nan, math.nan]) == "–"
    assert spread([0.5, math.nan]) == "0.500"
    assert spread([0.5, math.nan, 0.7]) == "0.600 ± 0.141"


# Claims


CLAIMS = (
    Claim("the GAN helps", lambda table: table["gan"]["Dice"] > table["clean"]["Dice"]),
    Claim("clean is above 0.28", lambda table: table["clean"]["Dice"] > 0.28),
    Claim("the surface is near", lambda table: table["clean"]["HD (mm)"] < 5),
)


def test_a_claim_is_judged_in_every_seed() -> None:
    result = measured(TABLES, CLAIMS)

    held = [list(result.held(claim).values()) for claim in CLAIMS]
    # What was not measured (nan at seed 1) cannot hold.
    assert held == [[True] * 3, [False, True, True], [False] * 3]
    verdicts = ["held in every seed", "held in 2 of 3", "NOT held"]
    assert [verdict(found) for found in held] == verdicts
    (line,) = (line for line in printed(result) if line.startswith(" clean is above 0.28"))
    assert line.split()[4:] == ["NOT", "held", "held", "held", "held", "in", "2", "of", "3"]
    assert max(map(len, printed(result))) <= 80


def test_the_markdown_holds_the_same(tmp_path: Path) -> None:
    text = markdown(measured(TABLES, CLAIMS, note="Phantoms are a|not patients."))

    assert text.startswith("# 99 A paper of the test\n")
    assert "`fedshift reproduce 99 --seeds 0,1,2`: 0 runs in 1 min 15 s." in text
    assert "| clean | 0.500 | 0.300 ± 0.050 | 0.250 0.350 0.300 |" in text
    assert "| theirs alone | 0.700 | – | – – – |" in text
    assert "| clean is above 0.28 | NOT held | held | held | held in 2 of 3 |" in text
    assert "Phantoms are a|not patients." in text


# The command


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Paper], None]]:
    """Make a paper known under the number 99."""

    def register(fake: Paper) -> None:
        module = ModuleType("fedshift.papers.p99_fake")
        module.PAPER = fake  # type: ignore[attr-defined]
        monkeypatch.setitem(PAPERS, "p99_fake", fake.title)
        monkeypatch.setitem(NUMBERS, "99", "p99_fake")
        monkeypatch.setitem(sys.modules, module.__name__, module)

    yield register


def test_a_paper_is_measured_judged_and_stored(
    command: Command,
    known: Callable[[Paper], None],
    tiny: tuple[str, ...],
    tmp_path: Path,
) -> None:
    steps = ["local_steps=1"]

    def measure(bench: Bench, seed: int) -> Table:
        run = bench.simulate("arm", seed, [*tiny, "rounds=1", "baselines=[local]", *steps])
        own = bench.scores(run, model="local", trained_on="vendor_a")
        return {"arm": {"Dice": bench.scores(run)["vendor_d"], "own": own["vendor_a"]}}

    claims = (Claim("always", lambda _: True), Claim("never", lambda _: False))
    known(paper(measure, claims=claims))
    options = ("reproduce", "99", "--seeds", "3,4", "--out", str(tmp_path / "out"))

    first = command(*options)

    # A claim that does not hold is a finding, not an error.
    assert first.code == 0, first.err
    assert "NOT held" in first.out
    assert "held in every seed" in first.out
    stored = json.loads((tmp_path / "out" / "reproduction.json").read_text())
    assert stored["command"] == "fedshift reproduce 99 --seeds 3,4"
    assert stored["claims"][1] == {"text": "never", "held": {"3": False, "4": False}}
    assert [(run["seed"], run["name"]) for run in stored["runs"]] == [(3, "arm"), (4, "arm")]
    assert stored["runs"][1]["overrides"][-1] == "local_steps=1"
    assert all(run["seconds"] > 0 for run in stored["runs"])
    assert {"fedshift", "python", "torch", "numpy", "flwr"} == set(stored["versions"])
    # The table is the mean over structures of what each run's own table says.
    rows = Bench(tmp_path).rows(tmp_path / "out" / "seed_4" / "arm")
    means = [
        row["mean"]
        for row in rows
        if (row["model"], row["site"], row["metric"]) == ("global", "vendor_d", "dice")
    ]
    assert len(means) == 3
    assert stored["measured"]["4"]["arm"]["Dice"] == pytest.approx(sum(means) / 3, abs=1e-12)
    table = (tmp_path / "out" / "reproduction.md").read_text()

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("seed_*/*/*.csv")}
    second = command(*options)

    # Finished runs are used again, and the numbers are the same.
    assert second.code == 0
    assert "2 runs in" in second.out
    assert "2 of them finished before" in second.out
    again = json.loads((tmp_path / "out" / "reproduction.json").read_text())
    assert again["measured"] == stored["measured"]
    assert [run["seconds"] for run in again["runs"]] == [None] * 2
    assert {path: path.stat().st_mtime_ns for path in before} == before
    text = (tmp_path / "out" / "reproduction.md").read_text()
    assert text.splitlines()[6:] == table.splitlines()[6:]

    # Another config in the same folder is refused, and what is there stays.
    steps[0] = "local_steps=2"
    third = command(*options)
    assert third.code == 2
    assert "seed_3/arm holds a run with other settings" in third.err
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_an_interrupted_reproduction_goes_on(
    command: Command,
    known: Callable[[Paper], None],
    tiny: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fedshift.server import checkpoint

    def measure(bench: Bench, seed: int) -> Table:
        found: Table = {}
        for name in ("first", "second"):
            run = bench.simulate(name, seed, [*tiny, "baselines=[]", "local_steps=1"])
            found[name] = {"Dice": bench.scores(run)["vendor_a"]}
        return found

    known(paper(measure))
    options = ("reproduce", "99", "--seeds", "0", "--out", str(tmp_path / "out"))
    save = checkpoint.save
    saved: list[int] = []

    def stop_in_the_second_run(folder: Path, round: int, *given: Any) -> None:
        save(folder, round, *given)
        saved.append(round)
        if saved == [1, 2, 1]:
            raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save", stop_in_the_second_run)
    stopped = command(*options)
    assert stopped.code == 130
    assert "goes on" in stopped.err
    assert not (tmp_path / "out" / "reproduction.json").exists()

    finished = command(*options)

    assert finished.code == 0, finished.err
    # Of the second run only its second round was still to do.
    assert saved == [1, 2, 1, 2]
    stored = json.loads((tmp_path / "out" / "reproduction.json").read_text())
    assert [run["seconds"] is None for run in stored["runs"]] == [True, False]


def test_what_went_wrong_in_a_run_is_told_with_the_result(
    command: Command,
    known: Callable[[Paper], None],
    tiny: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from fedshift.client.methods.supervised import Supervised

    fit = Supervised.fit

    def diverge(self: Any, site: Any, *given: Any) -> Any:
        if site.name == "vendor_b":
            raise UserError("training diverged; lower method.lr")
        return fit(self, site, *given)

    monkeypatch.setattr(Supervised, "fit", diverge)

    def measure(bench: Bench, seed: int) -> Table:
        run = bench.simulate("arm", seed, [*tiny, "rounds=1", "baselines=[]", "local_steps=1"])
        return {"arm": {"Dice": bench.scores(run)["vendor_b"]}}

    known(paper(measure))
    outcome = command("reproduce", "99", "--seeds", "0", "--out", str(tmp_path / "out"))

    assert outcome.code == 0, outcome.err
    said = "training diverged; lower method.lr"
    assert said in outcome.out
    assert said in (tmp_path / "out" / "reproduction.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("98",), "paper 98 cannot be reproduced; choose one of 01 (Unet-GAN"),
        (("99", "--seeds", "0,x"), "--seeds 0,x is no list of whole numbers"),
        (("99", "--seeds", ""), "is no list of whole numbers"),
        (("99", "--seeds", "-1"), "is no list of whole numbers"),
        (("99", "--seeds", "1,2,1"), "names a seed twice"),
        (("99", "--preset", "smal"), "did you mean small?"),
    ],
)
def test_bad_input_is_one_sentence(
    command: Command,
    known: Callable[[Paper], None],
    arguments: tuple[str, ...],
    sentence: str,
    tmp_path: Path,
) -> None:
    known(paper(lambda bench, seed: {}))
    outcome = command("reproduce", *arguments, "--out", str(tmp_path / "out"))
    assert outcome.code == 2
    assert outcome.err.startswith("fedshift: ")
    assert outcome.err.count("\n") == 1
    assert sentence in outcome.err
    assert not (tmp_path / "out" / "reproduction.json").exists()


def test_a_model_that_a_run_lacks_is_named(reference: Path) -> None:
    bench = Bench(reference)
    assert set(bench.scores(reference, metric="hd95_mm")) == {
        "vendor_a",
        "vendor_b",
        "vendor_c",
        "vendor_d",
    }
    with pytest.raises(UserError, match="holds no dice of the personal model of vendor_a"):
        bench.scores(reference, model="personal", trained_on="vendor_a")


def test_the_help_lists_the_papers_and_imports_nothing_heavy(command: Command) -> None:
    outcome = command("reproduce", "--help")
    assert outcome.code == 0
    for known_number, module in NUMBERS.items():
        assert known_number in outcome.out
        assert PAPERS[module] in outcome.out


def test_every_paper_has_its_page() -> None:
    pages = ROOT / "docs" / "papers"
    index = (pages / "README.md").read_text()
    for known_number, module in NUMBERS.items():
        assert f"[`{known_number}`]({module}.md)" in index
        assert (pages / f"{module}.md").read_text().startswith(f"# {known_number} ")
