"""What a method may ask of the federation: sites without labels, gradients by domain, stages,
published statistics. The methods here do next to nothing, so that every number can be told."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.measured import SEGMENTATION
from torch import nn

from fedshift import UserError
from fedshift.client.augmentation import Augmentation
from fedshift.client.contract.method import (
    BROADCAST,
    FitReport,
    Method,
    Participation,
    Sharing,
)
from fedshift.client.contract.task import Task
from fedshift.client.methods import METHODS
from fedshift.client.tasks.segmentation import Segmentation
from fedshift.protocol.messages import Adam
from fedshift.protocol.settings import setting
from fedshift.protocol.storage import read_tensors
from fedshift.runs.config import load
from fedshift.runs.simulate import simulate
from fedshift.server.tables.files import read_cross_site

RATE = 0.25


class Vector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(2))


@dataclass(frozen=True)
class Toy(Method):
    """``shared`` is set by labelled sites, ``bridge`` gets the gradient 1 at labelled and 2 at
    unlabelled ones; predictions say "background" at the stage ``early`` and else the first
    structure."""

    tasks = frozenset({Segmentation})
    participation = Participation.BOTH
    stages = ("early",)

    summarised: int = setting(10)
    silent: int = setting(0)
    augmentation: Augmentation = field(default_factory=Augmentation)

    def networks(self, task: Task) -> dict[str, nn.Module]:
        return {"shared": Vector(), "bridge": Vector()}

    def sharing(self, task: Task) -> dict[str, Sharing]:
        adam = Adam(RATE)
        return {"shared": BROADCAST, "bridge": Sharing("summed", ("source", "target"), adam)}

    def fit(self, site: Any, nets: Any, bank: Any, budget: Any) -> FitReport:
        labelled = any(case.labelled.any() for case in site.splits["train"])
        if budget.round == self.silent and not labelled:
            raise UserError("the toy collapsed; lower its rate")
        nets["bridge"].value.grad = torch.full((2,), 1.0 if labelled else 2.0)
        trained = {"bridge": 5}
        if labelled:
            with torch.no_grad():
                nets["shared"].value.fill_(budget.round)
            trained["shared"] = 5
        metrics = {"seen": float(len(bank)), "of": float(budget.rounds)}
        metrics["noted"] = float(budget.memory.get("noted_here", 0))
        budget.memory["noted_here"] = np.array(metrics["noted"] + 1)
        statistics = {"mark": np.ones(1, np.float32)}
        domain = "source" if labelled else "target"
        return FitReport(trained, metrics, domain, statistics, self.summarised)

    def predict(self, nets: Any, images: Any, scene: Any) -> np.ndarray:
        assert set(scene.bank) in ({"vendor_a", "vendor_b"}, set())
        found = np.zeros((len(images), 4, *np.shape(images)[2:]), np.float32)
        found[:, 0 if scene.stage == "early" else 1] = 1
        return found

    def features(self, nets: Any, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)[:, :8]


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS.registered, "toy", Toy)


def run_toy(out: Path, *overrides: str, **settings: Any) -> Path:
    """Run the toy on phantom vendors, the second without labels."""
    config = load(
        [
            "federation=cardiac_phantom",
            "federation.sites={vendor_a: vendor_a, vendor_b: vendor_b, vendor_d: vendor_d}",
            "federation.subjects=6",
            "federation.slices=2",
            "federation.size=32",
            "data.unlabelled_sites=[vendor_b]",
            "baselines=[]",
            "rounds=3",
            "engine.workers=1",
            "engine.devices=cpu",
            f"out={out}",
            *overrides,
        ]
    )
    config["method"] = {"name": "toy", **settings}
    return simulate(config)


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]


def test_domains_meet_at_the_coordinator_and_stages_are_models(tmp_path: Path) -> None:
    run = run_toy(tmp_path / "run")
    model = read_tensors(run / "checkpoints" / "round_0003.safetensors")
    # Adam moves by its rate whatever the gradient's size, while that stays the same: 1 + 2.
    np.testing.assert_allclose(model["bridge/value"], -3 * RATE, rtol=1e-6)
    np.testing.assert_allclose(model["state::m/bridge/value"], 3 * (1 - 0.9**3), rtol=1e-6)
    np.testing.assert_array_equal(model["shared/value"], 3)
    found = {
        (row["model"], row["trained_on"])
        for row in read_cross_site(run / "cross_site.csv", SEGMENTATION)
    }
    assert found == {("early", "all"), ("global", "all")}
    dice = {
        (row["model"], row["site"]): row["mean"]
        for row in read_cross_site(run / "cross_site.csv", SEGMENTATION)
        if row["metric"] == "dice" and row["part"] == "LV cavity"
    }
    # The site without training labels is scored like the others.
    assert {site for _, site in dice} == {"vendor_a", "vendor_b", "vendor_d"}
    assert all(dice["early", site] < dice["global", site] for _, site in dice)


def test_what_a_site_publishes_is_in_everybodys_bank_a_round_later(tmp_path: Path) -> None:
    told = lines(run_toy(tmp_path / "run"))
    assert [line["sites"]["vendor_a"]["seen"] for line in told] == [0, 2, 2]
    assert [line["sites"]["vendor_b"]["of"] for line in told] == [3, 3, 3]


def test_what_a_method_notes_stays_at_its_site_and_survives_a_resume(tmp_path: Path) -> None:
    run = run_toy(tmp_path / "run")
    assert [line["sites"]["vendor_a"]["noted"] for line in lines(run)] == [0, 1, 2]
    assert "noted_here" not in (run / "egress.jsonl").read_text()
    assert {row["model"] for row in read_cross_site(run / "cross_site.csv", SEGMENTATION)} == {
        "early",
        "global",
    }
    for name in ("round_0003.json", "round_0003.safetensors"):
        (run / "checkpoints" / name).unlink()
    (run / "cross_site.csv").unlink()
    run_toy(run, "resume=true")
    assert [line["sites"]["vendor_a"]["noted"] for line in lines(run)] == [0, 1, 2]


def test_statistics_of_too_few_images_are_withheld_and_shown(tmp_path: Path) -> None:
    run = run_toy(tmp_path / "run", summarised=3)
    assert all(line["sites"]["vendor_a"]["seen"] == 0 for line in lines(run))
    assert all(line["sites"]["vendor_b"]["statistics_withheld"] == 1 for line in lines(run))
    assert "policy.min_count" in (run / "report.html").read_text()


def test_a_collapse_at_one_site_is_shown_and_leaves_the_shared_network_alone(
    tmp_path: Path,
) -> None:
    run = run_toy(tmp_path / "run", silent=2)
    second = lines(run)[1]
    assert second["failed"] == {"vendor_b": "the toy collapsed; lower its rate"}
    assert "bridge stays as it was: no update from the domain target" in second["skipped"]
    model = read_tensors(run / "checkpoints" / "round_0003.safetensors")
    np.testing.assert_allclose(model["bridge/value"], -2 * RATE, rtol=1e-6)
    np.testing.assert_array_equal(model["shared/value"], 3)
    assert "the toy collapsed" in (run / "report.html").read_text()


def test_a_resumed_run_keeps_the_coordinators_adam(tmp_path: Path) -> None:
    whole = run_toy(tmp_path / "whole")
    cut = run_toy(tmp_path / "cut")
    for name in ("round_0003.json", "round_0003.safetensors"):
        (cut / "checkpoints" / name).unlink()
    (cut / "cross_site.csv").unlink()
    run_toy(cut, "resume=true")
    last = "checkpoints/round_0003.safetensors"
    assert (cut / last).read_bytes() == (whole / last).read_bytes()


def test_only_the_newest_checkpoints_stay_when_asked(tmp_path: Path) -> None:
    run = run_toy(tmp_path / "run", "checkpoints_kept=2")
    kept = sorted(path.name for path in (run / "checkpoints").glob("round_*"))
    assert kept == [
        f"round_000{number}{suffix}" for number in (2, 3) for suffix in (".json", ".safetensors")
    ]


def test_each_site_in_turn_loses_its_labels(tmp_path: Path) -> None:
    run = run_toy(tmp_path / "run", "data.unlabelled_sites=[]", "protocol=unlabel_one_site")
    assert sorted(path.name for path in (run / "folds").iterdir()) == ["vendor_a", "vendor_b"]
    for fold in ("vendor_a", "vendor_b"):
        cards = json.loads((run / "folds" / fold / "checkpoints" / "sites.json").read_text())
        labelled = {card["name"]: card["splits"]["train"]["labelled"] > 0 for card in cards}
        assert not labelled[fold]
        assert sum(labelled[name] for name in ("vendor_a", "vendor_b")) == 1
    sites = {row["site"] for row in read_cross_site(run / "cross_site.csv", SEGMENTATION)}
    assert sites == {"vendor_a", "vendor_b"}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["data.unlabelled_sites=[]"], "every training site has some; .* data.unlabelled_sites"),
        (["data.unlabelled_sites=[vendor_a,vendor_b,vendor_d]"], "no site can train"),
        (["baselines=[local]"], "leave local out of baselines"),
        (["strategy=pooled"], "pooled training keeps apart; choose another strategy"),
    ],
)
def test_a_federation_without_both_kinds_of_sites_is_refused(
    tmp_path: Path, overrides: list[str], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        run_toy(tmp_path / "run", *overrides)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("avraged",), "Sharing('avraged') is not known; did you mean averaged"),
        (("averaged", ("source",)), "Sharing('averaged') takes neither domains nor adam; give"),
        (("balanced",), "Sharing('balanced') takes domains; give it that and no more"),
        (("summed", ("source",)), "Sharing('summed') takes domains and adam; give"),
    ],
)
def test_half_of_a_sharing_is_refused(given: tuple[Any, ...], words: str) -> None:
    with pytest.raises(UserError) as refused:
        Sharing(*given)
    assert str(refused.value).startswith(words)
