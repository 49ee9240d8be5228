"""What the coordinator asks of a site and what a site answers, as Flower records.

A request carries a ``config`` record (the :class:`Instruction`) and, where needed, an ``arrays``
record (a model) and a ``bank`` record (what the sites published). An answer carries an ``arrays``
and a ``metrics`` record under the names Flower's own strategies expect, an ``answer`` record with
everything that is neither, and a ``statistics`` record. Either may carry ``extras``: what a
strategy exchanges beside the model.
"""

from __future__ import annotations

import dataclasses
import io
import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from functools import lru_cache
from typing import Any

import numpy as np

from fedshift.protocol.flower import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

Arrays = dict[str, np.ndarray]

POOLED = "all"
"""The name of the simulated site that holds all data, and of what was trained on every site."""

ARMS = ("federated", "local", "pooled")
"""The models that a run trains side by side; a site keeps the state of each apart."""

ARRAYS = "arrays"
BANK = "bank"
CONFIG = "config"
METRICS = "metrics"
ANSWER = "answer"
EXTRAS = "extras"
"""What a strategy exchanges beside the model, such as control variates."""
STATISTICS = "statistics"
EXAMPLES = "num-examples"
"""The metric that weights a site, under the name Flower's strategies use."""


DTYPES = frozenset(
    f"{kind}{bits}" for kind in ("int", "uint", "float") for bits in (8, 16, 32, 64)
) - {"float8"} | {"bool"}
"""The types of the arrays that travel, in the byte order of the machines that the network runs
on."""
MOST_SIDES = 8


class Action(StrEnum):
    """What a site can be asked to do; the part before the dot is Flower's message type."""

    NAME = "query.name"
    SUMMARY = "query.summary"
    HASHES = "query.hashes"
    CARD = "query.card"
    INITIAL = "query.initial"
    FIT = "train.fit"
    VALIDATE = "evaluate.validate"
    SCORE = "evaluate.score"
    MODEL = "query.model"
    STATISTICS = "query.statistics"
    SHIFT_ANSWER = "query.shift_answer"

    @property
    def message_type(self) -> str:
        """Flower's message type: ``train``, ``evaluate`` or ``query``."""
        return self.value.split(".", maxsplit=1)[0]


class Purpose(StrEnum):
    """Why something leaves a site; a policy allows or refuses each."""

    NAME = "site name"
    """What the site is called: the one answer beside an error that no policy holds back."""
    SUMMARY = "data summary"
    """What the settings of a federation are chosen from: spacings, extents, counts."""
    HASHES = "image hashes"
    """Keyed perceptual hashes, by which sites find an image that two of them hold."""
    CARD = "site card"
    INITIAL = "initial model"
    UPDATE = "model update"
    VALIDATION = "validation metrics"
    CASES = "case metrics"
    MODEL = "model for cross-site evaluation"
    STATISTICS = "statistics"
    ERROR = "error"
    """Why a site cannot answer: one sentence, which no policy holds back."""


ERROR_REFUSED = 101
"""The code of a site's error answer where its policy does not allow what was asked."""
ERROR_FAILED = 102
"""Of one where it tried and could not."""
ERROR_CLOSED = 108
"""Of one where its policy does not allow it at this hour."""

RELEASABLE = tuple(
    purpose.value for purpose in Purpose if purpose not in (Purpose.NAME, Purpose.ERROR)
)
"""What a site's policy decides about."""

ABOUT = ("purpose", "asked_by", "strategy")
"""In which words a deployed run may describe itself: what it is for, who asks for it, and the name
of its strategy. Nothing is computed from them; a site's staff reads them before it approves."""
_DEPLOYED = ("run", "data", "about")
"""Fields with keys of their own in the record, only where they are not empty: a simulation's
messages have none."""
_RUN = re.compile(r"[a-z0-9-]{1,64}")
_LONGEST_ABOUT = 500

_LONGEST_INSTRUCTION = 2**22
_LONGEST_TEXT = 2**12
"""In characters. An instruction has a few thousand, and a name for each tensor that stays."""
_DEEPEST = 8
_MOST_PARTS = 1000
_LONGEST_PART = 200
MOST_ROUNDS = 10**6
MOST_STEPS = 10**9
LARGEST_NUMBER = 2**63 - 1
"""What a site takes for a number of rounds, of steps, and for any other."""


@dataclass(frozen=True)
class Instruction:
    """One request to a site.

    ``arm`` names the model the site keeps state for, one of :data:`ARMS`.
    ``kept`` are the tensors that stay at the site: it fills them in from its own state.
    ``rules`` are what the strategy changes in local training, in the order in which they act: a
    rule's name -> its settings, e.g. ``{"proximal": {"mu": 0.01}}``.
    ``splits`` are those that are to be scored, with the method's ``stage`` that predicts (empty for
    the finished method).

    What a deployed run has beside: ``run``, its lasting identity, 1 to 64 of ``a-z``, ``0-9`` and
    ``-``, the same however often it is gone on with; ``data``, the settings of ``data`` that it
    asks each site to prepare its images by; ``about``, texts of at most 500 characters in which it
    describes itself (:data:`ABOUT`). A simulation, whose sites are its own, has none of them.
    """

    action: Action
    seed: int
    round: int = 0
    arm: str = "federated"
    method: Mapping[str, Any] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    rounds: int = 0
    steps: int = 0
    kept: tuple[str, ...] = ()
    rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    splits: tuple[str, ...] = ()
    stage: str = ""
    run: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)
    about: Mapping[str, str] = field(default_factory=dict)

    def but(self, **changes: Any) -> Instruction:
        """Return a copy with ``changes``."""
        return replace(self, **changes)

    def to_record(self) -> ConfigRecord:
        """Pack as a Flower record."""
        fields = asdict(self)
        # A number of its own: a run that is made longer must not send more bytes a message.
        rounds = fields.pop("rounds")
        run, data, about = (fields.pop(name) for name in _DEPLOYED)
        record = ConfigRecord({"instruction": json.dumps(fields), "rounds": rounds})
        if run:
            record["run"] = run
        if data:
            record["data"] = json.dumps(data)
        if about:
            record["about"] = json.dumps(about)
        return record

    @classmethod
    def from_record(cls, record: object) -> Instruction:
        """Unpack what :meth:`to_record` packed.

        Whoever reads an instruction need not trust who wrote it: every field is there and of its
        type, whole numbers are not negative and at most 10^6 rounds, 10^9 steps and 2^63 - 1 else,
        the arm is one of :data:`ARMS`, lists of names hold none twice, and settings are plain data
        of finite numbers and short texts, nested at most eight deep. What describes the run is
        printable and of one line. Raises ``ValueError``, which repeats nothing of what was sent,
        for anything else.
        """
        # Flower's own strategies add a field of theirs.
        if not isinstance(record, ConfigRecord) or not {"instruction", "rounds"} <= record.keys():
            raise ValueError("the request holds no instruction")
        fields = _plain_mapping(record["instruction"])
        expected = {field.name for field in dataclasses.fields(cls)} - {"rounds", *_DEPLOYED}
        if fields.keys() != expected:
            raise ValueError("the instruction lacks a field, or has one that is not known")
        try:
            action = Action(fields["action"])
        except ValueError:
            raise ValueError("the instruction's action is not known") from None
        if fields["arm"] not in ARMS:
            raise ValueError(f"the instruction's arm is none of {', '.join(ARMS)}")
        if not all(isinstance(given, dict) for given in _mapping(fields, "rules").values()):
            raise ValueError("the instruction's rules are no settings by name")
        _check_parts(_mapping(fields, "task").get("parts", []))
        if not isinstance(fields["stage"], str):
            raise ValueError("the instruction's stage is no name")
        return cls(
            action=action,
            seed=_whole(fields["seed"], "seed", LARGEST_NUMBER),
            round=_whole(fields["round"], "round", MOST_ROUNDS),
            arm=fields["arm"],
            method=_mapping(fields, "method"),
            task=_mapping(fields, "task"),
            rounds=_whole(record["rounds"], "rounds", MOST_ROUNDS),
            steps=_whole(fields["steps"], "steps", MOST_STEPS),
            kept=_distinct(fields["kept"], "kept"),
            rules=fields["rules"],
            splits=_distinct(fields["splits"], "splits"),
            stage=fields["stage"],
            run=_run(record.get("run", "")),
            data=_plain_mapping(record.get("data", "{}")),
            about=_described(record.get("about", "{}")),
        )


def _plain_mapping(text: object) -> dict[str, Any]:
    """The JSON object ``text`` as bounded plain data; raises ``ValueError`` for another text."""
    if not isinstance(text, str) or len(text) > _LONGEST_INSTRUCTION:
        raise ValueError(f"the instruction is no text of at most {_LONGEST_INSTRUCTION} characters")
    try:
        node = json.loads(text)
    except (ValueError, RecursionError):
        raise ValueError("the instruction is not JSON") from None
    if not isinstance(node, dict):
        raise ValueError("the instruction holds no fields")
    _check_plain(node, _DEEPEST)
    return node


def _check_plain(node: Any, depth: int) -> None:
    if isinstance(node, str):
        # What UTF-8 cannot spell could be written into no file.
        if len(node) > _LONGEST_TEXT or any("\ud800" <= mark <= "\udfff" for mark in node):
            raise ValueError("the instruction holds a text that is too long or no Unicode")
    elif isinstance(node, int):
        if abs(node) > LARGEST_NUMBER:
            raise ValueError(f"the instruction holds a number beyond {LARGEST_NUMBER}")
    elif isinstance(node, float):
        if not math.isfinite(node):
            raise ValueError("the instruction holds a number that is not finite")
    elif node is not None:
        if depth == 0:
            raise ValueError(f"the instruction is nested more than {_DEEPEST} deep")
        for item in [*node, *node.values()] if isinstance(node, dict) else node:
            _check_plain(item, depth - 1)


def _check_parts(parts: object) -> None:
    """Of what is learnt, a site keeps the names before anybody there has approved of the run."""
    if not (
        isinstance(parts, list)
        and len(parts) <= _MOST_PARTS
        and all(isinstance(name, str) and len(name) <= _LONGEST_PART for name in parts)
    ):
        raise ValueError(
            f"the instruction's parts are no list of at most {_MOST_PARTS} names of "
            f"{_LONGEST_PART} characters"
        )


def _run(value: object) -> str:
    if value != "" and not (isinstance(value, str) and _RUN.fullmatch(value)):
        raise ValueError("the instruction's run is no name of 1 to 64 of a-z, 0-9 and -")
    return value


def _described(value: object) -> dict[str, str]:
    about = _plain_mapping(value)
    for name, text in about.items():
        if name not in ABOUT or not isinstance(text, str) or len(text) > _LONGEST_ABOUT:
            raise ValueError(
                f"the instruction's about is none of {', '.join(ABOUT)}, in at most "
                f"{_LONGEST_ABOUT} characters each"
            )
        if not text.isprintable():  # It is shown to whoever approves of the run.
            raise ValueError("the instruction's about is not printable")
    return about


def _mapping(fields: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = fields[name]
    if not isinstance(value, dict):
        raise ValueError(f"the instruction's {name} holds no settings")
    return value


def _whole(value: object, name: str, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
        raise ValueError(f"the instruction's {name} is no whole number from 0 to {most}")
    return value


def _distinct(value: object, name: str) -> tuple[str, ...]:
    names = value if isinstance(value, list) else [None]
    if not all(isinstance(item, str) for item in names) or len(set(names)) < len(names):
        raise ValueError(f"the instruction's {name} is no list of names, each once")
    return tuple(names)


@dataclass(frozen=True)
class Adam:
    """The coordinator's optimiser of a sub-network whose gradients are summed: Kingma & Ba, "Adam",
    ICLR 2015, Algorithm 1.

    The rate is ``lr`` up to round ``constant_until`` and falls linearly to 0 after ``last_round``
    (both 0: constant).
    """

    lr: float
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    constant_until: int = 0
    last_round: int = 0

    def rate(self, round: int) -> float:
        """The learning rate of ``round``."""
        if round <= self.constant_until or not self.last_round:
            return self.lr
        left = self.last_round + 1 - round
        return self.lr * max(left, 0) / (self.last_round + 1 - self.constant_until)


@dataclass(frozen=True)
class TensorInfo:
    """What a strategy must know of a tensor to decide whether it travels, and how.

    ``role`` is ``weight``, ``norm`` (scale and shift of a normalisation layer) or ``norm_buffer``
    (its running statistics and counters). ``sharing``, ``domains`` and ``adam`` are what the method
    says of its sub-network (``fedshift.client.contract.method.Sharing``).
    """

    network: str
    role: str
    sharing: str
    shape: tuple[int, ...]
    dtype: str
    domains: tuple[str, ...] = ()
    adam: Adam | None = None

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> TensorInfo:
        """Undo :meth:`to_json`."""
        adam = fields["adam"]
        return cls(
            **{
                **fields,
                "shape": tuple(fields["shape"]),
                "domains": tuple(fields["domains"]),
                "adam": Adam(**adam) if adam else None,
            }
        )


@lru_cache(maxsize=4096)
def _npy_header(dtype: str, shape: tuple[int, ...]) -> bytes:
    """What precedes the bytes of a C-ordered array in Flower's format, which is NumPy's ``.npy``.

    Writing and parsing it takes longer than copying a small tensor, and a model repeats a few
    shapes every round."""
    buffer = io.BytesIO()
    descr = np.lib.format.dtype_to_descr(np.dtype(dtype))
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": descr, "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue()


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> ArrayRecord:
    """Pack named arrays as Flower's own ``Array(array)`` does, byte for byte."""
    return ArrayRecord({name: _packed(array) for name, array in arrays.items()})


def _packed(array: np.ndarray) -> Array:
    dtype = str(array.dtype)
    # Joined, its numbers are copied once.
    data = b"".join((_npy_header(dtype, array.shape), np.ascontiguousarray(array).data))
    return Array(dtype, tuple(array.shape), "numpy.ndarray", data)


def unpack_arrays(record: ArrayRecord) -> Arrays:
    """Unpack named arrays; each is a fresh, writable copy.

    Raises ``ValueError`` when one is not what it says it is."""
    return {name: np.array(view_array(array)) for name, array in record.items()}


def view_array(array: Array) -> np.ndarray:
    """One array of a message as it lies there, read-only and without a copy.

    Raises ``ValueError`` when it is not what it says it is, or of a type, such as one of another
    byte order, that no peer sends."""
    shape = tuple(array.shape)
    if array.stype != "numpy.ndarray" or array.dtype not in DTYPES:
        raise ValueError(f"an array of the type {str(array.dtype)[:40]!r}")
    if len(shape) > MOST_SIDES or not all(type(side) is int and side >= 0 for side in shape):
        raise ValueError("an array of no possible shape")
    header = _npy_header(array.dtype, shape)
    dtype = np.dtype(array.dtype)
    if len(array.data) != len(header) + math.prod(shape) * dtype.itemsize or not (
        array.data.startswith(header)
    ):
        raise ValueError(f"an array whose bytes are not those of {array.dtype} of shape {shape}")
    return np.frombuffer(array.data, dtype, offset=len(header)).reshape(shape)


def read_arrays(content: RecordDict, key: str = ARRAYS) -> Arrays:
    """The arrays of a message's record ``key``; none when it has no such record."""
    record = content.get(key)
    return unpack_arrays(record) if isinstance(record, ArrayRecord) else {}


def pack_bank(bank: Mapping[str, Mapping[str, np.ndarray]]) -> ArrayRecord:
    """Pack what the sites published, as ``site::statistic``."""
    return pack_arrays(
        {f"{site}::{name}": array for site, kept in bank.items() for name, array in kept.items()}
    )


def unpack_bank(record: ArrayRecord) -> dict[str, Arrays]:
    """Undo :func:`pack_bank`."""
    bank: dict[str, Arrays] = {}
    for key, array in unpack_arrays(record).items():
        site, name = key.split("::", maxsplit=1)
        bank.setdefault(site, {})[name] = array
    return bank


def request(
    instruction: Instruction,
    arrays: ArrayRecord | None = None,
    *,
    bank: ArrayRecord | None = None,
    extras: ArrayRecord | None = None,
    statistics: Mapping[str, np.ndarray] | None = None,
) -> RecordDict:
    """Build a request's content; ``statistics`` hold a question about domain shift."""
    content = RecordDict({CONFIG: instruction.to_record()})
    if arrays is not None:
        content[ARRAYS] = arrays
    if bank is not None:
        content[BANK] = bank
    if extras is not None:
        content[EXTRAS] = extras
    if statistics:
        content[STATISTICS] = pack_arrays(statistics)
    return content


def answer(
    site: str,
    *,
    arrays: ArrayRecord | None = None,
    metrics: Mapping[str, Any] | None = None,
    statistics: Mapping[str, np.ndarray] | None = None,
    extras: Mapping[str, np.ndarray] | None = None,
    details: Mapping[str, Any] | None = None,
) -> RecordDict:
    """Build an answer's content; ``details`` must be JSON."""
    content = RecordDict(
        {ANSWER: ConfigRecord({"site": site, "details": json.dumps(details or {}, sort_keys=True)})}
    )
    if arrays is not None:
        content[ARRAYS] = arrays
    if metrics is not None:
        content[METRICS] = MetricRecord(dict(metrics))
    if statistics:
        content[STATISTICS] = pack_arrays(statistics)
    if extras:
        content[EXTRAS] = pack_arrays(extras)
    return content


def details(content: RecordDict) -> dict[str, Any]:
    """The JSON part of an answer."""
    record = content[ANSWER]
    assert isinstance(record, ConfigRecord)
    loaded = json.loads(str(record["details"]))
    assert isinstance(loaded, dict)
    return loaded


def content_bytes(content: RecordDict) -> int:
    """How many bytes of arrays, numbers and text ``content`` carries."""
    total = 0
    for record in content.values():
        if isinstance(record, ArrayRecord):
            total += sum(len(array.data) for array in record.values())
        else:
            total += sum(value_bytes(value) for value in record.values())
    return total


def value_bytes(value: Any) -> int:
    """The bytes of one entry of a metric or config record: 8 a number, and those of a text in
    UTF-8."""
    if isinstance(value, str):
        return len(value.encode(errors="surrogatepass"))
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, list):
        return sum(value_bytes(item) for item in value)
    return 8
