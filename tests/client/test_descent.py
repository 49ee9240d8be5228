"""The pieces that the methods' training loops share: the descent, frozen networks, the phases of a
run, and slices with and without labels."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from kit.cases import mask_case
from torch import nn

from fedshift import UserError
from fedshift.client.contract.step import Seen
from fedshift.client.descent import Descent
from fedshift.client.networks.frozen import frozen, held
from fedshift.client.phases import Phases
from fedshift.client.slices import Slices, permuted

CPU = torch.device("cpu")


def test_a_step_is_adams_on_its_own_networks_with_penalty_and_constant() -> None:
    """The first step is w - lr * g / (|g| + eps), of the sum of the three gradients."""
    moved, other = nn.Linear(3, 1), nn.Linear(1, 1)
    before = [p.detach().clone() for p in (*moved.parameters(), *other.parameters())]
    inputs = torch.tensor([[1.0, 2.0, -1.0]])
    constant = torch.tensor([-5.0, 0.5, 0.25, 3.0])
    descent = Descent(moved, lr=0.01, penalty=lambda seen: 2 * moved.weight.sum())
    losses = descent.gradients({"loss": other(moved(inputs)).sum()})
    descent.add_constant(constant)
    descent.take(losses)
    slope = other.weight.item()
    gradients = [slope * inputs + 2 + constant[:3], slope + constant[3:]]
    for new, old, gradient in zip(moved.parameters(), before, gradients, strict=False):
        torch.testing.assert_close(new, old - 0.01 * gradient / (gradient.abs() + 1e-8))
    assert all(map(torch.equal, other.parameters(), before[2:]))
    assert all(parameter.grad is None for parameter in other.parameters())


def test_means_are_of_every_loss_and_of_a_penalty_where_there_is_one() -> None:
    net = nn.Linear(1, 1)
    seen: list[Seen] = []
    penalties = iter([torch.tensor(4.0), None, torch.tensor(2.0)])

    def penalty(shown: Seen) -> torch.Tensor | None:
        seen.append(shown)
        return next(penalties)

    descent = Descent(net, lr=0.0, penalty=penalty)
    for value in (1.0, 2.0, 6.0):
        descent.step({"a": net.weight.sum() * 0 + value, "b": net.bias.sum() * 0 - value})
    assert descent.means() == {"a": 3.0, "b": -3.0, "penalty": 2.0}
    assert seen == [{}, {}, {}]


def test_long_gradients_are_cut_to_the_longest() -> None:
    net = nn.Linear(4, 1, bias=False)
    descent = Descent(net, lr=0.1, longest=0.5)
    losses = descent.gradients({"loss": 100 * net.weight.sum()})
    assert descent.norm().item() == pytest.approx(200)
    descent.take(losses)
    assert descent.norm().item() == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("where", ["loss", "weight"])
def test_what_is_not_finite_is_told_in_the_methods_sentence(where: str) -> None:
    net = nn.Linear(1, 1)
    descent = Descent(net, lr=0.1)
    descent.step({"loss": net.weight.sum() * (math.nan if where == "loss" else 1.0)})
    with torch.no_grad():
        net.weight.fill_(math.inf if where == "weight" else 1.0)
        net.bias.fill_(0.0)
    with pytest.raises(UserError, match=r"^lower the rate$"):
        descent.finished("lower the rate")


def test_held_networks_pass_gradients_on_and_get_none() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 1)
    with held(second):
        second(first(torch.ones(1, 2))).sum().backward()
    assert first.weight.grad is not None
    assert second.weight.grad is None
    assert second.weight.requires_grad
    copy = frozen(second.train())
    assert not copy.training and not copy.weight.requires_grad
    assert second.training and second.weight.requires_grad
    assert torch.equal(copy.weight, second.weight)


def test_phases_follow_each_other_and_the_last_takes_what_is_left() -> None:
    phases = Phases({"warmup": 1, "none": 0, "game": 2, "segmentation": None})
    assert [phases.of(round) for round in range(1, 7)] == [
        "warmup",
        "game",
        "game",
        *["segmentation"] * 3,
    ]
    assert phases.before == 3
    assert [bool(phases.bound(rounds)) for rounds in (2, 3, 4)] == [True, True, False]
    phases.check(4)
    settings = r"method\.warmup_rounds \+ method\.none_rounds \+ method\.game_rounds"
    with pytest.raises(
        UserError, match=rf"^rounds=3 leaves none for the segmentation.*{settings}.*more than 3$"
    ):
        phases.check(3)


def test_a_last_phase_of_a_length_ends() -> None:
    phases = Phases({"segmenter": 2, "translation": 3})
    found = [phases.of(round) for round in range(1, 8)]
    assert found == ["segmenter"] * 2 + ["translation"] * 3 + ["", ""]
    with pytest.raises(UserError, match=r"set rounds to 5$"):
        phases.check(2)


def test_slices_need_no_label_and_come_once_in_order_or_equally_often() -> None:
    images = np.random.default_rng(0).standard_normal((5, 4, 6)).astype("f4")
    slices = Slices([mask_case(images[:2]), mask_case(images[2:])])
    assert len(slices) == 5
    whole = torch.cat(list(slices.once(2, CPU)))
    np.testing.assert_array_equal(whole[:, 0], images)
    assert [len(batch) for batch in slices.once(2, CPU)] == [2, 2, 1]
    drawn = torch.cat(list(slices.batches(2, 5, seed=3, device=CPU)))[:, 0].numpy()
    counts = [sum(np.array_equal(image, other) for other in drawn) for image in images]
    assert counts == [2] * 5
    assert len(next(slices.batches(9, 1, seed=0, device=CPU))) == 5
    assert list(permuted(5, 2, 3, 7)) == list(permuted(5, 2, 3, 7))
