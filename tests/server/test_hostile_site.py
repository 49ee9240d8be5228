"""One site of a federation answers anything at all: the run ends well, and the others' part of it
is what they said."""

from __future__ import annotations

import json
import math
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from hypothesis import HealthCheck, given, settings
from kit.junk import wrong_content
from kit.replay import Recorded

from fedshift.protocol.flower import ConfigRecord, RecordDict
from fedshift.protocol.messages import ANSWER, Action
from fedshift.protocol.storage import read_tensors
from fedshift.protocol.words import visible
from fedshift.server.record import read_method
from fedshift.server.tables.files import read_cases, read_shift


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Recorded:
    folder = tmp_path_factory.mktemp("recorded") / "run"
    return Recorded.of(
        folder, *TINY, "rounds=1", "baselines=[]", "strategy=fedbn", "method.norm=batch"
    )


def test_a_replay_is_the_run(recorded: Recorded, tmp_path: Path) -> None:
    recorded.play(tmp_path / "run")
    for name in ("cases.csv", "cross_site.csv", "shift.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (recorded.plan.out / name).read_bytes()


KINDS = (
    Action.NAME,
    Action.CARD,
    Action.INITIAL,
    Action.FIT,
    Action.VALIDATE,
    Action.MODEL,
    Action.SCORE,
    Action.STATISTICS,
    Action.SHIFT_ANSWER,
)


def _check(run: Path, known: set[str]) -> None:
    """The run in that folder ended, and nothing that it wrote or said steers a reader."""
    for line in (run / "rounds.jsonl").read_text().splitlines():
        for kind in ("failed", "rejected"):
            assert all(reason == visible(reason) for reason in json.loads(line)[kind].values())
    json.loads((run / "checkpoints" / "evaluation.json").read_text())
    task = read_method(run)
    assert task is not None
    cases = read_cases(run / "cases.csv", task.task)
    assert {row["site"] for row in cases} <= known
    for row in cases:
        for measure in task.task.per_case:
            if measure.listed:
                assert measure.low <= row[measure.name] <= measure.high or measure.sparse
    for row in read_shift(run / "shift.csv"):
        assert math.isfinite(row["value"])
    for tensors in run.glob("checkpoints/round_*.safetensors"):
        held = read_tensors(tensors)
        assert all(np.isfinite(array).all() for array in held.values())


@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_ends_a_run(kind: Action, recorded: Recorded, tmp_path: Path) -> None:
    _attack(kind, recorded, tmp_path, examples=100)


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_no_answer_of_many_ends_a_run(kind: Action, recorded: Recorded, tmp_path: Path) -> None:
    _attack(kind, recorded, tmp_path, examples=2000)


def _attack(kind: Action, recorded: Recorded, folder: Path, examples: int) -> None:
    """Play the run with wrong answers of one ``kind``, by the first site that is asked for it."""
    node = min(node for node, action in recorded.replies if action is kind)
    honest = recorded.replies[node, kind][0]
    known = set(recorded.names)

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(wrong=wrong_content(honest))
    def attack(wrong: RecordDict) -> None:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            run = Path(place) / "run"
            told = wrong.get(ANSWER)
            called = str(told["site"]) if isinstance(told, ConfigRecord) and "site" in told else ""
            recorded.play(run, {(node, kind): lambda _: wrong})
            _check(run, known | ({called} if kind is Action.NAME else set()))

    attack()


def test_a_site_that_takes_anothers_name_is_left_out_with_it(
    recorded: Recorded, tmp_path: Path
) -> None:
    node = recorded.node("vendor_c")
    other = recorded.replies[recorded.node("vendor_b"), Action.NAME][0]
    heard = recorded.play(tmp_path / "run", {(node, Action.NAME): lambda _: other})
    assert any("vendor_b, left out: 2 nodes" in sentence for sentence in heard.said)
    cards = json.loads((tmp_path / "run" / "checkpoints" / "sites.json").read_text())
    assert [card["name"] for card in cards] == ["vendor_a", "vendor_d"]


def test_a_site_that_fails_at_any_time_is_named(recorded: Recorded, tmp_path: Path) -> None:
    for kind in KINDS:
        node = min(node for node, action in recorded.replies if action is kind)

        def fails(content: RecordDict, kind: Action = kind) -> RecordDict:
            return RecordDict({"x": ConfigRecord({"why": kind.value})})

        run = tmp_path / kind.value
        heard = recorded.play(run, {(node, kind): fails})
        notes = json.loads((run / "checkpoints" / "evaluation.json").read_text())
        told = [*heard.said, *notes["problems"]]
        named = "node" if kind is Action.NAME else "vendor_a"  # It has not said its name.
        assert any(" sen" in sentence and named in sentence for sentence in told), kind
