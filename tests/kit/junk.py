"""Answers and requests with something wrong in them, drawn by hypothesis."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from fedshift.protocol.flower import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from fedshift.protocol.messages import ANSWER, ARRAYS, EXTRAS, METRICS, STATISTICS, pack_arrays

NUMBERS = (0, -1, 1, 7, 2**31, 2**63 - 1, -(2**63), 10**400, 0.5, -1e-9, 1e300, 3e38)
NOT_FINITE = (float("nan"), float("inf"), -float("inf"))
STEERING = "\x1b[2J\x1b]0;x\x07"
TEXTS = ("", STEERING, "../../etc", "=HYPERLINK(1)", "<b>x", "a" * 5000, "\ud800", "all")


def drawn(examples: int) -> settings:
    """So many examples, the same in every run, however long one takes."""
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


numbers = st.sampled_from((*NUMBERS, *NOT_FINITE))
texts = st.one_of(st.sampled_from(TEXTS), st.text(max_size=20))
plain = st.one_of(st.none(), st.booleans(), numbers, texts)
values = st.recursive(
    plain,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
"""Anything that JSON can say."""


@st.composite
def wrong_json(draw: st.DrawFn, text: str) -> str:
    """``text``, a JSON object, with one thing in it replaced, taken out or put in; or no JSON."""
    if draw(st.integers(0, 15)) == 0:
        return draw(st.sampled_from(("", "{", "[" * 100_000, "null", "[]", "5", '"x"')))
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):  # It is wrong already.
        return text
    holder, node = None, told
    while isinstance(node, dict | list) and node and (holder is None or draw(st.integers(0, 3))):
        keys = sorted(node) if isinstance(node, dict) else range(len(node))
        key = draw(st.sampled_from(list(keys)))
        holder, node = (node, key), node[key]
    if holder is None:
        told = {"x": draw(values)}
    else:
        inside, key = holder
        kind = draw(st.sampled_from(("replace", "replace", "take out", "put in")))
        if kind == "replace":
            inside[key] = draw(values)
        elif kind == "take out":
            del inside[key]
        elif isinstance(inside, list):
            inside.append(draw(values) if draw(st.booleans()) else node)
        else:
            inside[draw(texts)] = draw(values)
    return json.dumps(told)


@st.composite
def wrong_array(draw: st.DrawFn, array: Array) -> Array:
    """``array`` with other numbers, shape, type or bytes."""
    try:
        honest = array.numpy()
    except (ValueError, EOFError, TypeError, OSError):  # It is wrong already.
        return array
    kind = draw(st.integers(0, 6))
    if kind == 0:
        return Array(array.dtype, array.shape, array.stype, draw(st.binary(max_size=64)))
    if kind == 1:
        data = array.data[: draw(st.integers(0, len(array.data)))]
        return Array(array.dtype, array.shape, array.stype, data)
    if kind == 2:
        sides = draw(st.lists(st.integers(0, 2**40), max_size=5))
        return Array(array.dtype, tuple(sides), array.stype, array.data)
    if kind == 3:
        names = ("object", ">f4", "<U9", "complex128", "float16", "int64", "float64", "x", "")
        return Array(draw(st.sampled_from(names)), array.shape, array.stype, array.data)
    if kind == 4:
        sides = draw(st.lists(st.integers(0, 3), max_size=4))
        return Array(np.zeros(sides, honest.dtype))
    if kind == 5:
        return Array(honest.astype(draw(st.sampled_from((">f8", "f2", "i8", "c16", "U4", "f8")))))
    changed = honest.astype(np.float64).reshape(-1)
    if changed.size:
        places = draw(st.lists(st.integers(0, changed.size - 1), min_size=1, max_size=3))
        wrong = (*NOT_FINITE, -1.0, 0.0, 1e300, 3e38, 1e20, 2.0**62)
        changed[places] = draw(st.sampled_from(wrong))
    with np.errstate(all="ignore"):
        return Array(changed.reshape(honest.shape).astype(honest.dtype))


@st.composite
def wrong_content(draw: st.DrawFn, content: RecordDict) -> RecordDict:
    """An answer like ``content`` with one to three things wrong."""
    content = RecordDict(dict(content))
    for _ in range(draw(st.integers(1, 3))):
        if not content:
            return content
        key = draw(st.sampled_from(sorted(content)))
        record = content[key]
        kind = draw(st.integers(0, 11))
        if kind == 0:
            del content[key]
        elif kind == 1:
            others = (ConfigRecord({"x": 1}), MetricRecord({"x": 1.0}), ArrayRecord())
            content[key] = draw(st.sampled_from(others))
        elif kind == 2:
            other = draw(st.sampled_from((ARRAYS, STATISTICS, EXTRAS, METRICS, ANSWER, "x")))
            content[other] = record
        elif isinstance(record, ArrayRecord):
            content[key] = _wrong_arrays(draw, record)
        elif isinstance(record, MetricRecord):
            content[key] = _wrong_metrics(draw, record)
        else:
            fields: dict[str, Any] = dict(record)
            field = draw(st.sampled_from(sorted(fields))) if fields else "x"
            if field == "details" and draw(st.integers(0, 5)):
                fields[field] = draw(wrong_json(str(fields[field])))
            else:
                fields[field] = draw(st.one_of(texts, numbers, st.booleans(), st.binary()))
            content[key] = ConfigRecord(fields)
    return content


def _wrong_arrays(draw: st.DrawFn, record: ArrayRecord) -> ArrayRecord:
    arrays = dict(record)
    if not arrays:
        return ArrayRecord(dict(pack_arrays({"x": np.zeros(2)})))
    name = draw(st.sampled_from(sorted(arrays)))
    kind = draw(st.integers(0, 5))
    if kind == 0:
        del arrays[name]
    elif kind == 1:
        arrays[draw(st.sampled_from(("a::b", "\x1b[2J", "", "net/x", "a" * 3000)))] = arrays[name]
    else:
        arrays[name] = draw(wrong_array(arrays[name]))
    return ArrayRecord(arrays)


def _wrong_metrics(draw: st.DrawFn, record: MetricRecord) -> MetricRecord:
    found: dict[str, Any] = dict(record)
    name = draw(st.sampled_from(sorted(found))) if found else "x"
    kind = draw(st.integers(0, 4))
    held = found.get(name)
    if kind == 0:
        found.pop(name, None)
    elif kind == 1:
        found[draw(st.sampled_from(("=1+1", "\x1b[2J", "", "dice", "a" * 300)))] = 1.0
    elif isinstance(held, list) and held and kind < 4:
        place = draw(st.integers(0, len(held) - 1))
        changed = [float(value) for value in held]
        changed[place] = draw(st.sampled_from((*NOT_FINITE, 7.0, -1.0)))
        found[name] = changed
    else:
        found[name] = draw(st.one_of(numbers, st.lists(st.floats(), max_size=3)))
    return MetricRecord(found)
