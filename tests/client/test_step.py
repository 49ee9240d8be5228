"""What a strategy changes in training: steps one by one, composed, and refused where they do not
fit, at the methods' real loops."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from kit.cases import mask_case, segmentation
from torch import nn

from fedshift import UserError
from fedshift.client.augmentation import Augmentation
from fedshift.client.contract.method import Budget, FitReport, Method, Scene
from fedshift.client.contract.step import (
    Batch,
    Composed,
    Decoder,
    Encoder,
    Gradients,
    Losses,
    Seen,
    Step,
    hooks,
)
from fedshift.client.methods import METHODS as METHODS_BY_NAME
from fedshift.client.methods.online_rendering import OnlineRendering
from fedshift.client.methods.supervised import Supervised
from fedshift.client.model import Model
from fedshift.client.networks.lv_unet import LVUNet
from fedshift.client.rules import RULES, predictor
from fedshift.client.rules.base import LocalRule, Visit, run_rules
from fedshift.client.rules.base.following import following
from fedshift.client.training import changed
from fedshift.protocol.messages import Action, Instruction
from fedshift.protocol.needs import CHANGE, DESCEND
from fedshift.runs.config import load
from fedshift.runs.simulate import run
from fedshift.sites.types import SiteData

CPU = torch.device("cpu")
TASK = segmentation("disc", size=(16, 16))
SMALL: dict[str, Any] = {"name": "supervised", "width": 4, "depth": 2, "batch": 4, "lr": 0.01}
WIRE: dict[str, Any] = {"name": "segmentation", "parts": ["disc"], "size": [16, 16]}


def site() -> SiteData:
    """One case of eight slices, a bright disc on each."""
    rows, columns = np.mgrid[:16, :16]
    disc = ((rows - 8) ** 2 + (columns - 7) ** 2 < 16).astype(np.uint8)
    noise = np.random.default_rng(0).normal(0, 0.2, (8, 16, 16))
    case = mask_case((disc + noise).astype("f4"), np.repeat(disc[None], 8, axis=0))
    splits = {"train": (case,), "val": (case,), "test": (case,)}
    return SiteData("a", "train", ("disc",), splits)  # type: ignore[arg-type]


def weights(nets: Mapping[str, nn.Module]) -> dict[str, np.ndarray]:
    return {
        f"{name}/{key}": tensor.detach().numpy().copy()
        for name, net in nets.items()
        for key, tensor in net.state_dict().items()
    }


def trained(method: Method, step: Step, steps: int = 2) -> tuple[dict[str, np.ndarray], FitReport]:
    """The networks after one fit from fixed initial weights, and the report."""
    torch.manual_seed(0)
    nets = method.networks(TASK)
    budget = Budget(TASK, steps, 5, CPU, step=step, round=1, rounds=2)
    report = method.fit(site(), nets, {}, budget)
    return weights(nets), report


def equal(one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
    return all(np.array_equal(array, other[name]) for name, array in one.items())


class Brighter(Step):
    """Adds to the images, and notes how many it was given."""

    def __init__(self, by: float) -> None:
        self.by, self.given = by, 0

    def change(self, images: torch.Tensor) -> torch.Tensor:
        self.given += len(images)
        return images + self.by


class Doubled(Step):
    """Every image a second time, upside down."""

    def change(self, images: torch.Tensor) -> torch.Tensor:
        return torch.cat([images, images.flip(2)])


class Pull(Step):
    """Holds every parameter near zero, and notes what networks have seen."""

    def __init__(self, by: float) -> None:
        self.by = by
        self.seen: list[dict[str, torch.Size]] = []

    def penalty(self, nets: Mapping[str, nn.Module], seen: Seen) -> torch.Tensor:
        self.seen.append({name: images.shape for name, images in seen.items()})
        return self.by * sum(
            (p.square().sum() for net in nets.values() for p in net.parameters()), torch.zeros(())
        )


class Halved(Step):
    """Follows the gradients of the first half of a batch alone."""

    def descend(self, net: nn.Module, batch: Batch, gradients: Gradients) -> Losses:
        assert all(p.requires_grad for p in net.parameters())
        return gradients(batch.rows(slice(len(batch) // 2)))


class Twice(Step):
    """Adds the gradients of a second scalar."""

    def descend(self, net: nn.Module, batch: Batch, gradients: Gradients) -> Losses:
        losses = gradients(batch)
        gradients.add(lambda: sum((p.sum() for p in net.parameters()), torch.zeros(())))
        return losses


METHODS = {
    "supervised": Supervised(width=4, depth=2, batch=4),
    "online_rendering": OnlineRendering(
        renderer_width=2, segmenter_width=2, judge_width=2, batch=4
    ),
}


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("step", [Brighter(0.5), Doubled(), Pull(0.01), Halved(), Twice()])
def test_every_hook_changes_what_is_trained(method: Method, step: Step) -> None:
    plain, _ = trained(method, Step())
    found, report = trained(method, step)
    assert not equal(found, plain)
    assert ("penalty" in report.metrics) == isinstance(step, Pull)
    for name in method.stepped:
        assert any(not np.array_equal(found[k], plain[k]) for k in found if k.startswith(name))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_penalty_is_told_what_each_stepped_network_has_seen(method: Method) -> None:
    pull = Pull(0.0)
    trained(method, pull, steps=1)
    told = [seen for seen in pull.seen if seen]
    assert {name for seen in told for name in seen} == set(method.stepped)
    assert all(tuple(shape) == (4, 1, 16, 16) for seen in told for shape in seen.values())
    if isinstance(method, OnlineRendering):  # The other objectives are penalised, and say nothing.
        assert {} in pull.seen


def test_no_step_and_an_empty_composition_are_the_same_training() -> None:
    method = METHODS["supervised"]
    assert equal(trained(method, Step())[0], trained(method, Composed([]))[0])


def test_changes_compose_in_their_order_and_penalties_add_up() -> None:
    class Squared(Step):
        def change(self, images: torch.Tensor) -> torch.Tensor:
            return images.square()

    images = torch.full((2, 1, 4, 4), 3.0)
    both = Composed([Brighter(1.0), Squared()])
    assert both.change(images).unique().item() == 16
    assert Composed([Squared(), Brighter(1.0)]).change(images).unique().item() == 10

    net = nn.Linear(1, 1, bias=False)
    weight = net.weight.square().item()
    pulls = Composed([Pull(2.0), Brighter(0.0), Pull(3.0)])
    penalty = pulls.penalty({"net": net}, {})
    assert penalty is not None
    assert penalty.item() == pytest.approx(5 * weight)
    assert both.penalty({"net": net}, {}) is None


def test_the_one_that_owns_the_descent_sees_what_the_others_changed() -> None:
    """Doubled, then the first half alone: the same as plain training, as nothing is drawn for the
    copies once augmentation is off."""
    quiet = Supervised(width=4, depth=2, batch=4, augmentation=Augmentation(affine=False))
    found, _ = trained(quiet, Composed([Doubled(), Halved()]))
    assert equal(found, trained(quiet, Step())[0])


def test_two_that_own_the_descent_are_refused_in_one_sentence() -> None:
    with pytest.raises(UserError, match="both Halved and Twice say how a step's gradients"):
        Composed([Halved(), Brighter(0), Twice()])


def test_labels_follow_images_that_become_more() -> None:
    told = torch.tensor([[True, False], [True, True]])
    batch = Batch(torch.rand(2, 1, 4, 4), torch.arange(2), told)
    found = changed(batch, Doubled())
    assert torch.equal(found.images[2:], batch.images.flip(2))
    assert found.labels.tolist() == [0, 1, 0, 1]
    assert found.told is not None
    assert torch.equal(found.told[2:], told)
    rows = found.rows(slice(2, None))
    assert (len(rows), rows.labels.tolist()) == (2, [0, 1])


# Rules.


def at_work(asked: Sequence[type[LocalRule]]) -> tuple[dict[str, np.ndarray], FitReport]:
    """Train a small network with these rules; its weights and its report."""
    model = Model(SMALL, WIRE, CPU, seed=0)
    instruction = Instruction(action=Action.FIT, seed=0, round=1, rules={})
    visit = Visit(instruction, site(), model, CPU)
    budget = Budget(model.task, 2, 5, CPU)
    report = run_rules(
        [rule(visit) for rule in asked],
        lambda given: model.method.fit(visit.site, model.nets, {}, given),
        budget,
    )
    return model.read(), report


class Brightened(LocalRule):
    step = Brighter(0.5)
    needs = frozenset({CHANGE})


class Pulled(LocalRule):
    """Sets its step when the training is about to begin."""

    def around(self, train: Any) -> FitReport:
        self.step = Pull(0.01)
        return train()


class Own(LocalRule):
    """Trains with a step of its own after the others'."""

    needs = frozenset({DESCEND})

    def around(self, train: Any) -> FitReport:
        return train(step=Halved())


def test_rules_provide_steps_that_act_together() -> None:
    asked = [Brightened, Pulled, Own]
    found, report = at_work(asked)
    assert report.metrics["penalty"] > 0
    for rule in asked:
        fewer, _ = at_work([other for other in asked if other is not rule])
        assert not equal(found, fewer), rule


def test_a_rule_may_change_what_is_predicted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Shown(LocalRule):
        @classmethod
        def at_prediction(cls, scene: Scene, **settings: Any) -> Callable[..., Any]:
            assert set(scene.bank) == {"b"}
            return lambda images: np.asarray(images) * settings["by"]

    monkeypatch.setitem(RULES.registered, "shown", Shown)
    model = Model(SMALL, WIRE, CPU, seed=0)
    images = site().splits["test"][0].image
    bank = {"b": {"rule.x": np.ones(1)}}
    scene = Scene(model.task, "a", CPU, bank=bank)
    plain = predictor(model, scene, {})(images)
    np.testing.assert_array_equal(
        plain, model.method.predict(model.nets, images, Scene(model.task, "a", CPU))
    )
    found = predictor(model, scene, {"shown": {"by": 2.0}})(images)
    np.testing.assert_array_equal(found, predictor(model, scene, {})(2 * images))
    with pytest.raises(UserError, match="rule=telepathy is not known"):
        predictor(model, scene, {"telepathy": {}})


# A training that lets no rule act.


class Careless(Supervised):
    """Its network trains in a loop of its own, which asks for what it likes."""

    asks: ClassVar[tuple[str, ...]] = ()

    def fit(self, site: SiteData, nets: Any, bank: Any, budget: Budget) -> FitReport:
        step, net = budget.step, nets["segmenter"]
        images = torch.from_numpy(np.array(site.splits["train"][0].image))
        if "change" in self.asks:
            images = step.change(images)

        def gradients(batch: Batch) -> Losses:
            loss = net(batch.images).square().mean()
            if "penalty" in self.asks:
                loss = loss + step.penalty(nets, {})
            if "seen" in self.asks:
                loss = loss + step.penalty(nets, {"segmenter": batch.images})
            loss.backward()
            return {"loss": loss}

        batch = Batch(images, torch.zeros(len(images)))
        if "descend" in self.asks:
            step.descend(net, batch, gradients)  # type: ignore[arg-type]
        else:
            gradients(batch)
        if "optimiser" in self.asks:
            torch.optim.Adam(net.parameters(), lr=0.01).step()
        else:
            with torch.no_grad():
                net.head.weight -= 0.01 * net.head.weight.grad
        return FitReport({"segmenter": 8})


class Stepped(LocalRule):
    """Acts when an optimiser steps."""

    def before_step(self, optimizer: Any) -> None: ...


class Watching(LocalRule):
    """Changes nothing."""


def rule_of(hook: Step) -> type[LocalRule]:
    return type("Ruled", (LocalRule,), {"step": hook, "needs": hooks(hook) - {"penalty"}})


@pytest.mark.parametrize(
    ("asks", "rule", "words"),
    [
        ((), rule_of(Pull(0.1)), "never asks budget.step for its penalty, so that"),
        (("penalty",), rule_of(Pull(0.1)), "its penalty on what segmenter has seen"),
        (("seen",), rule_of(Pull(0.1)), None),
        (("descend",), rule_of(Brighter(1)), "the images that segmenter is to be trained on"),
        (("change",), rule_of(Brighter(1)), None),
        (("change",), rule_of(Halved()), "the gradients that segmenter is to follow"),
        (("descend",), rule_of(Halved()), None),
        ((), Stepped, "steps no optimiser of torch, so that the strategy's rule stepped"),
        (("optimiser",), Stepped, None),
        ((), Watching, None),
    ],
)
def test_a_training_that_lets_no_rule_act_is_an_error(
    asks: tuple[str, ...], rule: type[LocalRule], words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Careless, "asks", asks)
    monkeypatch.setitem(METHODS_BY_NAME.registered, "careless", Careless)
    model = Model({**SMALL, "name": "careless"}, WIRE, CPU, seed=0)
    rules = [rule(Visit(Instruction(action=Action.FIT, seed=0), site(), model, CPU))]
    fit = following(rules, model, partial(model.method.fit, site(), model.nets, {}))
    budget = Budget(model.task, 1, 5, CPU)
    if words is None:
        assert run_rules(rules, fit, budget).trained
        return
    with pytest.raises(UserError, match=words) as refused:
        run_rules(rules, fit, budget)
    assert str(refused.value).startswith("method=careless ")


@pytest.mark.parametrize(
    ("asks", "hook", "words"),
    [
        (("descend",), Brighter(1), "the images that segmenter is to be trained on"),
        (("change",), Brighter(1), None),
        (("change",), Halved(), "the gradients that segmenter is to follow"),
        (("descend",), Halved(), None),
        (("penalty",), Pull(0.1), None),
    ],
)
def test_nor_does_one_that_says_of_no_network_that_a_strategy_may_change_its_steps(
    asks: tuple[str, ...], hook: Step, words: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Careless, "stepped", ())
    test_a_training_that_lets_no_rule_act_is_an_error(asks, rule_of(hook), words, monkeypatch)


@pytest.mark.parametrize(("rule", "word"), [(Brightened, "change"), (Own, "descend")])
def test_a_rule_says_in_its_class_what_its_step_needs(
    rule: type[LocalRule], word: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule, "needs", frozenset())
    with pytest.raises(UserError, match=rf'say so in its class: needs = frozenset\({{"{word}"}}\)'):
        at_work([rule])


@pytest.mark.parametrize("method", ["supervised", "online_rendering"])
def test_a_shipped_training_lets_every_rule_act(method: str) -> None:
    settings = {"supervised": SMALL, "online_rendering": {"name": method, "batch": 4}}[method]
    model = Model(settings, WIRE, CPU, seed=0)
    visit = Visit(Instruction(action=Action.FIT, seed=0), site(), model, CPU)
    hooks = (Pull(0.1), Brighter(1.0), Halved())
    rules = [*(rule_of(hook)(visit) for hook in hooks), Stepped(visit)]
    fit = following(rules, model, partial(model.method.fit, site(), model.nets, {}))
    for number in (1, 2):  # In its last round online_rendering trains nothing.
        assert run_rules(rules, fit, Budget(model.task, 1, 5, CPU, round=number, rounds=2)).trained


# What is offered.


def test_the_card_offers_what_method_networks_and_task_have() -> None:
    supervised = Model(SMALL, WIRE, CPU, seed=0).offers()
    assert supervised == {"change", "descend", "encoder", "decoder", "pixel classes"}
    rendering = Model({"name": "online_rendering"}, WIRE, CPU, seed=0).offers()
    assert rendering == supervised - {"decoder"}


def test_the_network_shows_what_the_protocols_say() -> None:
    net = LVUNet(1, 2, width=4, depth=3, blocks=1).eval()
    assert isinstance(net, Encoder)
    assert isinstance(net, Decoder)
    assert not isinstance(nn.Linear(1, 1), Encoder)
    images = torch.rand(2, 1, 16, 16)
    seen: list[torch.Tensor] = []
    net.bottleneck.register_forward_hook(lambda module, inputs, output: seen.append(output))
    assert torch.equal(net.head(net.decode(images)[-1]), net(images))
    assert torch.equal(net.encode(images)[-1], seen[0])
    assert len(seen) == 3, "once a forward pass"


def test_a_strategy_is_refused_where_its_needs_are_not_met(tmp_path: Path) -> None:
    asked = [
        "federation.subjects=3",
        "data.size=32",
        "method=online_rendering",
        "method.renderer_width=2",
        "method.segmenter_width=2",
        "method.judge_width=2",
        "strategy=feddg",
        "baselines=[]",
        "evaluated=[global]",
        "rounds=2",
        "local_steps=1",
        "engine.devices=cpu",
    ]
    with pytest.raises(
        UserError, match="strategy=feddg needs a network that shows its decoder's"
    ) as refused:
        run(tmp_path / "refused", load(asked), drawn=False)
    assert "strategy=feddg" in str(refused.value)
    assert "method=online_rendering with task=segmentation" in str(refused.value)
    assert not (tmp_path / "refused" / "rounds.jsonl").exists()
    # Without the term at the boundary it looks into no network.
    run(tmp_path / "run", load([*asked, "strategy.boundary=0"]), drawn=False)
    lines = (tmp_path / "run" / "rounds.jsonl").read_text().splitlines()
    assert [json.loads(line)["failed"] for line in lines] == [{}, {}]
