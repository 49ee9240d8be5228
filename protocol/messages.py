"""What the coordinator asks of a site and what a site answers, as Flower records.

A request carries a ``config`` record (the :class:`Instruction`) and, where needed, an ``arrays``
record (a model) and a ``bank`` record (what the sites published). An answer carries an ``arrays``
and a ``metrics`` record under the names Flower's own strategies expect, an ``answer`` record with
everything that is neither, and a ``statistics`` record. Either may carry ``extras``: what a
strategy exchanges beside the model.
"""

from __future__ import annotations

import io
import json
import math
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
_MOST_SIDES = 8


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


RELEASABLE = tuple(purpose.value for purpose in Purpose if purpose is not Purpose.ERROR)
"""What a site's policy decides about."""

EVALUATION_PURPOSES = frozenset({Purpose.CASES, Purpose.MODEL, Purpose.STATISTICS})
"""What leaves after the last round, when the finished models are compared."""


@dataclass(frozen=True)
class Instruction:
    """One request to a site.

    ``arm`` names the model the site keeps state for (``federated``, ``local`` or ``pooled``).
    ``kept`` are the tensors that stay at the site: it fills them in from its own state.
    ``rules`` are what the strategy changes in local training, in the order in which they act: a
    rule's name -> its settings, e.g. ``{"proximal": {"mu": 0.01}}``.
    ``options`` hold what only one action needs.
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
    options: Mapping[str, Any] = field(default_factory=dict)

    def but(self, **changes: Any) -> Instruction:
        """Return a copy with ``changes``."""
        return replace(self, **changes)

    def to_record(self) -> ConfigRecord:
        """Pack as a Flower record."""
        fields = asdict(self)
        # A number of its own: a run that is made longer must not send more bytes a message.
        rounds = fields.pop("rounds")
        return ConfigRecord({"instruction": json.dumps(fields), "rounds": rounds})

    @classmethod
    def from_record(cls, record: ConfigRecord) -> Instruction:
        """Unpack; raises ``ValueError`` when the record is not an instruction."""
        try:
            fields = json.loads(str(record["instruction"]))
            return cls(
                **{
                    **fields,
                    "action": Action(fields["action"]),
                    "kept": tuple(fields["kept"]),
                    "rounds": record["rounds"],
                }
            )
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"the request holds no instruction: {error}") from error


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
    if len(shape) > _MOST_SIDES or not all(type(side) is int and side >= 0 for side in shape):
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
    """The bytes of one entry of a metric or config record: 8 a number, one a character."""
    if isinstance(value, (str, bytes)):
        return len(value)
    if isinstance(value, list):
        return sum(value_bytes(item) for item in value)
    return 8
