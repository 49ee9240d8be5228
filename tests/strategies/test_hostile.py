"""A site that answers anything at all: every strategy goes on as if it had not answered."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from kit import convex
from kit.convex import Convex

from fedshift import strategies
from fedshift.protocol import messages as protocol
from fedshift.protocol.flower import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    MetricRecord,
    RecordDict,
)
from fedshift.protocol.messages import Arrays, pack_arrays
from fedshift.protocol.words import visible
from fedshift.runs.config import load
from fedshift.server.exchange import ERROR_LATE
from fedshift.strategies import STRATEGIES
from fedshift.strategies.base.clock import Clock

SITES = "abcdefg"
HOSTILE = "c"
NAME = "net/body"

Reply = Callable[[RecordDict], None]
"""Changes an honest reply's content into a hostile one."""

REPLIES: dict[str, Reply] = {}


def reply(change: Reply) -> Reply:
    REPLIES[change.__name__] = change
    return change


def _told(content: RecordDict, text: str) -> None:
    content[protocol.ANSWER] = ConfigRecord({"site": HOSTILE, "details": text})


def _tensor(content: RecordDict, array: Array, name: str = NAME) -> None:
    record = content[protocol.ARRAYS]
    assert isinstance(record, ArrayRecord)
    content[protocol.ARRAYS] = ArrayRecord({**record, name: array})


def _array(values: np.ndarray) -> Array:
    return pack_arrays({"x": values})["x"]


for _name, _text in {
    "a_list": "[]",
    "nothing": "null",
    "a_number": "5",
    "deep": "[" * 200_000,
    "no_json": "{",
    "no_count": "{}",
    "a_text_for_counts": '{"trained": "net"}',
    "a_text_for_a_count": '{"trained": {"net": "ten"}}',
    "no_finite_count": '{"trained": {"net": NaN}}',
    "an_infinite_count": '{"trained": {"net": 1e999}}',
    "an_endless_count": '{"trained": {"net": 1' + "0" * 400 + "}}",
    "a_huge_count": '{"trained": {"net": 1e300}}',
    "a_count_above_the_cards": '{"trained": {"net": 1000}}',
    "a_negative_count": '{"trained": {"net": -1}}',
    "another_network": '{"trained": {"net": 10, "\\u001b[2J": 10}}',
    "a_list_for_a_domain": '{"trained": {"net": 10}, "domain": []}',
}.items():
    REPLIES[f"details_{_name}"] = lambda content, text=_text: _told(content, text)  # type: ignore[misc]

for _name, _values in {
    "nan": np.array([np.nan, 0.0]),
    "infinity": np.array([np.inf, 0.0]),
    "beyond": np.array([3e38, 0.0]),
    "far_beyond": np.array([1e300, 0.0]),
    "single": np.zeros(2, np.float32),
    "whole": np.zeros(2, np.int64),
    "longer": np.zeros(3),
    "deeper": np.zeros((2, 1)),
    "empty": np.zeros(0),
}.items():
    REPLIES[f"weights_{_name}"] = lambda content, values=_values: _tensor(content, _array(values))  # type: ignore[misc]


@reply
def weights_of_another_byte_order(content: RecordDict) -> None:
    _tensor(content, Array(np.zeros(2, ">f8")))


@reply
def weights_of_texts(content: RecordDict) -> None:
    _tensor(content, Array(np.array(["a", "b"])))


@reply
def weights_of_complex_numbers(content: RecordDict) -> None:
    _tensor(content, Array(np.zeros(2, complex)))


@reply
def weights_of_other_bytes(content: RecordDict) -> None:
    _tensor(content, Array("float64", (2,), "numpy.ndarray", b"no array"))


@reply
def weights_that_are_pickled(content: RecordDict) -> None:
    _tensor(content, Array("object", (1,), "numpy.ndarray", b"\x80\x04K\x01."))


@reply
def weights_whose_header_lies(content: RecordDict) -> None:
    honest = _array(np.zeros(2))
    data = honest.data.replace(b"(2,)", b"(9,)")
    _tensor(content, Array("float64", (2,), "numpy.ndarray", data))


@reply
def weights_of_36_tebibytes(content: RecordDict) -> None:
    honest = _array(np.zeros(2))
    _tensor(content, Array("float64", (2**42,), "numpy.ndarray", honest.data))


@reply
def weights_beside_the_model(content: RecordDict) -> None:
    _tensor(content, _array(np.zeros(2)), "net/other")


@reply
def no_answer(content: RecordDict) -> None:
    del content[protocol.ANSWER]


@reply
def an_answer_of_another_kind(content: RecordDict) -> None:
    content[protocol.ANSWER] = MetricRecord({"site": 1})


@reply
def metrics_of_another_kind(content: RecordDict) -> None:
    content[protocol.METRICS] = ConfigRecord({"loss": "low"})


@reply
def a_metric_with_a_formula_for_a_name(content: RecordDict) -> None:
    content[protocol.METRICS] = MetricRecord({"=HYPERLINK(1)": 1.0})


@reply
def a_metric_without_end(content: RecordDict) -> None:
    content[protocol.METRICS] = MetricRecord({"loss": 10**400})


@reply
def statistics_that_are_not_finite(content: RecordDict) -> None:
    content[protocol.STATISTICS] = pack_arrays({"style": np.array([np.nan])})


@reply
def statistics_of_four_megabytes(content: RecordDict) -> None:
    content[protocol.STATISTICS] = pack_arrays({"x": np.zeros(500_000)})


@reply
def statistics_under_another_site(content: RecordDict) -> None:
    content[protocol.STATISTICS] = pack_arrays({"b::style": np.zeros(2)})


@dataclass
class Attacked(Convex):
    """One site of the convex federation answers with what ``attack`` makes of its reply."""

    attack: Reply | None = None
    """None: it answers that it cannot."""
    known: dict[tuple[int, str], RecordDict] = field(default_factory=dict)
    """What the sites answered in an earlier such run: as long as the model is the same, they
    answer the same."""

    def _replies(self, asked: Any) -> Iterator[Message]:
        for message in asked:
            site = self.strategy.names[message.metadata.dst_node_id]
            place = (int(message.metadata.group_id), site)
            if place not in self.known:
                self.known[place] = self._train(site, message).content
            content = RecordDict(dict(self.known[place]))
            if site == HOSTILE and self.attack is None:
                yield Message(Error(ERROR_LATE, "is away"), reply_to=message)
                continue
            if site == HOSTILE and self.attack is not None:
                self.attack(content)
            yield Message(content, reply_to=message)

    def go_on(self) -> tuple[Arrays, Arrays, dict[str, Arrays]]:
        """Two rounds; what the coordinator then holds."""
        for number in (1, 2):
            shared = pack_arrays(self.strategy.shared(self.model))
            grid: Any = None
            asked = self.strategy.configure_train(number, shared, ConfigRecord(), grid)
            record, _ = self.strategy.aggregate_train(number, self._replies(asked))
            if record is not None:
                self.model |= protocol.unpack_arrays(record)
            self.strategy.pass_time(number)
        return self.model, self.strategy.state, self.strategy.bank


SETTINGS: dict[str, dict[str, Any]] = {
    "flower": {"name": "FedAvg"},
    "fedper": {"personal_layers": ["net/head"]},
    "fedrep": {"personal_layers": ["net/head"]},
}
KINDS = sorted(set(STRATEGIES.names()) - {"pooled", "local"})


def _federation(kind: str) -> Attacked:
    built = strategies.build({"name": kind, **SETTINGS.get(kind, {})})
    names = ("body", "head")
    centres = {site: np.array([float(place), -1.0]) for place, site in enumerate(SITES)}
    found = Attacked(built, names=names, centres=centres, planned=2, steps=2)
    built.examples = dict.fromkeys(SITES, 100)
    if built.clocked:
        built.clock = Clock.from_config(load(["clock=lan"])["clock"], 0)
    if built.needs():  # Its rules want images; what it does with updates does not.
        built.rules = dict  # type: ignore[method-assign]
    return found


@pytest.fixture
def seven(monkeypatch: pytest.MonkeyPatch) -> None:
    for place, site in enumerate(SITES):
        monkeypatch.setitem(convex.CURVATURE, site, 1.0 + place / 10)
        monkeypatch.setitem(convex.EXAMPLES, site, 10 + place)


def _same(first: Arrays, second: Arrays) -> None:
    assert first.keys() == second.keys()
    for name, array in first.items():
        assert array.tobytes() == second[name].tobytes(), name


@pytest.mark.usefixtures("seven", "convex_risk")
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_refused_is_as_if_the_site_had_not_answered(kind: str) -> None:
    away = _federation(kind)
    expected = away.go_on()
    for name, attack in REPLIES.items():
        attacked = _federation(kind)
        attacked.attack, attacked.known = attack, away.known
        model, state, bank = attacked.go_on()
        _same(model, expected[0])
        _same(state, expected[1])
        assert bank == expected[2] == {}
        rejected = attacked.strategy.outcome.rejected
        if HOSTILE in away.strategy.outcome.failed:
            assert list(rejected) == [HOSTILE], name
            assert rejected[HOSTILE] == visible(rejected[HOSTILE]), name
