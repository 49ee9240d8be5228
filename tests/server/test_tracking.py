"""rounds.csv, always there, and the optional sinks."""

from __future__ import annotations

import csv
import importlib.util
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedshift import UserError
from fedshift.server import tracking

LINE = {
    "round": 1,
    "seconds": 2.5,
    "bytes_up": 10,
    "sites": {"a": {"loss": 0.5, "val_dice": None}, "b": {"loss": 0.25, "steps": 3}},
    "failed": {"c": "no answer"},
    "rejected": {"b": "sent a non-finite update: net/w"},
    "skipped": None,
    "baselines": {
        "local": {"sites": {"a": {"loss": 1}}, "bytes_up": 0, "failed": {}, "rejected": {}}
    },
}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_row_for_each_round_model_and_site(tmp_path: Path) -> None:
    later = {**LINE, "round": 2, "sites": {"a": {"loss": 0.125}}, "failed": {}, "rejected": {}}
    tracking.write_table(tmp_path / "rounds.csv", [LINE, later], "federated")
    assert (tmp_path / "rounds.csv").read_text().splitlines() == [
        "round,model,site,loss,steps,val_dice,problem",
        "1,federated,a,0.5,nan,nan,",
        "1,federated,b,0.25,3,nan,sent a non-finite update: net/w",
        "1,federated,c,nan,nan,nan,no answer",
        "1,local,a,1,nan,nan,",
        "2,federated,a,0.125,nan,nan,",
        "2,local,a,1,nan,nan,",
    ]


def test_points_are_named_by_their_path() -> None:
    assert dict(tracking.scalars(LINE)) == {
        "seconds": 2.5,
        "bytes_up": 10,
        "sites/a/loss": 0.5,
        "sites/b/loss": 0.25,
        "sites/b/steps": 3,
        "baselines/local/sites/a/loss": 1,
        "baselines/local/bytes_up": 0,
    }


def test_a_run_writes_the_numbers_of_its_lines(reference: Path) -> None:
    rows = rows_of(reference / "rounds.csv")
    lines = [json.loads(text) for text in (reference / "rounds.jsonl").read_text().splitlines()]
    assert {row["model"] for row in rows} == {"federated", "local", "pooled"}
    for line in lines:
        for site, numbers in line["sites"].items():
            wanted = (str(line["round"]), "federated", site)
            (row,) = [r for r in rows if (r["round"], r["model"], r["site"]) == wanted]
            assert {key: float(row[key]) for key in numbers} == numbers
    expected = sum(
        len(part["sites"]) for line in lines for part in (line, *line["baselines"].values())
    )
    assert len(rows) == expected


def test_a_missing_package_is_named_before_training(
    command: Callable[..., Any],
    tiny: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = importlib.util.find_spec

    def lacking(name: str, package: str | None = None) -> Any:
        return None if name == "mlflow" else found(name, package)

    monkeypatch.setattr(importlib.util, "find_spec", lacking)
    out = tmp_path / "run"
    ended = command("simulate", *tiny, "tracking=[mlflow]", f"out={out}")
    assert ended.code == 2
    assert "pip install mlflow-skinny" in ended.err
    assert not (out / "config.yaml").exists()
    tracking.check([])


def test_an_unknown_sink_is_refused(simulate: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="must be one of tensorboard, mlflow"):
        simulate(tmp_path / "run", "tracking=[wandb]")


def curves(run: Path) -> dict[str, list[tuple[int, float]]]:
    """What a run's event files hold."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run / "tracking" / "tensorboard"))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def test_tensorboard_holds_each_point_once(
    simulate_undrawn: Callable[..., Path], cut_short: Callable[..., Path], tmp_path: Path
) -> None:
    """In a run that went on after round 1 with the event file of two rounds in its folder."""
    pytest.importorskip("tensorboard")
    options = ("tracking=[tensorboard]",)
    run = simulate_undrawn(tmp_path / "run", *options)
    cut = cut_short(run, tmp_path / "cut")
    simulate_undrawn(cut, *options, "resume=true")
    for folder in (run, cut):
        found = curves(folder)
        lines = (folder / "rounds.jsonl").read_text().splitlines()
        expected = [dict(tracking.scalars(json.loads(line))) for line in lines]
        assert set(found) == set().union(*expected)
        for tag, points in found.items():
            assert [step for step, _ in points] == [1, 2]
            wanted = [values[tag] for values in expected]
            assert [value for _, value in points] == pytest.approx(wanted, rel=1e-6)


def test_mlflow_holds_the_run_and_its_configuration(reference: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    shutil.copy(reference / "config.yaml", tmp_path)
    lines = [LINE, {**LINE, "round": 2, "sites": {"a": {"loss": 0.125}}}]
    for _ in range(2):  # The second time as after a kill.
        with tracking.opened(tmp_path, ["mlflow"], lines[:1]) as (sink,):
            sink.add(lines[1])
    database = tmp_path / "tracking" / "mlflow" / "mlflow.db"
    client = MlflowClient(tracking_uri=f"sqlite:///{database}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "fedshift"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    assert run.data.params["strategy.name"] == "fedavg"
    history = client.get_metric_history(run.info.run_id, "sites/a/loss")
    assert [(point.step, point.value) for point in history] == [(1, 0.5), (2, 0.125)]
