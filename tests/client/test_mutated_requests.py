"""Requests of every kind, mutated: whatever a coordinator sends, a site answers or says in a
sentence why not, and its ledger says what left."""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.asking import entries_of, initial, instruction, local_federation

from fedshift.client.ledger import left_by
from fedshift.client.policy import Policy
from fedshift.client.simulation import LocalSites
from fedshift.client.worker import SiteWorker
from fedshift.protocol import statistics as names
from fedshift.protocol.flower import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
)
from fedshift.protocol.messages import (
    ARRAYS,
    BANK,
    CONFIG,
    EXTRAS,
    STATISTICS,
    Action,
    Purpose,
    pack_arrays,
    request,
)
from fedshift.protocol.storage import keep_lines, write_tensors

QUICK, LONG = 100, 2000
MARKER = 12345.0
"""Fills what lies outside of the site's folder: it must leave in no answer."""
FIELDS = {"site", "round", "action", "record", "shape", "dtype", "bytes", "purpose"}

texts = st.one_of(
    st.sampled_from(["", "..", "../../vendor_b/federated", "/etc/passwd", "train", "drai", "nan"]),
    st.text(max_size=12),
    st.text(st.characters(categories=["Cs", "Cc"]), min_size=1, max_size=3),
)
numbers = st.one_of(
    st.sampled_from(
        [-1, 0, 1, 2, 7, 10**5, 2**31, 2**63, 10**400, 1e300, -0.0, math.inf, math.nan]
    ),
    st.integers(-3, 40),
    st.floats(),
)
plain = st.recursive(
    st.one_of(st.none(), st.booleans(), numbers, texts),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something lies in nested plain data."""
    items: Sequence[tuple[Any, Any]] = ()
    if isinstance(node, dict):
        items = list(node.items())
    elif isinstance(node, list):
        items = list(enumerate(node))
    for key, value in items:
        yield (*path, key)
        yield from places(value, (*path, key))


@st.composite
def records(draw: st.DrawFn, fields: dict[str, Any]) -> Any:
    """The record of an instruction, with a few of its fields otherwise."""
    fields = copy.deepcopy(fields)
    for _ in range(draw(st.integers(0, 3))):
        known = [*places(fields)]
        place = draw(st.sampled_from(known)) if known else ("field",)
        node = fields
        for key in place[:-1]:
            node = node[key]
        how = draw(st.sampled_from(["other", "other", "other", "gone", "more"]))
        if how == "gone":
            del node[place[-1]]
        elif how == "more" and isinstance(node, dict):
            node[draw(texts)] = draw(plain)
        else:
            node[place[-1]] = draw(plain)
    text = json.dumps(fields)
    if draw(st.integers(0, 9)) == 0:
        text = draw(st.one_of(st.text(max_size=40), st.just("[" * 50_000), st.just(text[:-3])))
    if draw(st.integers(0, 19)) == 0:
        return draw(st.sampled_from([MetricRecord({"x": 1.0}), ArrayRecord(), ConfigRecord()]))
    rounds = draw(st.one_of(st.just(1), st.just(1), st.sampled_from([-1, 2**62, 1.5, "1", True])))
    return ConfigRecord({"instruction": text, "rounds": rounds})


def broken(draw: st.DrawFn, array: Array) -> Array:
    """``array``, otherwise."""
    held = array.numpy()
    how = draw(
        st.sampled_from(["nan", "huge", "shape", "dtype", "order", "bytes", "said", "empty"])
    )
    if how == "bytes":
        return Array(array.dtype, array.shape, array.stype, draw(st.binary(max_size=200)))
    if how == "said":
        other = draw(st.lists(st.integers(0, 2**40), max_size=3))
        return Array(array.dtype, tuple(other), array.stype, array.data)
    changed = {
        "nan": held * np.asarray(np.nan, held.dtype),
        "huge": np.full_like(held, 3e38),
        "shape": np.zeros((3, *held.shape), held.dtype),
        "dtype": held.astype(draw(st.sampled_from(["f8", "i4", "S3", "c16", "?"]))),
        "order": held.astype(held.dtype.newbyteorder(">")),
        "empty": np.zeros(0, held.dtype),
    }[how]
    return Array(changed)


@st.composite
def requests(draw: st.DrawFn, honest: Callable[[], RecordDict]) -> RecordDict:
    """A request, with some of it otherwise."""
    content = honest()
    fields = json.loads(str(content[CONFIG]["instruction"]))  # type: ignore[index, call-overload]
    mutated = RecordDict({CONFIG: draw(records(fields))})
    for key in (ARRAYS, BANK, EXTRAS, STATISTICS):
        record = content.get(key)
        whole = dict(record) if isinstance(record, ArrayRecord) else {}
        held = dict(whole)
        for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
            name = draw(st.sampled_from(sorted(whole))) if whole else None
            how = draw(st.sampled_from(["gone", "more", "broken", "broken"]))
            if name is None or how == "more":
                held[draw(texts.filter(lambda text: text.isprintable()))] = Array(np.ones(2))
            elif how == "gone":
                held.pop(name, None)
            else:
                held[name] = broken(draw, whole[name])
        if held:
            mutated[key] = ArrayRecord(held)
    return mutated


class Asked:
    """A site whose policy bounds what a request may take, and what lies around its folder."""

    def __init__(self, tiny: tuple[str, ...], folder: Path) -> None:
        policy = Policy(max_steps=2, max_rounds=50, max_seconds=20.0, max_memory_mb=400.0)
        self.folder = folder
        self.sites = local_federation(tiny, folder / "sites", policy)
        weights = initial(self.sites)
        marked = {name: np.full_like(array, MARKER) for name, array in weights.items()}
        for place in ("secret", "sites/vendor_b/federated", "sites/vendor_b/local"):
            write_tensors(folder / place / "round_0001.safetensors", marked)
        self.worker: SiteWorker = self.sites.worker("vendor_a", torch.device("cpu"))
        self.around = self._around()
        self.begin()

    def begin(self) -> None:
        """Let the site keep a model of the first round, whatever it was asked before."""
        folder = self.worker.folder / "federated"
        shutil.rmtree(folder, ignore_errors=True)
        write_tensors(folder / "round_0001.safetensors", initial(self.sites))

    def content(self, action: Action) -> RecordDict:
        """An honest request."""
        sites: LocalSites = self.sites
        asked = instruction(
            sites,
            action,
            round=1,
            rounds=1,
            rules={"harmonised": {}, "proximal": {"mu": 0.1}} if action is Action.FIT else {},
            splits=("test",) if action is Action.SCORE else (),
        )
        weights = pack_arrays(initial(sites))
        spectrum = {"vendor_b::rule.amplitude": np.ones((32, 32), np.float32)}
        posed = {
            names.BANDWIDTHS: np.ones(3),
            names.DIRECTIONS: np.ones((2, 16)),
            names.THRESHOLDS: np.zeros(2),
        }
        return request(
            asked,
            None if action in (Action.INITIAL, Action.MODEL) else weights,
            bank=pack_arrays(spectrum) if action in (Action.FIT, Action.SCORE) else None,
            statistics=posed if action is Action.SHIFT_ANSWER else None,
        )

    def _around(self) -> dict[Path, tuple[int, int]]:
        own = self.worker.folder
        return {
            path: (path.stat().st_mtime_ns, path.stat().st_size)
            for path in self.folder.rglob("*")
            if own not in (path, *path.parents) and path != own.parent
        }

    def check(self, content: RecordDict) -> None:
        """Ask; nothing but what the ledger says may have happened."""
        book = self.worker.folder / "egress.jsonl"
        before = book.stat().st_size if book.exists() else 0
        reply = self.worker.handle(Message(content, dst_node_id=5, message_type="query"))
        with book.open("rb") as file:
            file.seek(before)
            lines = [json.loads(line, parse_constant=pytest.fail) for line in file]
        for line in lines:
            assert line.keys() == FIELDS
            assert line["site"] == "vendor_a"
            assert type(line["round"]) is int and 0 <= line["round"] <= 10**6
            assert line["action"] is None or Action(line["action"])
            assert Purpose(line["purpose"])
        # The name is noted when it is first told.
        told = [(line["record"], line["shape"], line["bytes"]) for line in lines]
        name_again = reply.has_content() and before and not told
        assert told == entries_of(reply) or name_again
        if reply.has_error():
            assert reply.error.reason and not reply.has_content()
            assert str(self.folder) not in reply.error.reason or "cannot" in reply.error.reason
        else:
            for record in reply.content.values():
                for array in record.values() if isinstance(record, ArrayRecord) else ():
                    assert not (array.numpy() == MARKER).any()
        assert self._around() == self.around
        keep_lines(book, left_by(10**6))


@pytest.fixture(scope="module")
def site(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Asked:
    return Asked(tiny, tmp_path_factory.mktemp("asked"))


def mutate(site: Asked, action: Action, examples: int) -> None:
    """Ask for ``action`` in so many mutated ways."""
    honest = site.content(action)

    @settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
    @given(requests(lambda: honest))
    def asked(content: RecordDict) -> None:
        site.check(content)

    site.begin()
    site.check(honest)
    asked()


@pytest.mark.parametrize("action", Action)
def test_a_mutated_request_is_answered_or_refused_and_noted(site: Asked, action: Action) -> None:
    mutate(site, action, QUICK)


@pytest.mark.long
@pytest.mark.parametrize("action", Action)
def test_many_mutated_requests_are_answered_or_refused_and_noted(
    site: Asked, action: Action
) -> None:
    mutate(site, action, LONG)


def test_the_honest_requests_that_are_mutated_are_answered(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    site = Asked(tiny, tmp_path)
    refused = []
    for action in Action:
        site.begin()
        asked = Message(site.content(action), dst_node_id=5, message_type="query")
        if site.worker.handle(asked).has_error():
            refused.append(action)
    # Phantoms have no files to summarise, and hashes are withheld unless it is told otherwise.
    assert refused == [Action.SUMMARY, Action.HASHES]
