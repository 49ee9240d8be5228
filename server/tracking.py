"""A run's numbers for other tools: ``rounds.csv``, and the optional TensorBoard and MLflow sinks.

``rounds.jsonl`` is the record of a run; everything here is made from its lines. A sink is fed each
line as it is written. When a run goes on it is fed the lines so far once more and keeps each point
once, so that none is lost to a kill either. Sinks write to the run's folder, below ``tracking/``,
and nothing is sent over a network.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Protocol

from fedshift import UserError
from fedshift.protocol.storage import read_yaml, write_atomic
from fedshift.protocol.tables import csv_text

FOLDER = "tracking"
"""The folder of the sinks in a run's folder."""

_IDENTITY = ("round", "model", "site")
_PROBLEM = "problem"


def write_table(path: Path, lines: Sequence[Mapping[str, Any]], model: str) -> None:
    """Write ``rounds.csv``: a row for each round, model and site, in this order.

    ``lines`` are those of ``rounds.jsonl``, ``model`` the name of the one that is not a baseline.
    After ``round``, ``model`` and ``site`` comes a column for each number that some site has (the
    union over the run, sorted; ``nan`` where it is missing), then ``problem``: why the site failed
    or its update was rejected, else empty.
    """
    rows = []
    for line in lines:
        for name, part in {model: line, **line["baselines"]}.items():
            problems = {**part["failed"], **part["rejected"]}
            for site in sorted({*part["sites"], *problems}):
                numbers = part["sites"].get(site, {})
                rows.append((line["round"], name, site, numbers, problems.get(site, "")))
    columns = sorted({column for *_, numbers, _ in rows for column in numbers})
    filled = []
    for *identity, numbers, problem in rows:
        found = [numbers.get(column) for column in columns]
        filled.append([*identity, *(math.nan if x is None else x for x in found), problem])
    write_atomic(path, csv_text([*_IDENTITY, *columns, _PROBLEM], filled))


def scalars(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line of ``rounds.jsonl``, each under its path, such as
    ``sites/vendor_a/loss``; the round's own number is what they are drawn over and left out."""
    for key, value in node.items():
        path = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from scalars(value, f"{path}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool) and path != "round":
            yield path, float(value)


class Sink(Protocol):
    """Takes the numbers of a run, round by round. Every time a run starts or goes on, a new object
    is made and fed from the first round."""

    def add(self, line: Mapping[str, Any]) -> None:
        """Take a line of ``rounds.jsonl``."""

    def close(self) -> None:
        """Write what is left."""


class TensorBoard:
    """Event files in ``folder``, written anew each time; a curve for each number."""

    def __init__(self, folder: Path, run: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder, ignore_errors=True)
        self._writer = SummaryWriter(str(folder))

    def add(self, line: Mapping[str, Any]) -> None:
        """One point a curve, at the round's number."""
        for path, value in scalars(line):
            self._writer.add_scalar(path, value, line["round"])
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()


class MLflow:
    """One MLflow run in the SQLite file ``folder/mlflow.db``, named after the run's folder, with
    the resolved configuration as its parameters.

    A point's time is its round: MLflow takes a point that equals one it has, time included, for the
    same, which makes it harmless to be fed again. (Its store of plain files is no longer maintained
    and refuses to start.)
    """

    def __init__(self, folder: Path, run: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        for name in ("mlflow", "alembic"):  # They tell how the tables are made.
            logging.getLogger(name).setLevel(logging.WARNING)
        folder.mkdir(parents=True, exist_ok=True)
        self._metric = Metric
        self._client = MlflowClient(tracking_uri=f"sqlite:///{(folder / 'mlflow.db').resolve()}")
        found = self._client.get_experiment_by_name("fedshift")
        if found is None:
            experiment = self._client.create_experiment("fedshift", folder.resolve().as_uri())
        else:
            experiment = found.experiment_id
        begun = self._client.search_runs([experiment])
        current = begun[0] if begun else self._client.create_run(experiment, run_name=run.name)
        self._run = current.info.run_id
        config = read_yaml(run / "config.yaml")
        settings = [Param(_mlflow_name(key), value[:500]) for key, value in _texts(config)]
        for part in _parts(settings, 100):
            self._client.log_batch(self._run, params=part)
        self._client.update_run(self._run, status="RUNNING")

    def add(self, line: Mapping[str, Any]) -> None:
        """One point a metric, with the round's number as its step."""
        number = line["round"]
        found = [self._metric(_mlflow_name(k), v, number, number) for k, v in scalars(line)]
        for part in _parts(found, 1000):
            self._client.log_batch(self._run, metrics=part)

    def close(self) -> None:
        """Mark the run as ended."""
        self._client.set_terminated(self._run)


def _mlflow_name(text: str) -> str:
    """``text`` in the characters that MLflow allows."""
    return re.sub(r"[^\w.\-: /]", "_", text)


def _texts(node: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in node.items():
        if isinstance(value, Mapping):
            yield from _texts(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", str(value)


def _parts(items: list[Any], size: int) -> Iterator[list[Any]]:
    """MLflow takes so many at once."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


SINKS: dict[str, Callable[[Path, Path], Sink]] = {"tensorboard": TensorBoard, "mlflow": MLflow}
_PACKAGES = {"tensorboard": "tensorboard", "mlflow": "mlflow-skinny"}


def check(names: Sequence[str]) -> None:
    """Raise :class:`UserError` when a sink's package is not installed."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(
                f"tracking=[{name}] needs a package that is not installed; run pip install "
                f"{_PACKAGES[name]} or leave it out"
            )


@contextmanager
def opened(
    run: Path, names: Sequence[str], lines: Sequence[Mapping[str, Any]]
) -> Iterator[list[Sink]]:
    """The sinks ``names`` of the run in the folder ``run``, holding the ``lines`` so far."""
    with ExitStack() as stack:
        sinks: list[Sink] = []
        for name in names:
            sink = SINKS[name](run / FOLDER / name, run)
            stack.callback(sink.close)
            for line in lines:
                sink.add(line)
            sinks.append(sink)
        yield sinks
