"""One site of a federation answers anything at all: the run ends well, and the others' part of it
is what they said."""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from conftest import TINY
from hypothesis import given
from kit.junk import drawn, wrong_content
from kit.replay import Recorded

from fedshift.protocol import statistics as names
from fedshift.protocol.flower import ConfigRecord, Error, Message, RecordDict
from fedshift.protocol.messages import (
    ANSWER,
    ARRAYS,
    STATISTICS,
    Action,
    details,
    pack_arrays,
    read_arrays,
)
from fedshift.protocol.storage import read_tensors
from fedshift.protocol.words import visible
from fedshift.server.exchange import exchange
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

    @drawn(examples)
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


def _notes(run: Path) -> list[str]:
    problems: list[str] = json.loads((run / "checkpoints" / "evaluation.json").read_text())[
        "problems"
    ]
    return problems


def _telling(**told: Any) -> Callable[[RecordDict], RecordDict]:
    """What changes the details of an answer."""

    def change(content: RecordDict) -> RecordDict:
        record = content[ANSWER]
        assert isinstance(record, ConfigRecord)
        fields = {**details(content), **told}
        content[ANSWER] = ConfigRecord({**record, "details": json.dumps(fields)})
        return content

    return change


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"name": "vendor_b"}, "sent the card of 'vendor_b'"),
        ({"size": [16384, 16384]}, "its card says size (16384, 16384), and most sites say"),
        ({"parts": ["other"], "labelled": [], "teaches": {"other": 0}}, "its card says parts"),
    ],
)
def test_a_site_whose_card_is_not_its_own_is_left_out(
    told: dict[str, Any], words: str, recorded: Recorded, tmp_path: Path
) -> None:
    node = recorded.node("vendor_a")
    recorded.play(tmp_path / "run", {(node, Action.CARD): _telling(**told)})
    assert any(f"vendor_a, left out: {words}" in problem for problem in _notes(tmp_path / "run"))
    cards = json.loads((tmp_path / "run" / "checkpoints" / "sites.json").read_text())
    assert [card["name"] for card in cards] == ["vendor_b", "vendor_c", "vendor_d"]


@pytest.mark.parametrize("number", [np.nan, 0.5])
def test_first_weights_are_those_that_most_sites_send(
    number: float, recorded: Recorded, tmp_path: Path
) -> None:
    node = recorded.node("vendor_a")

    def other(content: RecordDict) -> RecordDict:
        arrays = read_arrays(content)
        name = min(arrays)
        arrays[name] = np.full_like(arrays[name], number)
        content[ARRAYS] = pack_arrays(arrays)
        return content

    recorded.play(tmp_path / "run", {(node, Action.INITIAL): other})
    (problem,) = _notes(tmp_path / "run")
    assert problem.startswith("method of the run, asked of vendor_a: sent ")
    for name in ("cases.csv", "cross_site.csv", "shift.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (recorded.plan.out / name).read_bytes()


@pytest.mark.parametrize("number", [np.inf, 1e300])
def test_statistics_that_no_images_have_spoil_no_other_sites_distances(
    number: float, recorded: Recorded, tmp_path: Path
) -> None:
    node = recorded.node("vendor_a")

    def other(content: RecordDict) -> RecordDict:
        arrays = read_arrays(content, STATISTICS)
        mean = arrays[names.FEATURE_MEAN]
        content[STATISTICS] = pack_arrays(
            {**arrays, names.FEATURE_MEAN: np.full_like(mean, number)}
        )
        return content

    recorded.play(tmp_path / "run", {(node, Action.STATISTICS): other})
    assert any(
        "image statistics of vendor_a: sent feature_mean" in p for p in _notes(tmp_path / "run")
    )
    honest, left = (read_shift(run / "shift.csv") for run in (recorded.plan.out, tmp_path / "run"))
    # What follows from the second exchange is another question's: vendor_a had a part in the first.
    second = ("mmd", "proxy")
    without = [
        row
        for row in honest
        if row["site_a"] != "vendor_a" and not row["metric"].startswith(second)
    ]
    assert without and [row for row in left if not row["metric"].startswith(second)] == without


def test_what_a_terminal_would_obey_is_shown_and_not_sent_to_it() -> None:
    class Failing:
        """A grid whose one site fails in its own words."""

        def push_messages(self, messages: Sequence[Message]) -> list[str]:
            self.asked = list(messages)
            return ["id"]

        def pull_messages(self, ids: Sequence[str]) -> list[Message]:
            return [Message(Error(102, "\x1b[2Jgone\x07\ud800"), reply_to=self.asked[0])]

    asked = Message(RecordDict(), dst_node_id=5, message_type="train")
    (reply,) = exchange(cast(Any, Failing()), [asked], None)
    told = reply.error.reason or ""
    assert told == visible(told) and told.isprintable() and "gone" in told
