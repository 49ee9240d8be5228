"""What a coordinator takes from a site: each kind of answer, read into a typed, bounded structure.

A site may be broken or hostile. Nothing that it sends is used before a reader here took it: types,
names, counts, shapes and ranges are checked against what was asked and what is known of the site,
and texts lose what could steer a terminal. A reader raises :class:`Unfit` and nothing else,
whatever the answer holds. The tensors of an update are checked where they are folded
(:mod:`fedshift.strategies.base`), so that a model's numbers are gone through once.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from fedshift import unusable_site_name
from fedshift.protocol import statistics as names
from fedshift.protocol.cards import MethodCard, SiteCard
from fedshift.protocol.flower import ConfigRecord, MetricRecord, RecordDict
from fedshift.protocol.measures import Measure, TaskCard
from fedshift.protocol.messages import (
    ANSWER,
    DTYPES,
    EXAMPLES,
    METRICS,
    MOST_SIDES,
    STATISTICS,
    Arrays,
    TensorInfo,
    read_arrays,
)
from fedshift.protocol.words import visible

P = ParamSpec("P")
T = TypeVar("T")

LONGEST_NAME = 200
LONGEST_SENTENCE = 2_000
MOST_NOTES = 10_000
MOST_DETAILS = 2**26
"""Characters of the JSON part of an answer: the rows of the largest test set are fewer."""
MOST_COUNT = 10**9
"""Of subjects, cases, slices and examples: no site has more."""
MOST_TENSORS = 100_000
LARGEST_NUMBER = 1e30
"""Of a statistic: squares of it, and their sums, are still finite."""
LARGEST_WEIGHT = 1e15
"""Of a tensor: no network has larger ones, and weighted sums of them are finite in single
precision."""

_METRIC = re.compile(r"[a-z][a-z0-9_\-]{0,99}")
_STAGE = re.compile(r"[a-z][a-z0-9_]{0,59}")
_SPLITS = ("train", "val", "test")


class Unfit(Exception):
    """An answer that cannot be used; the message says why, as the end of a sentence about a site
    ("sent a model of another shape"), with marks for what a terminal would obey."""

    def __init__(self, reason: str) -> None:
        super().__init__(clean(reason))


def clean(text: str, longest: int = LONGEST_SENTENCE) -> str:
    """``text`` with marks for what a terminal would obey and for what UTF-8 cannot spell, at most
    ``longest`` characters long."""
    return visible(text[:longest]).encode(errors="replace").decode()


def reads(what: str) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Make a function that reads ``what`` raise :class:`Unfit` alone: bytes from elsewhere make any
    parser stumble."""

    def decorate(read: Callable[P, T]) -> Callable[P, T]:
        @wraps(read)
        def reader(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                return read(*args, **kwargs)
            except Unfit:
                raise
            except KeyError as error:
                raise Unfit(f"sent {what} without {clean(str(error), 80)}") from error
            except Exception as error:
                reason = clean(" ".join(str(error).split()), 200) or type(error).__name__
                raise Unfit(f"sent {what} that cannot be read: {reason}") from error

        return reader

    return decorate


@reads("a name")
def read_name(content: RecordDict) -> str:
    """The name that a site gives itself: one that a folder can have."""
    record = content[ANSWER]
    if not isinstance(record, ConfigRecord):
        raise Unfit("sent no name")
    name = _name(record["site"])
    if fault := unusable_site_name(name):
        raise Unfit(f"sent a name that {fault}: {clean(name)!r}")
    return name


@reads("a site card")
def read_card(content: RecordDict, site: str) -> SiteCard:
    """What ``site`` says of itself."""
    told = read_details(content)
    card = SiteCard.from_json(told)
    if card.name != site:
        raise Unfit(f"sent the card of {_name(card.name)!r}")
    if card.role not in ("train", "unseen"):
        raise Unfit(f"sent a role that there is not: {_name(card.role)!r}")
    if set(card.splits) != set(_SPLITS):
        raise Unfit("sent counts of other splits than train, val and test")
    splits = {split: _counts(card.splits[split], split) for split in _SPLITS}
    parts = _names(card.parts)
    labelled = _names(card.labelled)
    if not set(labelled) <= set(parts):
        raise Unfit("says that it labels what is none of its parts")
    if not isinstance(card.teaches, Mapping) or set(card.teaches) != set(parts):
        raise Unfit("says of other parts than its own how many slices teach them")
    most = splits["train"]["labelled"]
    size = [_count(side, 2**15, least=1) for side in card.size]
    if len(size) != 2:
        raise Unfit("sent a grid of other than two sides")
    if not isinstance(card.complete, bool):
        raise Unfit("does not say whether its labels tell of everything")
    spacings = [[_number(side, 0.0, 1e6) for side in spacing] for spacing in card.spacing_mm]
    if len(spacings) > MOST_NOTES or any(len(spacing) != 3 for spacing in spacings):
        raise Unfit("sent spacings that are not of three directions")
    return SiteCard(
        name=card.name,
        role=card.role,
        vendors=_names(card.vendors),
        parts=parts,
        labelled=labelled,
        teaches={part: _count(card.teaches[part], most) for part in parts},
        complete=card.complete,
        splits=splits,
        spacing_mm=tuple((a, b, c) for a, b, c in spacings),
        size=(size[0], size[1]),
        notes=tuple(clean(_text(note, 10**6)) for note in card.notes[:MOST_NOTES]),
        channels=_count(card.channels, 4096, least=1),
    )


def _counts(told: Any, split: str) -> dict[str, int]:
    counts = {key: _count(told[key]) for key in ("subjects", "cases", "slices", "labelled")}
    ordered = counts["subjects"] <= counts["cases"] <= counts["slices"]
    if not ordered or counts["labelled"] > counts["slices"]:
        raise Unfit(f"sent counts of the split {split} that do not fit each other")
    return counts


@reads("a method's card")
def read_method(content: RecordDict, task: str, parts: Sequence[str]) -> tuple[MethodCard, Arrays]:
    """What a site says of the run's method with ``task``, whose ``parts`` the run asks for, and the
    weights that all sites start from."""
    told = read_details(content)
    if len(told["tensors"]) > MOST_TENSORS:
        raise Unfit(f"names more than {MOST_TENSORS} tensors")
    card = MethodCard.from_json(told)
    tensors = {_name(name): _tensor(info) for name, info in card.tensors.items()}
    if card.participation not in ("labelled", "all", "both"):
        raise Unfit("does not say at which sites the method trains")
    if card.task.name != task or tuple(card.task.parts) != tuple(parts):
        raise Unfit(f"sent the card of another task than {task}")
    for switch in (card.complete_labels, card.adapts, card.augments):
        if not isinstance(switch, bool):
            raise Unfit("does not say which labels the method needs, or whether it adapts")
    if any(not isinstance(stage, str) or not _STAGE.fullmatch(stage) for stage in card.stages):
        raise Unfit("names a stage that is no name")
    card = replace(
        card,
        tensors=tensors,
        offers=_names(card.offers),
        task=_task(card.task),
    )
    arrays = read_arrays(content)
    if arrays.keys() != tensors.keys():
        raise Unfit("sent other tensors than its card names")
    for name, info in tensors.items():
        check_tensor(name, arrays[name], info)
    return card, arrays


def _tensor(info: TensorInfo) -> TensorInfo:
    if info.role not in ("weight", "norm", "norm_buffer"):
        raise Unfit("names a tensor of no known role")
    if info.sharing not in ("averaged", "broadcast", "balanced", "summed", "kept"):
        raise Unfit("names a tensor that is shared in no known way")
    if info.dtype not in DTYPES or len(info.shape) > MOST_SIDES:
        raise Unfit("names a tensor of no known type")
    _name(info.network)
    _names(info.domains)
    for side in info.shape:
        _count(side)
    if info.adam is not None:
        for field, value in vars(info.adam).items():
            if field in ("constant_until", "last_round"):
                _count(value)
            else:
                _number(value, 0.0, 1e6)
    return info


def _task(card: TaskCard) -> TaskCard:
    def told(measure: Measure) -> Measure:
        for switch in (measure.listed, measure.summarised, measure.sparse, measure.whole):
            if not isinstance(switch, bool):
                raise Unfit(f"does not say of which kind the measure {measure.name} is")
        title, unit = _name(measure.title), _name(measure.unit)
        return replace(measure, title=title, unit=unit, note=clean(_text(measure.note)))

    if len(card.measures) > 100:
        raise Unfit("names more than 100 measures")
    return replace(
        card,
        title=_name(card.title),
        part=_name(card.part),
        parts=_names(card.parts),
        measures=tuple(told(measure) for measure in card.measures),
        failure=clean(_text(card.failure)),
    )


def check_tensor(name: str, array: np.ndarray, info: TensorInfo) -> None:
    """Raise :class:`Unfit` unless ``array`` is the tensor that ``info`` describes, of numbers that
    a network can have."""
    name = clean(name, LONGEST_NAME)
    if array.shape != tuple(info.shape):
        raise Unfit(f"sent {name} of shape {array.shape} instead of {tuple(info.shape)}")
    if array.dtype != np.dtype(info.dtype):
        raise Unfit(f"sent {name} of type {array.dtype} instead of {info.dtype}")
    if fault := extent(array, LARGEST_WEIGHT):
        raise Unfit(f"sent {name} {fault}")


def extent(array: np.ndarray, most: float) -> str | None:
    """What is wrong with the numbers of ``array``, one of which is not finite or beyond ``most``;
    None if all is well."""
    # A sum of squares is small only where every number is, and takes half the time. It may be
    # large or overflow, too: then each number is looked at.
    flat = array.reshape(-1)
    if np.issubdtype(array.dtype, np.floating):
        with np.errstate(over="ignore", invalid="ignore"):
            # As a float: to single precision the bound itself would be infinite.
            if float(np.dot(flat, flat)) <= most * most:
                return None
        if not np.isfinite(array).all():
            return "with numbers that are not finite"
    largest = max(abs(float(flat.max(initial=0))), abs(float(flat.min(initial=0))))
    return f"with numbers beyond {most:g}" if largest > most else None


@dataclass(frozen=True)
class Trained:
    """What a site says of its training: examples by sub-network, and its domain."""

    examples: dict[str, float]
    domain: str


@reads("an update")
def read_trained(content: RecordDict, tensors: Mapping[str, TensorInfo], most: int) -> Trained:
    """What an update says of its arrays; a site has ``most`` examples at most. ``tensors`` are
    the method's."""
    told = read_details(content)
    networks = {info.network for info in tensors.values()}
    examples: dict[str, float] = {}
    for network, count in told["trained"].items():
        if network not in networks:
            raise Unfit(f"trained a sub-network that there is not: {_name(network)}")
        value = float(count)
        if not 0 < value < math.inf:
            raise Unfit("trained on no example")
        if value > most:
            raise Unfit(f"trained on {value:g} examples and has {most}")
        examples[network] = value
    domains = {domain for info in tensors.values() for domain in info.domains}
    domain = _name(told.get("domain", ""))
    needed = any(info.domains for info in tensors.values() if info.network in examples)
    if needed and domain not in domains:
        raise Unfit(f"trained for a domain that there is not: {domain}")
    return Trained(examples, domain)


@reads("metrics")
def read_metrics(content: RecordDict) -> dict[str, float]:
    """The single numbers among an answer's metrics; those of an update may be nan."""
    record = content.get(METRICS)
    if record is None:
        return {}
    if not isinstance(record, MetricRecord) or len(record) > 1000:
        raise Unfit("sent metrics that are none")
    found = {}
    for name, value in record.items():
        if isinstance(value, list):
            continue
        if not _METRIC.fullmatch(name):
            raise Unfit(f"sent a metric whose name is none: {_name(name)!r}")
        found[name] = float(value)
    return found


@reads("an update's metrics")
def read_update_metrics(content: RecordDict, examples: int) -> dict[str, float]:
    """The metrics of an update of a site that has so many ``examples`` at most: none that only a
    validation or the coordinator itself tells, which would stand in its place in the tables."""
    metrics = read_metrics(content)
    if len(metrics) > _MOST_METRICS:
        raise Unfit(f"sent more than {_MOST_METRICS} metrics with its update")
    for name in metrics:
        if name.startswith("val_") or name in _COORDINATORS:
            raise Unfit(f"sent {name} with its update, which is not the training's to tell")
    _number(metrics.get(EXAMPLES, 0.0), 0, examples, EXAMPLES)
    _number(metrics.get("seconds", 0.0), 0, math.inf, "seconds")
    return metrics


_MOST_METRICS = 100
_COORDINATORS = frozenset({"examples", "bytes_down", "bytes_up", "weight_share"})
"""What the coordinator itself says of a site in a round's line."""


@reads("validation metrics")
def read_validation(content: RecordDict, headline: Measure) -> dict[str, float]:
    """The metrics of a validation, among which that of the task's ``headline``, in its range,
    unless the site has nothing to validate on."""
    metrics = read_metrics(content)
    if metrics[EXAMPLES]:
        _number(metrics[validated(headline)], headline.low, headline.high, headline.name)
    return metrics


def validated(headline: Measure) -> str:
    """The metric of a validation that is the task's ``headline``."""
    return f"val_{headline.name}"


@dataclass(frozen=True)
class Measured:
    """What a site measures of one model: a row a case and part, and one a measure of a whole split,
    each with the keys that its table's columns have."""

    cases: list[dict[str, Any]]
    wholes: list[dict[str, Any]]


@reads("scores")
def read_scores(
    content: RecordDict, task: TaskCard, splits: Sequence[str], card: SiteCard | None
) -> Measured:
    """The scores of the ``splits`` that were asked for; ``card`` is the site's, None where none was
    asked for."""
    told = read_details(content)
    if "means" in told:  # All that the site's policy lets be told.
        return Measured([], _means(told["means"], task, splits, card))
    record = content[METRICS]
    columns = {name: record[name] for name in ("failed", *(m.name for m in task.per_case))}
    if len(told["rows"]) > _most_rows(task, splits, card):
        raise Unfit("sent scores of more cases than it has")
    cases: list[dict[str, Any]] = []
    seen: set[tuple[str, ...]] = set()
    for keys, values in zip(told["rows"], zip(*columns.values(), strict=True), strict=True):
        key = dict(zip(("split", "vendor", "subject", "case", "part"), keys, strict=True))
        row = {name: _name(text) for name, text in key.items()}
        _check_place(row, task, splits, card)
        if (place := tuple(row.values())) in seen:
            raise Unfit(f"sent two scores of {row['case']}")
        seen.add(place)
        measured = dict(zip(columns, values, strict=True))
        if measured["failed"] not in (0, 1):
            raise Unfit("sent scores that neither failed nor did not")
        for measure in task.per_case:
            value = measured[measure.name]
            if not (measure.sparse and isinstance(value, float) and math.isnan(value)):
                _number(value, measure.low, measure.high, measure.name)
        cases.append({**row, **measured})
    return Measured(cases, _wholes(told["wholes"], task, splits, card))


def _of_splits(
    told: Any,
    fields: Sequence[str],
    measures: Mapping[str, Measure],
    kind: str,
    place: tuple[TaskCard, Sequence[str], SiteCard | None],
) -> Iterator[tuple[dict[str, Any], Measure]]:
    """The rows of ``fields``, each of another split, vendor, part and one of the ``measures`` of a
    ``kind``; and that measure."""
    seen: set[tuple[str, ...]] = set()
    for line in told:
        row = dict(zip(fields, line, strict=True))
        key = tuple(_name(row[name]) for name in ("split", "vendor", "part", "metric"))
        _check_place(row, *place)
        if row["metric"] not in measures:
            raise Unfit(f"sent {row['metric']!r}, which is no measure {kind}")
        if key in seen:
            raise Unfit(f"sent {row['metric']} twice")
        seen.add(key)
        _count(row["n"])
        yield row, measures[row["metric"]]


def _check_value(value: Any, measure: Measure) -> None:
    """Raise :class:`Unfit` unless ``value`` is one of the measure's, or nan."""
    if not (isinstance(value, float) and math.isnan(value)):
        _number(value, measure.low, measure.high, measure.name)


def _wholes(
    told: Any, task: TaskCard, splits: Sequence[str], card: SiteCard | None
) -> list[dict[str, Any]]:
    fields = ("split", "vendor", "part", "metric", "n", "value", "low", "high")
    measures = {measure.name: measure for measure in task.measures if measure.whole}
    found = []
    place = (task, splits, card)
    for row, measure in _of_splits(told, fields, measures, "of a whole split", place):
        for name in ("value", "low", "high"):
            _check_value(row[name], measure)
        found.append({**row, "n_failed": 0})
    return found


def _means(
    told: Any, task: TaskCard, splits: Sequence[str], card: SiteCard | None
) -> list[dict[str, Any]]:
    """Means over a site's cases, which stand where measures of a whole split do."""
    fields = ("split", "vendor", "part", "metric", "n", "n_failed", "value")
    measures = {measure.name: measure for measure in task.measures if measure.summarised}
    found = []
    place = (task, splits, card)
    for row, measure in _of_splits(told, fields, measures, "that is summarised", place):
        if card is not None:
            _count(row["n"], card.splits[row["split"]]["cases"])
        _count(row["n_failed"], row["n"])
        _check_value(row["value"], measure)
        found.append({**row, "low": math.nan, "high": math.nan})
    return found


def _most_rows(task: TaskCard, splits: Sequence[str], card: SiteCard | None) -> int:
    if card is None:
        return MOST_COUNT
    cases = sum(card.splits[split]["cases"] for split in splits)
    return cases * max(1, len(card.parts), len(task.parts))


def _check_place(
    row: Mapping[str, Any], task: TaskCard, splits: Sequence[str], card: SiteCard | None
) -> None:
    """Raise :class:`Unfit` where a row of scores is of what was not asked for."""
    if row["split"] not in splits:
        raise Unfit(f"sent scores of the split {row['split']!r}, which was not asked for")
    if row["part"] and row["part"] not in task.parts:
        raise Unfit(f"sent scores of {row['part']!r}, which is not among what was to be learnt")
    if card is not None and not _named(row["vendor"], card.vendors):
        raise Unfit(f"sent scores of {row['vendor']!r}, which its card does not name")


def _named(vendor: str, vendors: Sequence[str]) -> bool:
    """Whether ``vendor`` is one of ``vendors``, or several of them joined by plus signs."""
    return vendor in vendors or set(vendor.split("+")) <= set("+".join(vendors).split("+"))


@reads("a model")
def read_model(
    content: RecordDict, tensors: Mapping[str, TensorInfo], wanted: Collection[str]
) -> Arrays:
    """The tensors that a site holds of a model, which are among ``tensors``, with all ``wanted``
    ones."""
    arrays = read_arrays(content)
    if missing := sorted(set(wanted).difference(arrays)):
        raise Unfit(f"sent a model without {missing[0]}")
    for name, array in arrays.items():
        if name not in tensors:
            raise Unfit(f"sent the tensor {clean(name, 200)}, which the method does not have")
        check_tensor(name, array, tensors[name])
    return arrays


_SHAPES: dict[str, tuple[int | str, ...]] = {
    names.INTENSITY_HISTOGRAM: (names.INTENSITY_BINS,),
    names.LOG_SPECTRUM: (len(names.SPECTRUM_FREQUENCIES),),
    names.FEATURE_COUNT: (1,),
    names.FEATURE_MEAN: ("features",),
    names.FEATURE_COVARIANCE: ("features", "features"),
    names.BLOCK_COUNTS: ("blocks",),
    names.BLOCK_FEATURES: ("blocks", "projected"),
    names.TRAINING_SECOND_MOMENT: ("projected", "projected"),
    names.NORM_MEAN: ("channels",),
    names.NORM_VARIANCE: ("channels",),
    names.LABELS: ("labels",),
}
"""The shapes of a summary's arrays; a side of one name has one length."""
_MOST = {
    "features": names.FEATURE_DIM,
    "projected": names.DOMAIN_DIM,
    "blocks": names.MAX_BLOCKS,
    "channels": 10**6,
    "labels": 10**5,
}
_COUNTS = (names.INTENSITY_HISTOGRAM, names.FEATURE_COUNT, names.BLOCK_COUNTS)
_NOT_NEGATIVE = (*_COUNTS, names.NORM_VARIANCE, names.LABELS)


@reads("image statistics")
def read_summary(content: RecordDict, card: SiteCard) -> Arrays:
    """A site's summary of its images (:mod:`fedshift.protocol.statistics`), which are no more than
    those of its ``card``."""
    found = read_arrays(content, STATISTICS)
    sides: dict[str, int] = {}
    for name, array in found.items():
        if name not in _SHAPES:
            raise Unfit(f"sent a statistic that nobody asked for: {_name(name)}")
        _check_numbers(name, array, nan=name == names.LABELS)
        if array.ndim != len(_SHAPES[name]):
            raise Unfit(f"sent {name} of shape {array.shape}")
        for side, length in zip(_SHAPES[name], array.shape, strict=True):
            wanted = side if isinstance(side, int) else sides.setdefault(side, length)
            most = length if isinstance(side, int) else _MOST[side]
            if length != wanted or not 1 <= length <= most:
                raise Unfit(f"sent {name} of shape {array.shape}")
        if name in _NOT_NEGATIVE and (array < 0).any():
            raise Unfit(f"sent {name} with negative numbers")
        if name in _COUNTS and not 0 < array.sum() <= 1e15:
            raise Unfit(f"sent {name} of nothing")
    together = (names.FEATURE_COUNT, names.FEATURE_MEAN, names.FEATURE_COVARIANCE)
    blocks = (names.BLOCK_COUNTS, names.BLOCK_FEATURES, names.TRAINING_SECOND_MOMENT)
    for group in (together, blocks, (names.NORM_MEAN, names.NORM_VARIANCE)):
        if 0 < sum(name in found for name in group) < len(group):
            raise Unfit(f"sent some of {', '.join(group)}, and not all")
    images = card.splits["train" if card.role == "train" else "test"]["slices"]
    for name in set(found) & {names.FEATURE_COUNT, names.BLOCK_COUNTS}:
        if found[name].sum() > images:
            raise Unfit(f"sent {name} of {found[name].sum():g} images and has {images}")
    if names.FEATURE_COVARIANCE in found:
        _check_moment(names.FEATURE_COVARIANCE, found[names.FEATURE_COVARIANCE])
    if names.BLOCK_COUNTS in found:
        counts, means = found[names.BLOCK_COUNTS], found[names.BLOCK_FEATURES]
        if not (counts > 0).all():
            raise Unfit(f"sent {names.BLOCK_COUNTS} of empty blocks")
        moment = found[names.TRAINING_SECOND_MOMENT]
        training = means[names.TRAINING_BLOCKS]
        between = (training.T * counts[names.TRAINING_BLOCKS]) @ training
        # Else a discriminant of it might not exist.
        _check_moment(names.TRAINING_SECOND_MOMENT, moment - between, float(np.trace(moment)))
    return found


def _check_moment(name: str, matrix: np.ndarray, scale: float | None = None) -> None:
    """Raise :class:`Unfit` unless ``matrix`` is a covariance, but for rounding of the ``scale``."""
    slack = 1e-6 * (float(np.trace(matrix)) if scale is None else scale) + 1e-9
    if np.abs(matrix - matrix.T).max() > slack or np.linalg.eigvalsh(matrix).min() < -slack:
        raise Unfit(f"sent {name} that no images have")


@reads("an answer about domain shift")
def read_shift_answer(
    content: RecordDict, summary: Mapping[str, np.ndarray], question: Mapping[str, np.ndarray]
) -> Arrays:
    """A site's answer to the ``question``, which followed its ``summary``."""
    found = read_arrays(content, STATISTICS)
    if not found:
        return {}
    counts = summary[names.BLOCK_COUNTS]
    held_out = counts[names.HELD_OUT_BLOCKS]
    waves = 2 * names.FOURIER_FREQUENCIES * len(names.BANDWIDTH_FACTORS)
    shapes: dict[str, tuple[int, ...]] = {names.FOURIER_MEANS: (len(counts), waves)}
    if names.THRESHOLDS in question:
        shapes[names.DOMAIN_COUNTS] = (len(held_out), len(question[names.THRESHOLDS]))
    if found.keys() != shapes.keys():
        raise Unfit("answered another question than it was asked")
    for name, shape in shapes.items():
        _check_numbers(name, found[name])
        if found[name].shape != shape:
            raise Unfit(f"sent {name} of shape {found[name].shape} instead of {shape}")
    if np.abs(found[names.FOURIER_MEANS]).max(initial=0.0) > 1:
        raise Unfit(f"sent {names.FOURIER_MEANS} that are no means of waves")
    above = found.get(names.DOMAIN_COUNTS)
    if above is not None and ((above < 0) | (above > held_out[:, None])).any():
        raise Unfit(f"sent {names.DOMAIN_COUNTS} of more images than it has")
    return found


@reads("statistics")
def read_published(content: RecordDict, most: int) -> Arrays:
    """What a site publishes to the others beside its update: at most ``most`` bytes, its names
    counted."""
    found = read_arrays(content, STATISTICS)
    if sum(len(name.encode()) + array.nbytes for name, array in found.items()) > most:
        raise Unfit(f"published more than {most} bytes")
    for name, array in found.items():
        if "::" in name or clean(name, LONGEST_NAME) != name:
            raise Unfit(f"published a statistic whose name is none: {_name(name)!r}")
        if fault := extent(array, LARGEST_NUMBER):
            raise Unfit(f"published {name} {fault}")
    return found


def odd_ones(
    answers: Mapping[str, Mapping[str, np.ndarray]], free: Mapping[str, int] | None = None
) -> dict[str, str]:
    """Of sites that must send the same arrays, those whose differ in shape or type from what most
    sent, and how. Where there are as many of two kinds, the site that comes first by name is
    right. The first sides of the arrays in ``free`` may differ, as many as it says."""
    odd: dict[str, str] = {}
    for name in sorted({name for arrays in answers.values() for name in arrays}):
        first = (free or {}).get(name, 0)
        kinds: dict[tuple[tuple[int, ...], str], list[str]] = {}
        for site in sorted(answers):
            if name in answers[site]:
                array = answers[site][name]
                kinds.setdefault((array.shape[first:], array.dtype.name), []).append(site)
        usual = max(kinds, key=lambda kind: len(kinds[kind]))
        for (shape, dtype), sites in kinds.items():
            if (shape, dtype) != usual:
                how = f"sent {name} of {dtype} {shape}, and most sites of {usual[1]} {usual[0]}"
                odd.update(dict.fromkeys(sites, how))
    return odd


BLOCKWISE = {names.BLOCK_COUNTS: 1, names.BLOCK_FEATURES: 1, names.FOURIER_MEANS: 1}
"""The first side of these arrays of a summary is that of the site's own blocks."""


def _check_numbers(name: str, array: np.ndarray, *, nan: bool = False) -> None:
    if array.dtype != np.float64:
        raise Unfit(f"sent {name} of type {array.dtype} instead of float64")
    known = array[~np.isnan(array)] if nan else array
    if fault := extent(known, LARGEST_NUMBER):
        raise Unfit(f"sent {name} {fault}")


@reads("details")
def read_details(content: RecordDict) -> dict[str, Any]:
    """The JSON part of an answer, whatever it says: an object of bounded size."""
    record = content[ANSWER]
    if not isinstance(record, ConfigRecord):
        raise Unfit("sent no details")
    text = record["details"]
    if not isinstance(text, str) or len(text) > MOST_DETAILS:
        raise Unfit(f"sent details that are no text of at most {MOST_DETAILS} characters")
    told = json.loads(text)
    if not isinstance(told, dict):
        raise Unfit("sent details that are no object")
    return told


def _text(value: Any, longest: int = LONGEST_SENTENCE) -> str:
    if not isinstance(value, str) or len(value) > longest:
        raise Unfit(f"sent what is no text of at most {longest} characters")
    return value


def _name(value: Any) -> str:
    """A name as it is, which stands for something: tables and pages hold it, escaped."""
    name = _text(value, 2 * LONGEST_NAME)
    name.encode()  # Raises where it cannot be spelt.
    return name


def _names(values: Any) -> tuple[str, ...]:
    if isinstance(values, str) or len(values) > MOST_NOTES:
        raise Unfit("sent what is no list of names")
    found = tuple(_name(value) for value in values)
    if len(set(found)) < len(found):
        raise Unfit("sent a name twice")
    return found


def _count(value: Any, most: int = MOST_COUNT, least: int = 0) -> int:
    if type(value) is not int or not least <= value <= most:
        raise Unfit(f"sent what is no whole number from {least} to {most}")
    return value


def _number(value: Any, low: float, high: float, what: str = "a number") -> float:
    if type(value) not in (int, float):
        raise Unfit(f"sent {what} that is none")
    number = float(value)
    if not (math.isfinite(number) and low <= number <= high):
        raise Unfit(f"sent {what} of {number:g}, which is not between {low:g} and {high:g}")
    return number
