"""Aggregation by hand: the rules, the guards, the memory, and a convex problem."""

from __future__ import annotations

import re
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from kit.convex import CENTRE, CURVATURE, EXAMPLES, Convex

from fedshift import UserError, strategies
from fedshift.client import rules
from fedshift.client.model import Model
from fedshift.client.rules.base import Visit
from fedshift.client.rules.proximal import Proximal
from fedshift.protocol import messages as protocol
from fedshift.protocol.flower import (
    Array,
    ArrayRecord,
    ConfigRecord,
    Error,
    Message,
    RecordDict,
    set_message_id,
)
from fedshift.protocol.messages import (
    Action,
    Adam,
    Arrays,
    Instruction,
    TensorInfo,
    answer,
    pack_arrays,
    unpack_arrays,
)
from fedshift.server.exchange import exchange
from fedshift.strategies import STRATEGIES
from fedshift.strategies.base import Strategy
from fedshift.strategies.base.aggregate import WeightedMean
from fedshift.strategies.fedavg import FedAvg
from fedshift.strategies.fedbn import FedBN
from fedshift.strategies.fedprox import FedProx
from fedshift.strategies.local import Local
from fedshift.strategies.pooled import Pooled

WEIGHT, NORM, MEAN, COUNT = "net/conv.weight", "net/norm.weight", "net/norm.mean", "net/norm.count"
TENSORS = {
    WEIGHT: TensorInfo("net", "weight", "averaged", (2,), "float32"),
    NORM: TensorInfo("net", "norm", "averaged", (2,), "float32"),
    MEAN: TensorInfo("net", "norm_buffer", "averaged", (2,), "float32"),
    COUNT: TensorInfo("net", "norm_buffer", "averaged", (), "int64"),
}
NODES = {"c": 11, "a": 22, "b": 33}


def start(
    strategy: Strategy,
    tensors: Mapping[str, TensorInfo] = TENSORS,
    nodes: Mapping[str, int] = NODES,
    seed: int = 0,
) -> Strategy:
    strategy.begin(nodes, tensors, Instruction(action=Action.NAME, seed=seed))
    return strategy


def arrays(value: float, count: int = 0) -> Arrays:
    pair = np.array([value, 2 * value], np.float32)
    return {WEIGHT: pair, NORM: pair, MEAN: pair, COUNT: np.array(count, np.int64)}


def reply(node: int, content: RecordDict | Error) -> Message:
    asked = Message(RecordDict(), dst_node_id=node, message_type="train")
    return Message(content, reply_to=asked)


def update(
    name: str, sent: Arrays, examples: float = 1, domain: str = "", **metrics: float
) -> Message:
    networks = {key.split("/")[0] for key in sent} or {"net"}
    content = answer(
        name,
        arrays=pack_arrays(sent),
        metrics={protocol.EXAMPLES: examples, **metrics},
        details={"trained": dict.fromkeys(sorted(networks), examples), "domain": domain},
    )
    return reply(NODES[name], content)


def fold(
    strategy: Strategy, current: Arrays, replies: Iterable[Message], number: int = 1
) -> Arrays | None:
    """One round of ``strategy`` from ``current``; None when the model stays as it was."""
    list(strategy.configure_train(number, pack_arrays(current), ConfigRecord(), grid=None))  # type: ignore[arg-type]
    model, _ = strategy.aggregate_train(number, replies)
    return None if model is None else unpack_arrays(model)


# The rules.


def test_fedavg_weights_sites_by_their_examples() -> None:
    sent = [update("a", arrays(1, 10), 1), update("b", arrays(2, 11), 2), update("c", arrays(6), 1)]
    model = fold(start(FedAvg()), arrays(0), sent)
    assert model is not None
    # (1 * 1 + 2 * 2 + 1 * 6) / 4; the counter (10 + 22 + 0) / 4 = 8.
    np.testing.assert_array_equal(model[WEIGHT], np.array([2.75, 5.5], np.float32))
    assert model[WEIGHT].dtype == np.float32
    assert model[COUNT] == 8
    assert model[COUNT].dtype == np.int64
    assert model[COUNT].shape == ()


def test_uniform_weighting_counts_sites_alike_and_rounds_counters() -> None:
    sent = [update("a", arrays(1, 1), 100), update("b", arrays(2, 2), 1)]
    model = fold(start(FedAvg(weighting="uniform")), arrays(0), sent)
    assert model is not None
    np.testing.assert_array_equal(model[WEIGHT], np.array([1.5, 3], np.float32))
    assert model[COUNT] == 2  # 1.5, half to even


def test_the_mean_of_counters_is_an_array_like_any_other() -> None:
    mean = WeightedMean()
    for count in (1, 4):
        mean.add({"count": np.array(count)}, 1)
    (result,) = mean.result().values()
    assert isinstance(result, np.ndarray)
    assert (result.shape, result.dtype, int(result)) == ((), np.int64, 2)


def test_equal_updates_average_to_themselves_to_the_bit() -> None:
    value = np.random.default_rng(0).standard_normal(1000).astype(np.float32)
    mean = WeightedMean()
    for weight in (3, 7, 11):
        mean.add({"w": value}, weight)
    assert mean.result()["w"].tobytes() == value.tobytes()


def test_a_tensor_is_averaged_over_the_sites_that_sent_it_and_else_kept() -> None:
    strategy = start(FedAvg())
    sent = [
        update("a", {WEIGHT: np.full(2, 4, np.float32)}, 1),
        update("b", {WEIGHT: np.full(2, 8, np.float32), NORM: np.ones(2, np.float32)}, 1),
    ]
    model = fold(strategy, arrays(5, 3), sent)
    assert model is not None
    np.testing.assert_array_equal(model[WEIGHT], [6, 6])
    np.testing.assert_array_equal(model[NORM], [1, 1])
    np.testing.assert_array_equal(model[MEAN], [5, 10])
    assert model[COUNT] == 3


def test_fedbn_keeps_normalising_layers_and_sends_the_rest() -> None:
    strategy = start(FedBN())
    assert strategy.kept == {NORM, MEAN, COUNT}
    assert strategy.shared(arrays(1)).keys() == {WEIGHT}
    assert set(strategy.instruction.kept) == {NORM, MEAN, COUNT}


def test_fedbn_is_fedavg_without_normalising_layers() -> None:
    tensors = {WEIGHT: TENSORS[WEIGHT]}
    sent = [
        update(name, {WEIGHT: np.random.default_rng(node).standard_normal(2, np.float32)}, node)
        for name, node in NODES.items()
    ]
    models = [
        fold(start(strategy, tensors), {WEIGHT: np.zeros(2, np.float32)}, sent)
        for strategy in (FedAvg(), FedBN())
    ]
    assert models[0] is not None and models[1] is not None
    assert models[0][WEIGHT].tobytes() == models[1][WEIGHT].tobytes()


def test_what_the_method_keeps_no_strategy_sends() -> None:
    tensors = {**TENSORS, "style/w": TensorInfo("style", "weight", "kept", (1,), "float32")}
    for strategy in (FedAvg(), FedProx(), FedBN()):
        assert "style/w" in start(strategy, tensors).kept


@pytest.mark.parametrize("strategy", [Local(), Pooled()])
def test_local_and_pooled_exchange_no_tensor(strategy: Strategy) -> None:
    start(strategy)
    current = strategy.shared(arrays(1))
    assert current == {}
    sent = strategy.configure_train(1, pack_arrays(current), ConfigRecord(), grid=None)  # type: ignore[arg-type]
    for message in sent:
        record = message.content[protocol.ARRAYS]
        assert isinstance(record, ArrayRecord)
        assert list(record) == []
    model = fold(strategy, current, [update("a", {})])
    assert model == {}
    assert strategy.outcome.rejected == {}


# FedProx.


def tiny_model() -> Model:
    method = {"name": "supervised", "width": 2, "depth": 2, "norm": "batch"}
    return Model(method, {"name": "segmentation", "parts": ["x"]}, torch.device("cpu"), seed=3)


def test_proximal_penalty_is_half_mu_times_the_squared_distance() -> None:
    model = tiny_model()
    kept = frozenset(name for name, info in model.infos().items() if info.role != "weight")
    instruction = Instruction(action=Action.FIT, seed=0, kept=tuple(kept))
    visit = Visit(instruction, cast(Any, None), model, torch.device("cpu"))
    step = Proximal(visit, mu=0.3).step
    assert step is not None
    assert step.penalty(model.nets, {}).item() == 0
    random = np.random.default_rng(0)
    moves = {}
    with torch.no_grad():
        for name, tensor in model.tensors().items():
            move = random.standard_normal(tensor.shape).astype(np.float32)
            if tensor.is_floating_point():
                tensor.add_(torch.from_numpy(np.asarray(move)))
                moves[name] = move
    value = step.penalty(model.nets, {})
    value.backward()
    exchanged = {
        name: move
        for name, move in moves.items()
        if name not in kept and model.tensors()[name].requires_grad
    }
    assert exchanged
    expected = 0.15 * sum(
        float((move.astype(np.float64) ** 2).sum()) for move in exchanged.values()
    )
    assert value.item() == pytest.approx(expected, rel=1e-5)
    for name, tensor in model.tensors().items():
        if name in exchanged:
            assert tensor.grad is not None
            move = np.asarray(exchanged[name], np.float64)
            np.testing.assert_allclose(tensor.grad.numpy(), 0.3 * move, atol=1e-5)
        else:
            assert tensor.grad is None


def test_fedprox_without_mu_asks_for_what_fedavg_asks_for() -> None:
    assert FedProx(mu=0.0).rules() == FedAvg().rules() == {}
    assert FedProx(mu=0.5).rules() == {"proximal": {"mu": 0.5}}


def test_a_rule_that_a_site_does_not_know_is_refused() -> None:
    instruction = Instruction(action=Action.FIT, seed=0, rules={"dual": {}})
    visit = Visit(instruction, cast(Any, None), tiny_model(), torch.device("cpu"))
    with pytest.raises(UserError, match="rule=dual is not known"):
        rules.build(visit)


def test_fedavg_of_single_steps_reaches_the_weighted_minimiser() -> None:
    curvature = sum(EXAMPLES[name] * CURVATURE[name] for name in CENTRE)
    minimiser = sum(EXAMPLES[name] * CURVATURE[name] * CENTRE[name] for name in CENTRE) / curvature
    found = Convex(FedAvg(), steps=1, rate=0.3).run(200)
    np.testing.assert_allclose(found, minimiser, atol=1e-10)


def test_fedprox_follows_its_pseudo_code() -> None:
    mu, rate, steps, rounds = 0.7, 0.1, 5, 6
    expected = np.zeros(2)
    for _ in range(rounds):
        updates: list[np.ndarray] = []
        for name in CENTRE:
            local = expected.copy()
            for _ in range(steps):
                gradient = CURVATURE[name] * (local - CENTRE[name]) + mu * (local - expected)
                local = local - rate * gradient
            updates.append(EXAMPLES[name] * local)
        expected = np.sum(updates, axis=0) / sum(EXAMPLES.values())
    found = Convex(FedProx(mu=mu), steps, rate).run(rounds)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert not np.allclose(found, Convex(FedAvg(), steps, rate).run(rounds), atol=1e-3)


# Streaming.


def test_aggregation_holds_no_reply_but_the_one_in_hand() -> None:
    strategy = start(FedAvg())
    alive: list[weakref.ref[Message]] = []
    most = 0

    def stream() -> Iterator[Message]:
        nonlocal most
        for name in sorted(NODES) * 5:
            message = update(name, arrays(1))
            alive.append(weakref.ref(message))
            yield message
            del message
            most = max(most, sum(ref() is not None for ref in alive))

    assert fold(strategy, arrays(0), stream()) is not None
    assert len(alive) == 15
    assert most <= 1


def test_memory_does_not_grow_with_the_number_of_sites() -> None:
    size = 200_000

    def peak(sites: int) -> int:
        nodes = {f"s{number:03d}": number + 10 for number in range(sites)}
        info = TensorInfo("net", "weight", "averaged", (size,), "float32")
        strategy = start(FedAvg(), {"net/w": info}, nodes)
        zeros = pack_arrays({"net/w": np.zeros(size, np.float32)})
        list(strategy.configure_train(1, zeros, ConfigRecord(), grid=None))  # type: ignore[arg-type]

        def stream() -> Iterator[Message]:
            for name, node in nodes.items():
                sent = pack_arrays({"net/w": np.full(size, node, np.float32)})
                told = {"trained": {"net": 1}}
                yield reply(node, answer(name, arrays=sent, details=told))

        tracemalloc.start()
        strategy.aggregate_train(1, stream())
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(40) < 1.1 * peak(4)


def test_a_list_of_replies_serves_as_well_as_a_stream() -> None:
    """Flower's own loop hands over what ``Grid.send_and_receive`` returned."""
    sent = [update(name, arrays(node), 1) for name, node in NODES.items()]
    from_list = fold(start(FedAvg()), arrays(0), sent)
    from_stream = fold(start(FedAvg()), arrays(0), iter(sent))
    assert from_list is not None and from_stream is not None
    assert from_list[WEIGHT].tobytes() == from_stream[WEIGHT].tobytes()


# The guards.


def with_array(name: str, array: np.ndarray) -> Arrays:
    return {**arrays(50), name: array}


@pytest.mark.parametrize(
    ("sent", "words"),
    [
        (
            with_array(WEIGHT, np.array([np.nan, 0], np.float32)),
            f"{WEIGHT} with numbers that are not finite",
        ),
        (
            with_array(MEAN, np.array([0, -np.inf], np.float32)),
            f"{MEAN} with numbers that are not finite",
        ),
        (with_array(WEIGHT, np.zeros(3, np.float32)), r"shape \(3,\) instead of \(2,\)"),
        (with_array(WEIGHT, np.full(2, 1e300)), "type float64 instead of float32"),
        (with_array("net/extra", np.zeros(2, np.float32)), "net/extra, which does not travel"),
    ],
)
def test_a_faulty_update_is_rejected_and_harms_nothing(sent: Arrays, words: str) -> None:
    strategy = start(FedAvg())
    model = fold(strategy, arrays(0), [update("a", arrays(2)), update("b", sent, 1000)])
    assert model is not None
    np.testing.assert_array_equal(model[WEIGHT], [2, 4])
    assert list(strategy.outcome.rejected) == ["b"]
    assert re.search(words, strategy.outcome.rejected["b"])


@pytest.mark.parametrize("examples", [0, -1, float("nan"), float("inf")])
def test_an_update_without_a_countable_example_is_rejected(examples: float) -> None:
    strategy = start(FedAvg())
    model = fold(strategy, arrays(0), [update("a", arrays(2)), update("b", arrays(9), examples)])
    assert model is not None
    np.testing.assert_array_equal(model[WEIGHT], [2, 4])
    assert "no example" in strategy.outcome.rejected["b"]


def test_a_kept_tensor_that_is_sent_is_rejected() -> None:
    strategy = start(FedBN())
    current = strategy.shared(arrays(1))
    assert fold(strategy, current, [update("a", arrays(2))]) is None
    assert "does not travel" in strategy.outcome.rejected["a"]
    assert "0 usable updates" in (strategy.outcome.skipped or "")


def test_an_array_that_cannot_be_read_is_rejected() -> None:
    strategy = start(FedAvg())
    junk = ArrayRecord({WEIGHT: Array("float32", (2,), "numpy.ndarray", b"no array")})
    broken = reply(NODES["b"], answer("b", arrays=junk, details={"trained": {"net": 1}}))
    model = fold(strategy, arrays(0), [update("a", arrays(2)), broken])
    assert model is not None
    assert "cannot be read" in strategy.outcome.rejected["b"]


def test_published_statistics_that_are_not_finite_never_reach_the_bank() -> None:
    strategy = start(FedAvg())

    def published(name: str, value: float) -> Message:
        content = answer(
            name,
            arrays=pack_arrays(arrays(1)),
            details={"trained": {"net": 1}},
            statistics={"mean": np.array([value])},
        )
        return reply(NODES[name], content)

    fold(strategy, arrays(0), [published("a", 1.0), published("b", np.nan)])
    assert list(strategy.bank) == ["a"]
    assert list(strategy.outcome.rejected) == ["b"]


def test_an_update_that_does_not_say_what_was_trained_is_rejected() -> None:
    strategy = start(FedAvg())
    silent = reply(NODES["b"], answer("b", arrays=pack_arrays(arrays(9))))
    model = fold(strategy, arrays(0), [update("a", arrays(2)), silent])
    assert model is not None
    np.testing.assert_array_equal(model[WEIGHT], [2, 4])
    assert strategy.outcome.rejected["b"] == "sent an update without 'trained'"


def test_a_tensor_of_a_network_that_was_not_trained_is_rejected() -> None:
    strategy = start(FedAvg(), {**TENSORS, "other/w": replace(TENSORS[WEIGHT], network="other")})
    pair = pack_arrays({"other/w": np.ones(2, np.float32)})
    told = reply(NODES["b"], answer("b", arrays=pair, details={"trained": {"net": 1}}))
    fold(strategy, {**arrays(0), "other/w": np.zeros(2, np.float32)}, [told])
    assert "does not say it trained" in strategy.outcome.rejected["b"]


def test_an_idle_site_is_no_fault_and_no_part_of_the_quorum() -> None:
    strategy = start(FedAvg(min_sites=2))
    idle = reply(NODES["b"], answer("b", details={"trained": {}, "domain": ""}))
    assert fold(strategy, arrays(0), [update("a", arrays(2)), idle]) is None
    assert strategy.outcome.rejected == {}
    assert strategy.outcome.skipped == "1 usable updates, 2 needed (strategy.min_sites)"


# Domains: balanced and summed sub-networks.

ADAM = Adam(lr=0.1, beta1=0.5, beta2=0.99, constant_until=2, last_round=4)
SUMMED = {"g/w": TensorInfo("g", "weight", "summed", (2,), "float32", ("s", "t"), ADAM)}
BALANCED = {"g/w": TensorInfo("g", "weight", "balanced", (2,), "float32", ("s", "t"))}


def pair(first: float, second: float) -> Arrays:
    return {"g/w": np.array([first, second], np.float32)}


def test_balanced_networks_count_every_domain_alike() -> None:
    strategy = start(FedAvg(), BALANCED)
    sent = [
        update("a", pair(1, 0), 10, "s"),
        update("b", pair(4, 0), 20, "s"),
        update("c", pair(9, 2), 1000, "t"),
    ]
    model = fold(strategy, pair(0, 0), sent)
    assert model is not None
    # The source's mean is (1 * 10 + 4 * 20) / 30 = 3; with the target's 9: 6.
    np.testing.assert_allclose(model["g/w"], [6, 1])


def test_a_missing_domain_leaves_its_networks_as_they_were_and_says_so() -> None:
    for tensors in (BALANCED, SUMMED):
        strategy = start(FedAvg(), tensors)
        model = fold(strategy, pair(7, 8), [update("a", pair(1, 1), 1, "s")])
        assert model is not None
        np.testing.assert_array_equal(model["g/w"], [7, 8])
        assert strategy.outcome.skipped == "g stays as it was: no update from the domain t"


def test_summed_gradients_follow_torchs_adam() -> None:
    strategy = start(FedAvg(), SUMMED)
    random = np.random.default_rng(0)
    weight = random.standard_normal(2).astype(np.float32)
    parameter = torch.nn.Parameter(torch.from_numpy(weight.copy()))
    adam = torch.optim.Adam([parameter], betas=(0.5, 0.99))
    for number in range(1, 5):
        first, second, third = random.standard_normal((3, 2)).astype(np.float32)
        # The rate is constant for two rounds, then falls to 0 after the fourth.
        adam.param_groups[0]["lr"] = 0.1 * {1: 1, 2: 1, 3: 2 / 3, 4: 1 / 3}[number]
        parameter.grad = torch.from_numpy((first + 3 * second) / 4 + third)
        adam.step()
        sent = [
            update("a", {"g/w": first}, 1, "s"),
            update("b", {"g/w": second}, 3, "s"),
            update("c", {"g/w": third}, 50, "t"),
        ]
        if number == 3:  # As a resumed run would: the state is all there is.
            kept = {name: array.copy() for name, array in strategy.state.items()}
            strategy = start(FedAvg(), SUMMED)
            strategy.state = kept
        model = fold(strategy, {"g/w": weight}, sent, number)
        assert model is not None
        weight = model["g/w"]
        np.testing.assert_allclose(weight, parameter.detach().numpy(), rtol=1e-6, atol=1e-6)


def test_fedbn_keeps_nothing_of_networks_that_only_some_sites_train() -> None:
    for sharing in ("broadcast", "balanced", "summed"):
        tensors = {NORM: TensorInfo("net", "norm", sharing, (2,), "float32")}
        assert start(FedBN(), tensors).kept == frozenset()


def test_what_a_local_site_publishes_reaches_nobody() -> None:
    strategy = start(Local())
    content = answer(
        "a", details={"trained": {"net": 1}}, statistics={"style": np.zeros(3, np.float32)}
    )
    fold(strategy, {}, [reply(NODES["a"], content)])
    assert strategy.bank == {}


def test_sites_may_report_different_metrics() -> None:
    strategy = start(FedAvg())
    sent = [update("a", arrays(1), loss=2.0), update("b", arrays(3), loss=4.0, extra=7.0)]
    list(strategy.configure_train(1, pack_arrays(arrays(0)), ConfigRecord(), grid=None))  # type: ignore[arg-type]
    model, metrics = strategy.aggregate_train(1, sent)
    assert model is not None and metrics is not None
    assert metrics["loss"] == 3.0
    assert metrics["extra"] == 7.0
    assert strategy.outcome.sites["b"] == {protocol.EXAMPLES: 1, "loss": 4.0, "extra": 7.0}


@pytest.mark.parametrize(
    ("metrics", "why"),
    [
        ({"val_dice": 7.0}, "sent val_dice with its update"),
        ({"bytes_up": 1.0}, "sent bytes_up with its update"),
        ({"seconds": -1.0}, "sent seconds of -1"),
        ({f"m{i}": 1.0 for i in range(200)}, "more than 100 metrics"),
        ({protocol.EXAMPLES: 1e300}, "num-examples of 1e+300"),
    ],
)
def test_an_update_tells_no_metric_that_is_not_its_own(metrics: dict[str, float], why: str) -> None:
    """It would stand in the tables where the coordinator's or a validation's belongs."""
    strategy = start(FedAvg())
    list(strategy.configure_train(1, pack_arrays(arrays(0)), ConfigRecord(), grid=None))  # type: ignore[arg-type]
    content = answer(
        "b",
        arrays=pack_arrays(arrays(3)),
        metrics={protocol.EXAMPLES: 1, **metrics},
        details={"trained": {"net": 1}, "domain": ""},
    )
    strategy.aggregate_train(1, [update("a", arrays(1)), reply(NODES["b"], content)])
    assert why in strategy.outcome.rejected["b"]
    assert "b" not in strategy.outcome.sites


def test_a_site_that_fails_is_named_and_left_out() -> None:
    strategy = start(FedAvg())
    model = fold(
        strategy, arrays(0), [update("a", arrays(2)), reply(NODES["c"], Error(102, "no disk"))]
    )
    assert model is not None
    np.testing.assert_array_equal(model[WEIGHT], [2, 4])
    assert strategy.outcome.failed == {"c": "no disk"}


def test_without_a_quorum_the_model_stays() -> None:
    strategy = start(FedAvg(min_sites=2))
    assert fold(strategy, arrays(0), [update("a", arrays(2))]) is None
    assert strategy.outcome.skipped == "1 usable updates, 2 needed (strategy.min_sites)"
    assert fold(strategy, arrays(0), [update("a", arrays(2)), update("b", arrays(4))]) is not None
    assert strategy.outcome.skipped is None


def test_a_quorum_above_the_number_of_sites_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"strategy\.min_sites is 4 .* 3 sites"):
        start(FedAvg(min_sites=4))


# Sampling.


def test_sampling_goes_by_name_and_seed_and_not_by_node() -> None:
    names = [f"s{number}" for number in range(10)]
    other = dict(zip(reversed(names), range(900, 910), strict=True))
    first = start(FedAvg(fraction=0.3), nodes=dict(zip(names, range(10), strict=True)))
    second = start(FedAvg(fraction=0.3), nodes=other)
    third = start(FedAvg(fraction=0.3), nodes=other, seed=1)
    drawn = [first.select(number) for number in range(1, 20)]
    assert drawn == [second.select(number) for number in range(1, 20)]
    assert drawn != [third.select(number) for number in range(1, 20)]
    assert all(len(set(chosen)) == 3 and chosen == sorted(chosen) for chosen in drawn)
    assert set().union(*drawn) == set(names)


def test_a_small_fraction_still_draws_the_quorum() -> None:
    assert len(start(FedAvg(fraction=0.0, min_sites=2)).select(1)) == 2
    assert start(FedAvg(fraction=1.0)).select(1) == ["a", "b", "c"]


# The deadline.


class ClockedGrid:
    """Sites that answer a set number of seconds after they were asked; None: never."""

    def __init__(self, delays: Mapping[int, float | None]) -> None:
        self.delays = delays
        self.sent: dict[str, tuple[Message, float]] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        ids = []
        for message in messages:
            message_id = str(len(self.sent))
            set_message_id(message, message_id)
            self.sent[message_id] = (message, time.time())
            ids.append(message_id)
        return ids

    def pull_messages(self, ids: Iterable[str]) -> list[Message]:
        ready = []
        for message_id in ids:
            message, at = self.sent[message_id]
            delay = self.delays[message.metadata.dst_node_id]
            if delay is not None and time.time() >= at + delay:
                answered = Message(answer("x"), reply_to=message)
                answered.metadata.created_at = at + delay
                ready.append(answered)
        return ready


def ask_all(grid: Any, deadline_s: float | None) -> dict[str, str | None]:
    """The sites in the order of their replies, each with its error."""
    asked = [Message(RecordDict(), dst_node_id=node, message_type="train") for node in (1, 2, 3)]
    names = {1: "a", 2: "b", 3: "c"}
    return {
        names[message.metadata.src_node_id]: message.error.reason if message.has_error() else None
        for message in exchange(grid, asked, deadline_s)
    }


def test_a_late_site_is_named_and_makes_no_other_late() -> None:
    """The first to be waited for is silent; the others answered long before."""
    found = ask_all(ClockedGrid({1: None, 2: 0.0, 3: 0.1}), deadline_s=0.3)
    assert found == {"a": "no reply within 0.3 s (deadline_s)", "b": None, "c": None}


def test_a_reply_made_after_the_deadline_is_late_though_it_is_there() -> None:
    class Blocking(ClockedGrid):
        """Like sites in this process: asking one for its reply runs it."""

        def pull_messages(self, ids: Iterable[str]) -> list[Message]:
            time.sleep(0.3)
            message, _ = self.sent[next(iter(ids))]
            return [Message(answer("x"), reply_to=message)]

    found = ask_all(Blocking({1: 0, 2: 0, 3: 0}), deadline_s=0.2)
    assert [reason is not None for reason in found.values()] == [True, True, True]


def test_without_a_deadline_replies_come_in_name_order_however_late() -> None:
    found = ask_all(ClockedGrid({1: 0.2, 2: 0.0, 3: 0.1}), deadline_s=None)
    assert list(found) == ["a", "b", "c"]
    assert set(found.values()) == {None}


def test_messages_carry_the_deadline_as_their_time_to_live() -> None:
    grid = ClockedGrid({1: 0, 2: 0, 3: 0})
    ask_all(grid, deadline_s=5)
    assert {message.metadata.ttl for message, _ in grid.sent.values()} == {5}


# Settings.


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "fedavgg"}, "did you mean fedavg"),
        ({"name": "fedprox", "muu": 1}, r"strategy\.muu is not a setting; did you mean mu"),
        ({"name": "fedprox", "mu": -1}, r"strategy\.mu must be at least 0"),
        ({"name": "fedavg", "fraction": 1.5}, r"strategy\.fraction must be at most 1"),
        ({"name": "fedavg", "min_sites": 0}, r"strategy\.min_sites must be at least 1"),
        ({"name": "fedavg", "weighting": "size"}, "must be one of examples, uniform"),
    ],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        strategies.build(settings)


def test_every_listed_strategy_can_be_built() -> None:
    for name in {*STRATEGIES.names()} - {"flower"}:  # which is called as Flower's class is
        strategy = strategies.build({"name": name})
        assert strategy.name == name == type(strategy).__module__.rpartition(".")[2]


def test_what_has_priority_is_sent_first_and_answered_in_the_order_asked() -> None:
    class Recording(ClockedGrid):
        def push_messages(self, messages: Iterable[Message]) -> list[str]:
            sent = list(messages)
            self.order = [message.metadata.dst_node_id for message in sent]
            return super().push_messages(sent)

    grid = Recording({1: 0.0, 2: 0.0, 3: 0.0})
    asked = [Message(RecordDict(), dst_node_id=node, message_type="train") for node in (1, 2, 3)]
    replies = exchange(
        grid, asked, None, priority=lambda message: float(message.metadata.dst_node_id == 2)
    )
    assert [reply.metadata.src_node_id for reply in replies] == [1, 2, 3]
    assert grid.order == [2, 1, 3]


def test_the_list_of_strategies_names_each_with_its_cost(command: Callable[..., Any]) -> None:
    lines = {line.split()[0]: line for line in command("strategies").out.splitlines()}
    assert lines.keys() >= set(STRATEGIES.names())
    unpublished = ("flower", "local", "pooled")
    assert all("et al. 2" in lines[n] for n in STRATEGIES.names() if n not in unpublished)
    assert lines["local"].rstrip().endswith("0 + 0")
    assert lines["fedbn"].rstrip().endswith("1 + 1")
    assert "normalising layers" in lines["fedbn"]


def test_explain_says_how_a_strategy_combines(command: Callable[..., Any]) -> None:
    out = command("explain", "strategy=median", "method.width=4", "method.depth=3").out
    assert "median of each number, then sent to every site" in out
    assert "would be the same" not in out


def test_no_site_counts_for_more_than_its_share() -> None:
    strategy = start(FedAvg(max_share=0.5))
    strategy.examples = {"a": 1000, "b": 30, "c": 10}
    sent = [update("a", arrays(8), 1000), update("b", arrays(4), 30), update("c", arrays(0), 10)]
    model = fold(strategy, arrays(1), sent)
    assert model is not None
    # b and c have 40 examples together, so a counts for 40, too.
    np.testing.assert_allclose(model[WEIGHT], [(8 * 40 + 4 * 30) / 80, 2 * (8 * 40 + 4 * 30) / 80])
    assert strategy.outcome.shares == {"a": 0.5, "b": 0.375, "c": 0.125}


def test_of_too_few_sites_for_the_share_all_count_alike() -> None:
    strategy = start(FedAvg(max_share=0.2))
    strategy.examples = {"a": 1000, "b": 30, "c": 10}
    sent = [update("a", arrays(9), 1000), update("b", arrays(3), 30), update("c", arrays(0), 10)]
    model = fold(strategy, arrays(1), sent)
    assert model is not None
    np.testing.assert_allclose(model[WEIGHT], [4, 8])


def test_a_share_of_sites_that_count_alike_is_refused() -> None:
    with pytest.raises(UserError, match="max_share bounds the examples"):
        start(FedAvg(weighting="uniform", max_share=0.5))


def test_a_site_has_no_more_examples_than_its_card_says() -> None:
    strategy = start(FedAvg())
    strategy.examples = {"a": 10, "b": 10, "c": 10}
    model = fold(strategy, arrays(0), [update("a", arrays(2), 10), update("b", arrays(9), 11)])
    assert model is not None
    np.testing.assert_array_equal(model[WEIGHT], [2, 4])
    assert strategy.outcome.rejected == {"b": "trained on 11 examples and has 10"}


def test_what_one_site_publishes_oddly_starves_no_other() -> None:
    strategy = start(FedAvg())

    def published(name: str, **statistics: np.ndarray) -> Message:
        content = answer(
            name,
            arrays=pack_arrays(arrays(1)),
            details={"trained": {"net": 1}},
            statistics=statistics,
        )
        return reply(NODES[name], content)

    sent = [
        published("a", mean=np.zeros(3), other=np.zeros(2)),
        published("b", mean=np.zeros(2)),
        published("c", mean=np.zeros(2)),
    ]
    fold(strategy, arrays(0), sent)
    assert sorted(strategy.bank) == ["b", "c"]
    assert list(strategy.outcome.rejected) == ["a"]
    assert "published other statistics than most sites: other" in strategy.outcome.rejected["a"]


def test_what_is_not_finite_any_more_is_not_kept() -> None:
    class Runaway(FedAvg):
        def step(self, name: str, combined: np.ndarray) -> np.ndarray:
            self.state = {**self.state, name: combined}
            return combined * np.float32(3e38)

    strategy = start(Runaway())
    strategy.state = before = {"held": np.zeros(1)}
    assert fold(strategy, arrays(0), [update("a", arrays(1e3), 1)]) is None
    assert strategy.state == before
    assert strategy.outcome.skipped is not None
    assert "was combined to one with numbers that are not finite" in strategy.outcome.skipped
