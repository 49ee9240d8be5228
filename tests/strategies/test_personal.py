"""Strategies that leave a site something of its own: by hand, against the published algorithms on
a convex problem, and in small runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from kit.convex import CENTRE, CURVATURE, EXAMPLES, Convex
from torch import nn

from fedshift import UserError
from fedshift.client.contract.method import Budget, FitReport
from fedshift.client.model import Model, initial_arrays
from fedshift.client.policy import Policy
from fedshift.client.rules import build
from fedshift.client.rules.alternating import Alternating
from fedshift.client.rules.base import Visit, run_rules
from fedshift.client.simulation import LocalSites
from fedshift.client.tasks import TASKS
from fedshift.client.worker import SiteWorker
from fedshift.protocol import messages as protocol
from fedshift.protocol.flower import ConfigRecord, Error, Message, MetricRecord
from fedshift.protocol.messages import (
    Action,
    Arrays,
    Instruction,
    TensorInfo,
    answer,
    pack_arrays,
    read_arrays,
    request,
)
from fedshift.protocol.storage import read_tensors
from fedshift.runs.config import load
from fedshift.sites import DataSettings, load_federation
from fedshift.strategies.apfl import APFL
from fedshift.strategies.base import Strategy
from fedshift.strategies.ditto import Ditto
from fedshift.strategies.fedavg import FedAvg
from fedshift.strategies.fedper import FedPer
from fedshift.strategies.fedrep import FedRep
from fedshift.strategies.fine_tuning import FineTuning
from fedshift.strategies.silobn import SiloBN

Call = Callable[..., Any]

STEPS, RATE = 5, 0.1
CPU = torch.device("cpu")
TASK = {"name": "segmentation", "parts": ["left_ventricle"], "size": [32, 32]}


def descend(weight: np.ndarray, site: str, steps: int, lam: float = 0, w: Any = 0) -> np.ndarray:
    """``steps`` steps on F_k(v) + (lam / 2) |v - w|^2 from ``weight``."""
    for _ in range(steps):
        slope = CURVATURE[site] * (weight - CENTRE[site]) + lam * (weight - w)
        weight = weight - RATE * slope
    return weight


def mean(sent: dict[str, np.ndarray]) -> np.ndarray:
    total = sum(EXAMPLES.values())
    return np.asarray(sum(EXAMPLES[site] / total * sent[site] for site in sent))


def fedavg(rounds: int, steps: int = STEPS) -> np.ndarray:
    weight = np.zeros(2)
    for _ in range(rounds):
        weight = mean({site: descend(weight, site, steps) for site in CENTRE})
    return weight


def infos(**settings: Any) -> dict[str, TensorInfo]:
    method = {"name": "supervised", "width": 4, "depth": 3, **settings}
    return Model(method, TASK, CPU, 0).infos()


# What stays.


def test_silobn_keeps_what_is_measured_and_shares_what_is_learned() -> None:
    tensors = infos(norm="batch")
    kept = SiloBN().keeps(tensors)
    assert {name.rpartition(".")[2] for name in kept} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    assert len(kept) == sum(info.role == "norm_buffer" for info in tensors.values())
    whole = {name: replace(info, sharing="broadcast") for name, info in tensors.items()}
    assert SiloBN().keeps(whole) == frozenset()


def test_silobn_without_running_statistics_is_fedavg_and_explain_says_so(command: Call) -> None:
    out = " ".join(command("explain", "strategy=silobn", "method.width=4").out.split())
    assert "silobn would be the same as fedavg: the normalising layers have no running" in out
    out = command("explain", "strategy=silobn", "method.width=4", "method.norm=batch").out
    assert "would be the same" not in out
    assert "kept at the site" in out


def test_fedper_keeps_the_last_layer_of_the_segmentation() -> None:
    for strategy in (FedPer(), FedRep()):
        assert strategy.keeps(infos()) == {"segmenter/head.weight", "segmenter/head.bias"}
    more = FedPer(personal_layers=("segmenter/head.*", "segmenter/decoder.1.*"))
    kept = more.keeps(infos())
    assert {name.split(".")[0] for name in kept} == {"segmenter/head", "segmenter/decoder"}
    assert not any(name.startswith("segmenter/decoder.0") for name in kept)


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        (("segmenter/haed.*",), r"'segmenter/haed\.\*' matches no tensor .*segmenter/head\."),
        (("*",), "some of the averaged tensors and not all"),
        ((), "some of the averaged tensors and not all"),
    ],
)
def test_layers_that_make_no_sense_are_refused(layers: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        FedPer(personal_layers=layers).keeps(infos())


@pytest.mark.parametrize("kind", [FedPer, FedRep, Ditto, APFL, FineTuning])
def test_a_method_without_averaged_networks_is_refused(kind: type[Strategy]) -> None:
    tensors = {name: replace(info, sharing="broadcast") for name, info in infos().items()}
    with pytest.raises(UserError, match=rf"strategy={kind().name} .* this method has none"):
        kind().keeps(tensors)


def test_a_refusal_of_one_strategy_does_not_keep_explain_from_another(command: Call) -> None:
    adapting = ("method=unet_gan", "data.unlabelled_sites=[vendor_c]", "baselines=[]")
    ended = command("explain", "strategy=ditto", *adapting)
    assert ended.code == 2
    assert "this method has none" in " ".join(ended.err.split())
    ended = command("explain", "strategy=fedbn", *adapting)
    assert ended.code == 0
    assert "fedbn would be the same as fedavg" in " ".join(ended.out.split())


# FedPer and FedRep.


def test_fedper_averages_the_body_and_leaves_the_head() -> None:
    found = Convex(FedPer(personal_layers=("net/head",)), STEPS, RATE, names=("body", "head"))
    body = found.run(4)
    np.testing.assert_allclose(body, fedavg(4), rtol=1e-13)
    for site in CENTRE:
        alone = descend(np.zeros(2), site, 4 * STEPS)
        np.testing.assert_allclose(found.kept[site]["net/head"], alone, rtol=1e-13)


def test_fedrep_divides_the_steps_between_head_and_body() -> None:
    strategy = FedRep(personal_layers=("net/head",), head_steps=3)
    found = Convex(strategy, STEPS, RATE, names=("body", "head"))
    np.testing.assert_allclose(found.run(4), fedavg(4, steps=2), rtol=1e-13)
    for site in CENTRE:
        alone = descend(np.zeros(2), site, 4 * 3)
        np.testing.assert_allclose(found.kept[site]["net/head"], alone, rtol=1e-13)


class Pair(nn.Module):
    """A body b and a head h; the prediction is their product."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
        self.head = nn.Parameter(torch.tensor([1.0], dtype=torch.float64))


class PairModel:
    """What rules use of a model."""

    def __init__(self, head: str = "averaged") -> None:
        """``head`` is how it is shared."""
        self.nets = {"net": Pair()}
        self.head = head

    def tensors(self) -> dict[str, torch.Tensor]:
        return {f"net/{name}": value for name, value in self.nets["net"].named_parameters()}

    def infos(self) -> dict[str, TensorInfo]:
        info = TensorInfo("net", "weight", "averaged", (1,), "float64")
        return {"net/body": info, "net/head": replace(info, sharing=self.head)}

    def read(self) -> Arrays:
        return {n: value.detach().numpy().copy() for n, value in self.tensors().items()}

    def load(self, arrays: Arrays) -> None:
        with torch.no_grad():
            for name, value in self.tensors().items():
                value.copy_(torch.from_numpy(arrays[name]))

    def forget_gradients(self) -> None:
        self.nets["net"].zero_grad()


def descend_pair(
    net: Pair, steps: int, optimizer: torch.optim.Optimizer | None = None
) -> FitReport:
    """Steps on (b h - 4)^2 / 2."""
    optimizer = optimizer or torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        (0.5 * (net.body * net.head - 4) ** 2).sum().backward()
        optimizer.step()
    return FitReport({"net": 1})


def alternate(optimise: Call, steps: int, head_steps: int | None) -> tuple[Pair, Any]:
    """Train (b h - 4)^2 / 2 under FedRep's rule; return the networks and the optimiser."""
    model = PairModel()
    asked = Instruction(action=Action.FIT, seed=0, steps=steps, kept=("net/head",))
    visit = Visit(asked, cast(Any, None), cast(Any, model), CPU)
    net = model.nets["net"]
    optimizer = optimise(net.parameters())

    def fit(budget: Budget) -> FitReport:
        return descend_pair(net, budget.steps, optimizer)

    run_rules([Alternating(visit, head_steps)], fit, Budget(TASKS.build(TASK), steps, 0, CPU))
    return net, optimizer


def test_fedreps_body_learns_with_the_new_head() -> None:
    net, _ = alternate(lambda parameters: torch.optim.SGD(parameters, lr=0.1), 3, 2)
    # h: 1 - 0.1 * 2 (2 * 1 - 4) = 1.4, then 1.4 - 0.1 * 2 (2.8 - 4) = 1.64.
    assert net.head.item() == pytest.approx(1.64, rel=1e-14)
    # b: 2 - 0.1 * 1.64 (2 * 1.64 - 4) = 2.11808.
    assert net.body.item() == pytest.approx(2.11808, rel=1e-14)


def test_a_step_of_the_head_leaves_the_moments_of_the_body_alone() -> None:
    def optimise(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.5)

    net, optimizer = alternate(optimise, 5, None)
    assert [int(optimizer.state[p]["step"]) for p in (net.head, net.body)] == [2, 3]
    # Not even decayed while it is held.
    held, _ = alternate(optimise, 3, 3)
    assert held.body.item() == 2.0


def test_an_optimiser_without_a_head_trains_as_it_would() -> None:
    model = PairModel()
    asked = Instruction(action=Action.FIT, seed=0, steps=4, kept=("net/head",))
    rule = Alternating(Visit(asked, cast(Any, None), cast(Any, model), CPU), None)
    body = model.nets["net"].body
    body.grad = torch.ones_like(body)
    rule.before_step(torch.optim.SGD([body], lr=0.1))
    assert body.grad is not None


@pytest.mark.parametrize(("head_steps", "steps"), [(None, 1), (4, 4)])
def test_fedrep_needs_a_step_for_each_part(head_steps: int | None, steps: int, begin: Call) -> None:
    with pytest.raises(UserError, match=r"set local_steps to at least \d"):
        begin(FedRep(head_steps=head_steps), ["a"], infos(), steps=steps)


# Ditto.


@pytest.mark.parametrize("lam", [0.0, 0.7])
def test_ditto_follows_algorithm_1(lam: float) -> None:
    found = Convex(Ditto(lam=lam), STEPS, RATE)
    found.run(6)
    w, own = np.zeros(2), dict.fromkeys(CENTRE, np.zeros(2))
    for _ in range(6):
        own = {site: descend(own[site], site, STEPS, lam, w) for site in CENTRE}
        w = mean({site: descend(w, site, STEPS) for site in CENTRE})
    np.testing.assert_allclose(found.model["net/w"], w, rtol=1e-12)
    for site in CENTRE:
        np.testing.assert_allclose(found.personal[site]["net/w"], own[site], rtol=1e-12)


def test_ditto_ends_between_the_site_and_the_shared_model() -> None:
    found = Convex(Ditto(lam=0.5), STEPS, RATE)
    w = found.run(100)
    for site, a in CURVATURE.items():
        between = (a * CENTRE[site] + 0.5 * w) / (a + 0.5)
        np.testing.assert_allclose(found.personal[site]["net/w"], between, atol=1e-9)


def home_loss(weight: np.ndarray, site: str) -> float:
    return float(0.5 * CURVATURE[site] * np.sum((weight - CENTRE[site]) ** 2))


@pytest.mark.parametrize("strategy", [Ditto(lam=0.5), APFL(alpha=0.5), APFL(alpha_lr=0.02)])
def test_own_models_are_better_at_home_and_the_shared_one_is_fedavgs(strategy: Strategy) -> None:
    found = Convex(strategy, STEPS, RATE)
    w = found.run(30)
    assert w.tobytes() == Convex(FedAvg(), STEPS, RATE).run(30).tobytes()
    for site in CENTRE:
        own = found.personal[site]["net/w"]
        assert home_loss(own, site) < 0.6 * home_loss(w, site)


def test_the_own_model_has_its_own_copy_of_what_the_method_keeps() -> None:
    """Here the head, as a discriminator would be: after some rounds the pairs are as two models
    trained apart."""
    rules = {"ditto": {"lam": 0.0}}
    asked = Instruction(action=Action.FIT, seed=0, steps=2, kept=("net/head",), rules=rules)
    memory: Arrays = {}
    personal: Arrays = {}
    shared = PairModel("kept")
    bodies = (2.0, 5.0, 3.0)
    for sent in bodies:  # the bodies that the coordinator sends
        shared.load({**shared.read(), "net/body": np.array([sent])})
        visit = Visit(
            asked, cast(Any, None), cast(Any, shared), CPU, memory=memory, personal=personal
        )

        def fit(budget: Budget) -> FitReport:
            return descend_pair(shared.nets["net"], budget.steps)

        run_rules(build(visit), fit, Budget(TASKS.build(TASK), 2, 0, CPU))
        memory, personal = visit.memory, visit.personal
    own, alone = Pair(), Pair()
    for sent in bodies:
        descend_pair(own, 2)
        with torch.no_grad():
            alone.body.fill_(sent)
        descend_pair(alone, 2)
    assert personal.keys() == {"net/body"}
    assert personal["net/body"].item() == own.body.item()
    assert memory["own::net/head"].item() == own.head.item()
    assert shared.nets["net"].head.item() == alone.head.item() != own.head.item()


# APFL.


def algorithm_1(rounds: int, alpha: float, rate: float) -> tuple[np.ndarray, Any, Any, Any]:
    """Deng et al., Algorithm 1 with tau = 1 and Eq. 10: w, and by site v, alpha and the mixture
    of v and alpha with the w that was sent."""
    w = np.zeros(2)
    v, share = dict.fromkeys(CENTRE, np.zeros(2)), dict.fromkeys(CENTRE, alpha)
    mixture = {}
    for _ in range(rounds):
        sent = w
        for site in CENTRE:
            mixed = share[site] * v[site] + (1 - share[site]) * sent
            slope = CURVATURE[site] * (mixed - CENTRE[site])
            moved = share[site] - rate * float((v[site] - sent) @ slope)
            v[site] = v[site] - RATE * share[site] * slope
            share[site] = min(max(moved, 0.0), 1.0)
            mixture[site] = share[site] * v[site] + (1 - share[site]) * sent
        w = mean({site: descend(sent, site, 1) for site in CENTRE})
    return w, v, share, mixture


@pytest.mark.parametrize("alpha_lr", [0.0, 0.02])
def test_apfl_follows_algorithm_1(alpha_lr: float) -> None:
    found = Convex(APFL(alpha=0.3, alpha_lr=alpha_lr), steps=1, rate=RATE)
    found.run(20)
    w, v, share, mixture = algorithm_1(20, 0.3, alpha_lr)
    np.testing.assert_allclose(found.model["net/w"], w, rtol=1e-12)
    for site in CENTRE:
        np.testing.assert_allclose(found.memory[site]["v::net/w"], v[site], rtol=1e-12)
        np.testing.assert_allclose(found.personal[site]["net/w"], mixture[site], rtol=1e-12)
        assert found.metrics[site]["alpha"] == pytest.approx(share[site], rel=1e-12)
        assert (share[site] == 0.3) == (alpha_lr == 0)


def test_apfls_mixture_reaches_the_sites_own_minimiser() -> None:
    found = Convex(APFL(alpha=0.8), STEPS, rate=0.3)
    found.run(60)
    for site in CENTRE:
        np.testing.assert_allclose(found.personal[site]["net/w"], CENTRE[site], atol=1e-6)


def test_apfls_share_goes_to_the_own_model_where_the_shared_one_is_wrong() -> None:
    found = Convex(APFL(alpha=0.5, alpha_lr=0.005), STEPS, RATE)
    found.run(30)
    near = min(CENTRE, key=lambda site: float(np.sum((found.model["net/w"] - CENTRE[site]) ** 2)))
    shares = {site: found.metrics[site]["alpha"] for site in CENTRE}
    assert near == min(shares, key=lambda site: shares[site])
    assert max(shares.values()) > 0.9


def test_without_a_share_the_own_model_is_what_was_sent() -> None:
    found = Convex(APFL(alpha=0.0), STEPS, RATE)
    sent = found.run(3)
    found.run(1)
    for site in CENTRE:
        np.testing.assert_array_equal(found.personal[site]["net/w"], sent)


def test_apfl_hands_adam_the_gradient_with_respect_to_v() -> None:
    """Two optimisers, as a method with several networks has: each steps v as if the loss were
    written with the mixture, which autograd then goes through."""
    alpha, start = 0.3, torch.tensor([2.0, 1.0], dtype=torch.float64)
    model = PairModel()
    rules = {"apfl": {"alpha": alpha, "alpha_lr": 0.0}}
    asked = Instruction(action=Action.FIT, seed=0, steps=6, rules=rules)
    visit = Visit(asked, cast(Any, None), cast(Any, model), CPU)
    net = model.nets["net"]

    def loss(body: torch.Tensor, head: torch.Tensor) -> torch.Tensor:
        return (0.5 * (body * head - 4) ** 2).sum() + body.sum() ** 2

    def fit(budget: Budget) -> FitReport:
        optimizers = [torch.optim.Adam([p], lr=0.1) for p in (net.body, net.head)]
        for _ in range(budget.steps):
            for optimizer in optimizers:
                optimizer.zero_grad()
                loss(net.body, net.head).backward()
                optimizer.step()
        return FitReport({"net": 1})

    run_rules(build(visit), fit, Budget(TASKS.build(TASK), 6, 0, CPU))
    own = [start[:1].clone().requires_grad_(), start[1:].clone().requires_grad_()]
    optimizers = [torch.optim.Adam([p], lr=0.1) for p in own]
    for _ in range(6):
        for optimizer in optimizers:
            for parameter in own:
                parameter.grad = None
            mixed = [alpha * p + (1 - alpha) * w for p, w in zip(own, start.split(1), strict=True)]
            loss(*mixed).backward()
            optimizer.step()
    for name, parameter in zip(("body", "head"), own, strict=True):
        noted = visit.memory[f"v::net/{name}"]
        np.testing.assert_allclose(noted, parameter.detach().numpy(), rtol=1e-12)


# Fine-tuning.


def test_fine_tuning_goes_on_alone_from_the_last_mean() -> None:
    found = Convex(FineTuning(tuning_rounds=2), STEPS, RATE, planned=5)
    last = found.run(5)
    np.testing.assert_allclose(last, fedavg(3), rtol=1e-13)
    for site in CENTRE:
        alone = descend(fedavg(3), site, 2 * STEPS)
        np.testing.assert_allclose(found.kept[site]["net/w"], alone, rtol=1e-13)


ONE = {
    "net/w": TensorInfo("net", "weight", "averaged", (2,), "float64"),
    "gan/w": TensorInfo("gan", "weight", "balanced", (2,), "float64", ("",)),
}
WHOLE = {name: np.zeros(2) for name in ONE}


def tuned(asked: Any, strategy: Strategy) -> dict[str, set[str]]:
    """Which tensors the messages carry, by site."""
    return {
        strategy.names[message.metadata.dst_node_id]: set(read_arrays(message.content))
        for message in asked
    }


def settle(strategy: Strategy, number: int, idle: tuple[str, ...] = (), failed: Any = ()) -> Any:
    """A round in which each site sends what it is asked for; the model, and what was asked."""
    arrays, config, grid = pack_arrays(WHOLE), ConfigRecord(), cast(Any, None)
    asked = list(strategy.configure_train(number, arrays, config, grid))
    replies = []
    for message in asked:
        site = strategy.names[message.metadata.dst_node_id]
        kept = Instruction.from_record(cast(Any, message.content[protocol.CONFIG])).kept
        networks = [] if site in idle else ["gan", "net"]
        sent = {n: np.ones(2) for n in WHOLE if n not in kept and n.split("/")[0] in networks}
        told = {"trained": dict.fromkeys(networks, 1), "domain": ""}
        content = answer(site, arrays=pack_arrays(sent), details=told)
        lost = Error(102, "no disk")
        replies.append(Message(lost if site in failed else content, reply_to=message))
    model, _ = strategy.aggregate_train(number, replies)
    assert strategy.outcome.rejected == {}
    return model, tuned(asked, strategy)


def start_tuning(rounds: int = 4, **settings: Any) -> Strategy:
    strategy = FineTuning(**settings)
    asked = Instruction(action=Action.NAME, seed=0, steps=1, rounds=rounds)
    strategy.begin({"a": 1, "b": 2, "c": 3}, ONE, asked)
    return strategy


def test_the_shared_model_travels_to_a_site_once_when_it_goes_on_alone() -> None:
    strategy = start_tuning(tuning_rounds=3, fraction=0.3)
    model, carried = settle(strategy, 1)
    assert len(carried) == 1
    assert set(carried.popitem()[1]) == set(ONE)
    model, carried = settle(strategy, 2, idle=("b",), failed=("c",))
    assert carried == {site: set(ONE) for site in "abc"}
    # What is not a site's own goes on being combined; the shared model stays as it was.
    assert protocol.unpack_arrays(model)["net/w"].tolist() == [0, 0]
    assert protocol.unpack_arrays(model)["gan/w"].tolist() == [1, 1]
    arrays, grid = pack_arrays(WHOLE), cast(Any, None)
    validated = list(strategy.configure_evaluate(2, arrays, ConfigRecord(), grid))
    # One trained nothing, one was lost: neither has a model of its own.
    expected = {"a": {"gan/w"}, "b": set(ONE), "c": set(ONE)}
    assert tuned(validated, strategy) == expected
    # A resumed run has the state and nothing else.
    again = start_tuning(tuning_rounds=3, fraction=0.3)
    again.state = strategy.state
    assert settle(again, 3)[1] == expected
    assert settle(again, 4)[1] == {site: {"gan/w"} for site in "abc"}


def test_a_weight_sent_while_sites_train_alone_is_rejected() -> None:
    strategy = start_tuning(tuning_rounds=1)
    settle(strategy, 3)
    grid = cast(Any, None)
    (message, *_) = list(strategy.configure_train(4, pack_arrays(WHOLE), ConfigRecord(), grid))
    told = {"trained": {"net": 1}, "domain": ""}
    sent = answer("a", arrays=pack_arrays({"net/w": np.ones(2)}), details=told)
    strategy.aggregate_train(4, [Message(sent, reply_to=message)])
    assert "does not travel" in strategy.outcome.rejected["a"]


def test_tuning_must_leave_a_round_for_the_shared_model() -> None:
    with pytest.raises(UserError, match=r"tuning_rounds=4 leaves no round of rounds=4"):
        start_tuning(tuning_rounds=4)


# At a site.


@pytest.fixture
def worker(tiny: tuple[str, ...], tmp_path: Path) -> tuple[SiteWorker, Instruction]:
    """A phantom site that has trained nothing, and what its requests have in common."""
    config = load(list(tiny))
    settings = DataSettings.from_config(config["data"])
    federation = load_federation(config["federation"], settings, 0)
    sites = LocalSites(federation, settings, Policy(), tmp_path / "sites", 0)
    method = {"name": "supervised", "width": 4, "depth": 3}
    task = {"name": "segmentation", "parts": list(federation.parts)}
    asked = Instruction(
        action=Action.FIT, seed=0, round=1, rounds=2, method=method, task=task, steps=2
    )
    return sites.worker("vendor_a", CPU), asked


def tell(worker: SiteWorker, asked: Instruction, arrays: Arrays) -> Message:
    content = request(asked, pack_arrays(arrays))
    return worker.handle(Message(content, dst_node_id=5, message_type=asked.action.message_type))


def test_what_is_validated_is_the_model_the_site_would_use(
    worker: tuple[SiteWorker, Instruction],
) -> None:
    site, fit = worker
    initial = initial_arrays(fit.method, fit.task, 0)

    def dice(arm: str, arrays: Arrays) -> float:
        reply = tell(site, fit.but(action=Action.VALIDATE, arm=arm, rules={}), arrays)
        record = reply.content[protocol.METRICS]
        assert isinstance(record, MetricRecord)
        return float(cast(float, record["val_dice"]))

    shared = dice("federated", initial)
    reply = tell(site, fit.but(rules={"ditto": {"lam": 0.1}}, steps=20), initial)
    assert not reply.has_error()
    own = read_arrays(tell(site, fit.but(action=Action.MODEL), {}).content)
    assert own.keys() == initial.keys()
    assert dice("federated", initial) == dice("local", own)
    assert dice("local", initial) == shared
    assert dice("federated", initial) != shared


def test_a_site_trains_its_own_tensors_on_and_takes_those_sent_where_it_has_none(
    worker: tuple[SiteWorker, Instruction],
) -> None:
    site, fit = worker
    initial = initial_arrays(fit.method, fit.task, 0)
    alone = fit.but(kept=tuple(sorted(initial)))
    sent = {name: array + np.float32(0.25) for name, array in initial.items()}
    tell(site, alone.but(steps=1, method={**fit.method, "lr": 0.0}), sent)
    held = read_arrays(tell(site, fit.but(action=Action.MODEL), {}).content)
    for name, array in sent.items():
        np.testing.assert_array_equal(held[name], array)
    reply = tell(site, alone.but(round=2), {})
    assert not reply.has_error()
    # Nothing kept and nothing sent: the run's initial weights.
    reply = tell(site, alone.but(arm="local", method={**fit.method, "lr": 0.0}), {})
    held = read_arrays(tell(site, fit.but(action=Action.MODEL, arm="local"), {}).content)
    for name, array in initial.items():
        np.testing.assert_array_equal(held[name], array)


@pytest.mark.parametrize("rule", [{"ditto": {"lam": 0.1}}, {"apfl": {"alpha": 0.5, "alpha_lr": 0}}])
def test_an_own_model_that_diverged_is_not_kept(
    rule: dict[str, Any], worker: tuple[SiteWorker, Instruction]
) -> None:
    site, fit = worker
    initial = initial_arrays(fit.method, fit.task, 0)
    wild = fit.but(rules=rule, round=2, method={**fit.method, "lr": 1e30})
    assert not tell(site, fit.but(rules=rule), initial).has_error()
    before = read_arrays(tell(site, fit.but(action=Action.MODEL, round=2), {}).content)
    reply = tell(site, wild, initial)
    assert reply.has_error()
    assert "diverged in round 2: segmenter/" in str(reply.error.reason)
    after = read_arrays(tell(site, fit.but(action=Action.MODEL, round=2), {}).content)
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array)


# Whole runs.


@pytest.fixture(scope="session")
def train(simulate_undrawn: Callable[..., Path]) -> Callable[..., Path]:
    """A small run whose single-site models are not trained, and so not scored."""

    def call(out: Path, *overrides: str) -> Path:
        return simulate_undrawn(out, "evaluated=[personal,global]", *overrides)

    return call


def rounds_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "rounds.jsonl").read_text().splitlines()]
    assert not any(line["failed"] or line["rejected"] or line["skipped"] for line in lines)
    return lines


def shared_model(run: Path) -> Arrays:
    """The model after the last round."""
    return read_tensors(max((run / "checkpoints").glob("round_*.safetensors")))


def global_rows(run: Path) -> list[str]:
    """What the shared model scored, case by case."""
    rows = (run / "cases.csv").read_text().splitlines()
    return [row for row in rows if row.startswith("global,")]


def scored(run: Path) -> set[tuple[str, str]]:
    """The models of the matrix: kind and site."""
    rows = (run / "cross_site.csv").read_text().splitlines()[1:]
    return {(row.split(",")[0], row.split(",")[1]) for row in rows}


OWN = {("personal", f"vendor_{letter}") for letter in "abc"}


@pytest.mark.parametrize("name", ["silobn", "fedper", "fedrep"])
def test_a_run_ends_with_own_models(name: str, train: Call, tmp_path: Path) -> None:
    run = train(tmp_path / "run", f"strategy={name}", "method.norm=batch")
    assert len(rounds_of(run)) == 2
    assert scored(run) == {*OWN, ("global", "all")}
    shared = read_tensors(run / "checkpoints" / "round_0002.safetensors")
    held = read_tensors(next((run / "checkpoints/sites/vendor_a").rglob("round_0002.*")))
    assert held.keys().isdisjoint(shared)
    assert held.keys() | shared.keys() == infos(norm="batch").keys()


def state_of(run: Path) -> dict[str, bytes]:
    """What a run's checkpoints and sites hold, without the ledgers."""
    files = sorted((run / "checkpoints").rglob("*.safetensors"))
    return {path.relative_to(run).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("settings", [("ditto",), ("apfl", "strategy.alpha_lr=0.01")])
def test_a_run_of_few_sites_a_round_goes_on_where_it_was_cut(
    settings: tuple[str, ...], train: Call, cut_short: Call, tmp_path: Path
) -> None:
    name, *more = settings
    overrides = (f"strategy={name}", "strategy.fraction=0.6", "method.norm=batch", *more)
    cut_and_go_on(train, cut_short, tmp_path, *overrides)


def cut_and_go_on(train: Call, cut_short: Call, folder: Path, *overrides: str) -> Path:
    """A run to the end, and the same one that lost what came after its first round."""
    whole = train(folder / "whole", *overrides)
    rounds_of(whole)
    cut = cut_short(whole, folder / "cut")
    train(cut, *overrides, "resume=true")
    assert state_of(cut) == state_of(whole)
    assert (cut / "cases.csv").read_bytes() == (whole / "cases.csv").read_bytes()
    return whole


def test_fine_tuning_ends_with_fedavgs_last_mean_and_own_models(
    train: Call, cut_short: Call, tmp_path: Path
) -> None:
    run = cut_and_go_on(train, cut_short, tmp_path, "strategy=fine_tuning", "method.norm=batch")
    shorter = train(tmp_path / "fedavg", "strategy=fedavg", "method.norm=batch", "rounds=1")
    mean, expected = shared_model(run), shared_model(shorter)
    for tensor, array in expected.items():
        assert mean[tensor].tobytes() == array.tobytes()
    assert scored(run) == {*OWN, ("global", "all")}
    assert global_rows(run) == global_rows(shorter)
    first, last = rounds_of(run)
    size = sum(array.nbytes for array in expected.values())
    assert first["bytes_up"] > 3 * size
    assert last["bytes_up"] < size


PHASES = {
    "style_transfer": (
        "method=style_transfer",
        "method.translator_rounds=1",
        "method.scales=2",
        "method.translator_width=4",
        "method.style_encoder=kept",
    ),
    "drai": ("method=drai", "method.generation_rounds=1", "method.generator_width=4"),
    "unet_gan": (
        "method=unet_gan",
        "method.form=average",
        "method.translation_rounds=2",
        "method.segmenter_rounds=1",
        "method.judge_width=4",
        "method.judge_stages=2",
        "method.translator_width=4",
        "data.unlabelled_sites=[vendor_c]",
        "rounds=3",
    ),
}


@pytest.fixture(scope="session")
def with_fedavg(train: Call, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """FedAvg's runs of the methods of several networks."""
    folder = tmp_path_factory.mktemp("shared")
    return {method: train(folder / method, *settings) for method, settings in PHASES.items()}


@pytest.mark.parametrize(
    ("name", "method"), [("ditto", "style_transfer"), ("ditto", "unet_gan"), ("apfl", "drai")]
)
def test_a_second_training_leaves_no_trace_in_the_shared_model(
    name: str, method: str, train: Call, with_fedavg: dict[str, Path], tmp_path: Path
) -> None:
    """Neither in the weights a method keeps at the site, nor in what it notes."""
    run = train(tmp_path / "run", f"strategy={name}", *PHASES[method])
    rounds_of(run)
    assert scored(run) >= OWN
    found = shared_model(run)
    for tensor, array in shared_model(with_fedavg[method]).items():
        assert found[tensor].tobytes() == array.tobytes(), tensor


def test_the_head_of_a_method_of_several_networks(train: Call, tmp_path: Path) -> None:
    run = train(tmp_path / "run", "strategy=fedrep", *PHASES["drai"])
    rounds_of(run)
    assert scored(run) >= OWN


def test_tuning_with_networks_that_the_method_keeps(
    train: Call, with_fedavg: dict[str, Path], tmp_path: Path
) -> None:
    """The shared model lacks what the method keeps, and that alone is the mean over the sites."""
    settings = (*PHASES["style_transfer"], "rounds=3")
    run = train(tmp_path / "run", "strategy=fine_tuning", *settings)
    rounds_of(run)
    assert scored(run) >= OWN
    assert global_rows(run) == global_rows(with_fedavg["style_transfer"])
