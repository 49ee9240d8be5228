"""Client drift: SCAFFOLD and FedDyn by the published algorithms and to their fixed points on a
convex problem, MOON and sharpness-aware steps by hand, and all of them in small runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from kit.cases import mask_case, segmentation
from kit.convex import CENTRE, CURVATURE, EXAMPLES, Convex, VectorModel
from torch import nn

from fedshift import derive_seed
from fedshift.client import rules
from fedshift.client.contract.method import Budget, FitReport
from fedshift.client.losses import dice_ce
from fedshift.client.model import Model
from fedshift.client.rules.base import Visit, run_rules
from fedshift.client.rules.base.displaced import displaced
from fedshift.client.rules.contrast import contrastive_loss
from fedshift.client.rules.control_variate import ControlVariate
from fedshift.client.rules.dynamic import Dynamic
from fedshift.client.slices import LabelledSlices
from fedshift.protocol.messages import Action, Arrays, Instruction, TensorInfo
from fedshift.protocol.storage import read_tensors
from fedshift.runs.config import load
from fedshift.runs.simulate import run
from fedshift.sites.types import SiteData
from fedshift.strategies.base import Strategy
from fedshift.strategies.base.aggregate import Update
from fedshift.strategies.fedavg import FedAvg
from fedshift.strategies.feddyn import FedDyn
from fedshift.strategies.scaffold import Scaffold

CPU = torch.device("cpu")
SITES = sorted(CENTRE)
ALIKE = dict.fromkeys(CENTRE, 1)


def gradient(site: str, w: np.ndarray) -> np.ndarray:
    return CURVATURE[site] * (w - CENTRE[site])


def minimiser(weights: dict[str, int]) -> np.ndarray:
    pull = {site: weights[site] * CURVATURE[site] for site in SITES}
    return sum(pull[site] * CENTRE[site] for site in SITES) / sum(pull.values())


def drawn(fraction: float, rounds: int) -> list[list[str]]:
    """The sites of each round."""
    strategy = Convex(FedAvg(fraction=fraction)).strategy
    return [strategy.select(number) for number in range(1, rounds + 1)]


# The published algorithms, with equal weights.


def scaffold_algorithm(
    rounds: list[list[str]], steps: int, rate: float, lr: float
) -> list[np.ndarray]:
    """Karimireddy et al., Algorithm 1 with option II as printed."""
    x, c = np.zeros(2), np.zeros(2)
    own = {site: np.zeros(2) for site in SITES}
    found = []
    for chosen in rounds:
        moves, changes = [], []
        for site in chosen:
            y = x.copy()
            for _ in range(steps):
                y = y - rate * (gradient(site, y) - own[site] + c)
            new = own[site] - c + (x - y) / (steps * rate)
            moves.append(y - x)
            changes.append(new - own[site])
            own[site] = new
        x = x + lr * np.mean(moves, axis=0)
        c = c + len(chosen) / len(SITES) * np.mean(changes, axis=0)
        found.append(x)
    return found


def feddyn_algorithm(
    rounds: list[list[str]], steps: int, rate: float, alpha: float
) -> list[np.ndarray]:
    """Acar et al., Algorithm 1, with steps of gradient descent for the minimisation."""
    w, h = np.zeros(2), np.zeros(2)
    own = {site: np.zeros(2) for site in SITES}
    found = []
    for chosen in rounds:
        ends = []
        for site in chosen:
            local = w.copy()
            for _ in range(steps):
                local = local - rate * (gradient(site, local) - own[site] + alpha * (local - w))
            own[site] = own[site] - alpha * (local - w)
            ends.append(local)
        h = h - alpha / len(SITES) * sum(local - w for local in ends)
        w = np.mean(ends, axis=0) - h / alpha
        found.append(w)
    return found


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_scaffold_follows_algorithm_1(fraction: float) -> None:
    expected = scaffold_algorithm(drawn(fraction, 8), steps=4, rate=0.1, lr=0.7)
    toy = Convex(Scaffold(lr=0.7, weighting="uniform", fraction=fraction), steps=4, rate=0.1)
    found = [toy.run(1) for _ in range(8)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("fraction", [1.0, 0.5])
def test_feddyn_follows_algorithm_1(fraction: float) -> None:
    expected = feddyn_algorithm(drawn(fraction, 8), steps=4, rate=0.1, alpha=0.5)
    toy = Convex(FedDyn(alpha=0.5, weighting="uniform", fraction=fraction), steps=4, rate=0.1)
    found = [toy.run(1) for _ in range(8)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


CORRECTED: list[Callable[..., Strategy]] = [Scaffold, lambda **told: FedDyn(alpha=0.5, **told)]


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("make", CORRECTED, ids=["scaffold", "feddyn"])
def test_the_drift_that_fedavg_shows_is_gone(make: Callable[..., Strategy], weighting: str) -> None:
    wanted = minimiser(ALIKE if weighting == "uniform" else EXAMPLES)
    drifted = Convex(FedAvg(weighting=cast(Any, weighting)), steps=10, rate=0.1).run(60)
    assert np.linalg.norm(drifted - wanted) > 0.3
    found = Convex(make(weighting=weighting), steps=10, rate=0.1).run(60)
    np.testing.assert_allclose(found, wanted, atol=1e-8)


@pytest.mark.parametrize("make", CORRECTED, ids=["scaffold", "feddyn"])
def test_sites_that_count_unequally_may_be_drawn_in_turn(make: Callable[..., Strategy]) -> None:
    found = Convex(make(fraction=0.5), steps=10, rate=0.1).run(80)
    np.testing.assert_allclose(found, minimiser(EXAMPLES), atol=1e-5)


def test_the_coordinator_carries_the_mean_of_what_the_sites_remember() -> None:
    for strategy in (Scaffold(fraction=0.5), FedDyn(alpha=0.5, fraction=0.5)):
        toy = Convex(strategy, steps=3)
        toy.run(9)
        total = sum(EXAMPLES.values())
        expected = sum(EXAMPLES[site] / total * toy.memory[site]["net/w"] for site in SITES)
        np.testing.assert_allclose(strategy.mean("net/w"), expected, rtol=1e-12)


# What the sites do.


def visit(memory: Arrays | None = None, extras: Arrays | None = None) -> Visit:
    return Visit(
        instruction=Instruction(action=Action.FIT, seed=0),
        site=cast(Any, None),
        model=cast(Any, VectorModel(("body", "head"))),
        device=CPU,
        memory=memory or {},
        extras=extras or {},
    )


def test_the_control_variate_is_the_mean_gradient_of_the_steps_taken() -> None:
    """In mixed precision: gradients are scaled by 8, and the step that overflows does not count."""
    told = visit({"net/head": np.array([0.5, 0.0])}, {"net/head": np.array([1.0, 2.0])})
    parameters = dict(told.model.nets["net"].named_parameters())
    head, body = parameters["head"], parameters["body"]
    optimizer = torch.optim.SGD([head], lr=1.0)
    rule = ControlVariate(told)

    def train(**changes: Any) -> FitReport:
        for scaled, overflow in (([8.0, 16.0], 0.0), ([np.inf, 1.0], 1.0), ([24.0, 0.0], 0.0)):
            optimizer.grad_scale = torch.tensor(8.0)  # type: ignore[attr-defined]
            optimizer.found_inf = torch.tensor(overflow)  # type: ignore[attr-defined]
            head.grad = torch.tensor(scaled, dtype=torch.float64)
            rule.before_step(optimizer)
        return FitReport({"net": 1})

    rule.around(train)
    # Corrected by c - c_k = (0.5, 2), and scaled as it was.
    np.testing.assert_array_equal(head.grad, [24 + 8 * 0.5, 8 * 2])
    np.testing.assert_array_equal(told.memory["net/head"], [2, 1])  # ((1, 2) + (3, 0)) / 2
    np.testing.assert_array_equal(told.sent["net/head"], [1.5, 1])
    assert "net/body" not in told.sent, "no optimiser stepped it"
    assert body.grad is None


def test_a_parameter_of_two_optimisers_has_the_mean_over_both() -> None:
    told = visit()
    head = told.model.nets["net"].get_parameter("head")
    rule = ControlVariate(told)

    def train(**changes: Any) -> FitReport:
        for value in (1.0, 5.0):
            head.grad = torch.full((2,), value, dtype=torch.float64)
            rule.before_step(torch.optim.SGD([head], lr=1.0))
        return FitReport({"net": 1})

    rule.around(train)
    np.testing.assert_array_equal(told.sent["net/head"], [3, 3])


@pytest.mark.parametrize("kind", [ControlVariate, lambda v: Dynamic(v, alpha=1.0)])
def test_what_a_diverged_training_leaves_is_not_remembered(kind: Callable[..., Any]) -> None:
    told = visit({"net/head": np.array([0.5, 0.0])})
    head = told.model.nets["net"].get_parameter("head")
    rule = kind(told)

    def train(**changes: Any) -> FitReport:
        head.grad = torch.full((2,), torch.nan, dtype=torch.float64)
        optimizer = torch.optim.SGD([head], lr=1.0)
        rule.before_step(optimizer)
        optimizer.step()
        return FitReport({"net": 1})

    rule.around(train)
    np.testing.assert_array_equal(told.memory["net/head"], [0.5, 0])
    assert not told.sent


# What the coordinator keeps.

NETWORKS = {
    name: TensorInfo(name.split("/")[0], "weight", "averaged", (1,), "float64")
    for name in ("one/w", "two/w")
}


def update(site: str, **networks: tuple[float, float]) -> Update:
    """What ``site`` sends: of each network it trains its weight and the change of its variate."""
    return Update(
        site,
        arrays={f"{net}/w": np.zeros(1) for net in networks},
        weights={net: weight for net, (weight, _) in networks.items()},
        domain="",
        metrics={},
        extras={f"{net}/w": np.array([change]) for net, (_, change) in networks.items()},
    )


def test_the_mean_is_over_the_sites_that_train_the_network(begin: Callable[..., Any]) -> None:
    strategy: Scaffold = begin(Scaffold(), ["a", "b", "c"], NETWORKS)
    assert strategy.mean("one/w") is None
    strategy.gathering()
    strategy.prepared(update("a", one=(2, 3)))
    # Of two that are not known yet each counts like the one that is.
    assert strategy.mean("one/w") == 1
    strategy.prepared(update("b", one=(1, 6), two=(1, 6)))
    assert strategy.mean("two/w") == pytest.approx(6 / 1.5)  # a trains it not; c counts 1/2
    strategy.gathering()
    strategy.prepared(update("c", one=(3, 2)))
    assert strategy.mean("one/w") == (2 * 3 + 1 * 6 + 3 * 2) / 6
    assert strategy.mean("two/w") == 6
    assert strategy.extras() == {"one/w": 3.0, "two/w": 6.0}


def test_the_sum_moves_with_the_sites_when_there_is_no_quorum() -> None:
    strategy = Scaffold(min_sites=3)
    toy = Convex(strategy)
    toy.run(1)
    strategy.min_sites = 4
    with pytest.raises(AssertionError):
        toy.run(1)
    total = sum(EXAMPLES.values())
    expected = sum(EXAMPLES[site] / total * toy.memory[site]["net/w"] for site in SITES)
    np.testing.assert_allclose(strategy.mean("net/w"), expected, rtol=1e-12)


# Sharpness-aware steps.


def uphill(net: nn.Module, rho: float) -> AbstractContextManager[None]:
    return displaced(net, lambda norm: rho / norm)


def test_uphill_is_rho_along_the_gradients_and_back_to_the_bit() -> None:
    net = torch.nn.Linear(2, 1)
    before = [p.detach().clone() for p in net.parameters()]
    for factor in (1.0, 65536.0):  # a loss scale does not matter
        net.weight.grad = factor * torch.tensor([[2.0, 0.0]])
        net.bias.grad = factor * torch.tensor([1.5])
        with uphill(net, rho=0.25):
            moved = [p.detach().clone() for p in net.parameters()]
        # The norm is 2.5.
        np.testing.assert_allclose(moved[0] - before[0], [[0.2, 0.0]], atol=1e-7)
        np.testing.assert_allclose(moved[1] - before[1], [0.15], atol=1e-7)
        assert all(torch.equal(p, was) for p, was in zip(net.parameters(), before, strict=True))


@pytest.mark.parametrize("value", [0.0, np.inf, np.nan])
def test_without_a_direction_the_weights_stay(value: float) -> None:
    net = torch.nn.Linear(2, 1, bias=False)
    before = net.weight.detach().clone()
    net.weight.grad = torch.full((1, 2), value)
    with uphill(net, rho=0.25):
        assert torch.equal(net.weight, before)


def test_batch_normalisation_counts_a_batch_once() -> None:
    net = torch.nn.BatchNorm2d(1)
    images = torch.arange(8.0).view(2, 1, 2, 2)
    net(images).sum().backward()
    once = {name: value.clone() for name, value in net.state_dict().items()}
    with uphill(net, rho=1.0):
        inside = net(images)
    assert float(inside.detach().mean()) == pytest.approx(1), "the shift was moved"
    for name in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(net.state_dict()[name], once[name])
    net(images)
    assert net.num_batches_tracked == 2


# Rules in the segmentation network's training.

SMALL = {
    "name": "supervised",
    "width": 4,
    "depth": 2,
    "batch": 4,
    "lr": 0.01,
    "augmentation": {"affine": False},
}
TASK = segmentation("spot")


def site(cases: int = 2, size: int = 16) -> SiteData:
    rng = np.random.default_rng(0)
    image = rng.standard_normal((4, size, size)).astype(np.float32)
    label = (image > 0.5).astype(np.uint8)
    case = mask_case(image, label, id="one", subject="one")
    return SiteData("a", "train", ("spot",), {"train": (case,) * cases, "val": (), "test": ()})


def train_at_site(
    asked: dict[str, Any], memory: Arrays | None = None, steps: int = 2, **changes: Any
) -> tuple[Model, FitReport, Visit]:
    """Train :data:`SMALL` at :func:`site` from its initial weights, with these rules."""
    model = Model({**SMALL, **changes}, {"name": "segmentation", "parts": ["spot"]}, CPU, seed=0)
    instruction = Instruction(action=Action.FIT, seed=0, round=2, rules=asked)
    told = Visit(instruction, site(), model, CPU, memory=memory or {})
    report = run_rules(
        rules.build(told),
        lambda budget: model.method.fit(told.site, model.nets, {}, budget),
        Budget(TASK, steps, seed=5, device=CPU),
    )
    return model, report, told


def test_a_sharpness_aware_step_by_hand() -> None:
    found, report, _ = train_at_site({"sharpness": {"rho": 0.3}}, steps=1)
    model = Model(SMALL, {"name": "segmentation", "parts": ["spot"]}, CPU, seed=0)
    net = model.nets["segmenter"].train()
    slices = LabelledSlices(site().splits["train"], TASK)
    (batch,) = slices.batches(4, 1, derive_seed(5, "batches"), CPU)
    images, labels = batch.images, batch.labels
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, fused=True)
    loss = dice_ce(net(images), labels)
    loss.backward()
    start = [p.detach().clone() for p in net.parameters()]
    norm = torch.sqrt(sum(p.grad.square().sum() for p in net.parameters()))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * p.grad / norm)
    optimizer.zero_grad()
    dice_ce(net(images), labels).backward()
    with torch.no_grad():
        for p, value in zip(net.parameters(), start, strict=True):
            p.copy_(value)
    optimizer.step()
    expected = model.read()
    for name, array in found.read().items():
        np.testing.assert_allclose(array, expected[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert report.metrics["loss"] == pytest.approx(loss.item(), rel=1e-6)
    plain, _, _ = train_at_site({}, steps=1)
    assert any(np.abs(plain.read()[name] - expected[name]).max() > 1e-3 for name in expected)


def test_a_tiny_radius_is_a_plain_step() -> None:
    plain, _, _ = train_at_site({})
    tiny, _, _ = train_at_site({"sharpness": {"rho": 1e-30}})
    for name, array in plain.read().items():
        np.testing.assert_array_equal(tiny.read()[name], array)


def block(*vectors: list[float]) -> torch.Tensor:
    """Feature maps (B, D, 1, 2) whose means over pixels are ``vectors``."""
    mean = torch.tensor(vectors)[:, :, None, None]
    return torch.cat([mean + 1, mean - 1], dim=3)


def test_the_contrastive_loss_by_hand() -> None:
    z = block([2.0, 0.0], [1.0, 1.0])
    received, previous = block([5.0, 0.0], [0.0, 3.0]), block([0.0, 1.0], [0.0, 7.0])
    # Similarities 1 and 0, then twice 1 / sqrt(2).
    expected = (np.log1p(np.exp(-1 / 0.5)) + np.log(2)) / 2
    found = contrastive_loss(z, received, previous, temperature=0.5)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_moon_starts_with_the_second_training_and_remembers_the_last_model() -> None:
    asked = {"contrast": {"mu": 2.0, "temperature": 0.5}}
    first, report, told = train_at_site(asked)
    plain, _, _ = train_at_site({})
    assert "penalty" not in report.metrics
    for name, array in first.read().items():
        np.testing.assert_array_equal(array, plain.read()[name])
        np.testing.assert_array_equal(told.memory[name], array)

    second, report, told = train_at_site(asked, told.memory)
    assert 0 < report.metrics["penalty"] / 2 < np.log1p(np.exp(2))
    assert any((second.read()[name] != array).any() for name, array in first.read().items())
    assert not second.nets["segmenter"].encoder[-1]._forward_hooks


def test_moon_has_no_gradient_when_both_references_are_alike() -> None:
    asked = {"contrast": {"mu": 2.0, "temperature": 0.5}}
    received = Model(SMALL, {"name": "segmentation", "parts": ["spot"]}, CPU, seed=0).read()
    found, report, _ = train_at_site(asked, received)
    assert report.metrics["penalty"] == pytest.approx(2 * np.log(2), rel=1e-6)
    plain, _, _ = train_at_site({})
    for name, array in plain.read().items():
        np.testing.assert_allclose(found.read()[name], array, rtol=1e-4, atol=1e-5)


def test_moon_draws_towards_the_received_model() -> None:
    """With the term alone to speak of, the similarity to the received model exceeds the other."""
    rng = np.random.default_rng(1)
    received = Model(SMALL, {"name": "segmentation", "parts": ["spot"]}, CPU, seed=0).read()
    other = {
        name: (array + rng.normal(0, 0.2, array.shape)).astype("f4")
        for name, array in received.items()
    }
    losses = [
        train_at_site({"contrast": {"mu": 100.0, "temperature": 0.1}}, other, steps=steps)[1]
        for steps in (1, 12)
    ]
    assert losses[1].metrics["penalty"] < losses[0].metrics["penalty"]


# Small runs.

STYLE = (
    "method=style_transfer",
    "method.translator_width=4",
    "method.pretraining_rounds=0",
    "method.translator_rounds=1",
)
GAN = (
    "method=unet_gan",
    "method.translator_width=4",
    "method.judge_width=4",
    "method.judge_stages=2",
    "method.segmenter_rounds=1",
    "method.translation_rounds=1",
    "data.unlabelled_sites=[vendor_b]",
)
QUIET = ("baselines=[]", "evaluated=[global]", "validate_every=0")


def state_of(run: Path, number: int = 2) -> Arrays:
    """What the coordinator keeps beside the model after a round."""
    held = read_tensors(run / "checkpoints" / f"round_{number:04d}.safetensors")
    return {name: array for name, array in held.items() if "sum/" in name}


@pytest.mark.parametrize(
    ("name", "method"),
    [("scaffold", STYLE), ("scaffold", GAN), ("feddyn", GAN)],
    ids=["scaffold-style_transfer", "scaffold-unet_gan", "feddyn-unet_gan"],
)
def test_methods_of_several_networks_are_corrected_where_they_train(
    name: str, method: tuple[str, ...], simulate_undrawn: Callable[..., Path], tmp_path: Path
) -> None:
    run = simulate_undrawn(tmp_path / "run", f"strategy={name}", *method, *QUIET)
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert not any(line["failed"] or line["rejected"] or line["skipped"] for line in lines)
    networks = {key.split("sum/")[1].split("/")[0] for key in state_of(run)}
    assert "segmenter" in networks
    if method is STYLE:
        assert {"decoder", "style_encoder", "content_encoder"} < networks
        # Trained in round 2 only.
        assert not any("segmenter" in name for name in state_of(run, 1))
    else:
        assert networks == {"segmenter"}, "summed sub-networks are the method's"


DRAI = ("method=drai", "method.generation_rounds=1")


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("fedsam", STYLE),
        ("moon", DRAI),
        ("fedsam", ("method=supervised", "method.norm=batch", "strategy.fraction=0.5")),
    ],
    ids=lambda value: value if isinstance(value, str) else value[0].partition("=")[2],
)
def test_strategies_that_reach_into_the_segmentation_run(
    name: str, method: tuple[str, ...], simulate_undrawn: Callable[..., Path], tmp_path: Path
) -> None:
    run = simulate_undrawn(tmp_path / "run", f"strategy={name}", *method, *QUIET, "rounds=3")
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert not any(line["failed"] or line["rejected"] or line["skipped"] for line in lines)
    if name == "moon":
        # The segmenter is trained in rounds 2 and 3, and the term needs an earlier training.
        terms = ["penalty" in line["sites"]["vendor_a"] for line in lines]
        assert terms == [False, False, True]


@pytest.mark.parametrize("name", ["moon", "fedsam", "harmofl"])
def test_strategies_that_change_steps_run_with_another_loop_of_training(
    name: str, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    small = [override for override in tiny if not override.startswith("method.")]
    few = [f"method.{net}_width=2" for net in ("renderer", "segmenter", "judge")]
    config = load([*small, f"strategy={name}", "method=online_rendering", *few, *QUIET, "rounds=3"])
    run(tmp_path / "run", config, drawn=False)
    lines = [json.loads(line) for line in (tmp_path / "run/rounds.jsonl").read_text().splitlines()]
    assert not any(line["failed"] or line["rejected"] or line["skipped"] for line in lines)
    if name == "moon":  # Both segmentors are drawn; the last round trains nothing.
        terms = ["penalty" in line["sites"]["vendor_a"] for line in lines]
        assert terms == [False, True, False]
