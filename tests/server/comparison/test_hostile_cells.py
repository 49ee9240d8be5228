"""A comparison some of whose cells were made to mislead: every file either reads or is refused."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.junk import drawn, texts, wrong_json

from fedshift import UserError
from fedshift.server.comparison.cells import Cell
from fedshift.server.comparison.ranking import rank
from fedshift.server.comparison.read import read

FILES = (
    "cases.csv",
    "cross_site.csv",
    "shift.csv",
    "rounds.jsonl",
    "run.json",
    "checkpoints/sites.json",
    "checkpoints/method.json",
    "checkpoints/evaluation.json",
    "config.yaml",
)


@pytest.fixture(scope="module")
def honest(
    simulate_undrawn: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Two finished cells. Not to be written to."""
    folder = tmp_path_factory.mktemp("cells")
    names = ("fedavg", "fedbn")
    return {name: simulate_undrawn(folder / name, f"strategy={name}") for name in names}


@st.composite
def wrong_table(draw: st.DrawFn, text: str) -> str:
    """A CSV ``text`` with a line gone, twice or cut off, or another cell."""
    lines = text.splitlines()
    place = draw(st.integers(0, len(lines) - 1))
    kind = draw(st.integers(0, 5))
    if kind == 0:
        del lines[place]
    elif kind == 1:
        lines.append(lines[place])
    elif kind == 2:
        return text[: draw(st.integers(0, len(text)))]
    else:
        cells = lines[place].split(",")
        of_numbers = st.sampled_from(("", "nan", "inf", "-1", "1e308", "9" * 400, "7"))
        cells[draw(st.integers(0, len(cells) - 1))] = draw(st.one_of(texts, of_numbers))
        lines[place] = ",".join(cells)
    return "\n".join(lines) + "\n"


@st.composite
def wrong_file(draw: st.DrawFn, name: str, text: str) -> str:
    """The file ``name`` of a cell, which holds ``text``, with something wrong in it."""
    if name.endswith(".csv"):
        return draw(wrong_table(text))
    if name.endswith(".yaml"):
        place = draw(st.integers(0, len(text) - 1))
        return text[:place] + draw(texts) + text[place + draw(st.integers(0, 3)) :]
    lines = text.splitlines() if name.endswith(".jsonl") else [text]
    place = draw(st.integers(0, len(lines) - 1))
    lines[place] = draw(wrong_json(lines[place]))
    return "\n".join(lines) + "\n"


def _mislead(honest: dict[str, Path], examples: int) -> None:
    kept = [name for name in FILES if (honest["fedavg"] / name).exists()]
    held = {name: (honest["fedavg"] / name).read_text() for name in kept}

    @drawn(examples)
    @given(st.data())
    def mislead(data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(kept))
        wrong = data.draw(wrong_file(name, held[name]))
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place) / "fedavg"
            shutil.copytree(honest["fedavg"], folder)
            (folder / name).write_text(wrong, errors="surrogatepass")
            cells = [
                Cell({"strategy": "fedbn"}, honest["fedbn"], "done"),
                Cell({"strategy": "fedavg"}, folder, "done"),
            ]
            try:
                result = rank(read(cells, "strategy=fedbn"), None)
            except UserError as error:
                assert "\n" not in str(error)
                return
            told = [cell for entrant in result.comparison.entrants for cell in entrant.cells]
            failed = [cell for cell in told if cell.status == "failed"]
            assert all(cell.folder == folder and cell.error for cell in failed)

    mislead()


@pytest.mark.parametrize("wrong", [None, {}, "x"])
def test_what_a_round_cost_is_a_number(
    wrong: object, honest: dict[str, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "cell"
    shutil.copytree(honest["fedavg"], folder)
    path = folder / "rounds.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["bytes_up"] = wrong
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    cells = [Cell({"strategy": "fedavg"}, folder, "done")]
    with pytest.raises(UserError, match=r"rounds\.jsonl"):
        rank(read(cells, "strategy=fedavg"), None)


def test_a_cell_that_was_made_to_mislead_is_read_or_named(honest: dict[str, Path]) -> None:
    _mislead(honest, 100)


@pytest.mark.long
def test_of_many_cells_that_were_made_to_mislead_each_is_read_or_named(
    honest: dict[str, Path],
) -> None:
    _mislead(honest, 2000)
