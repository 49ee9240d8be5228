"""Flower's own strategies through the adapter: as Flower itself computes, under our guards."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from fedshift import UserError, derive_seed, strategies
from fedshift.protocol.flower import (
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
    flower_strategies,
)
from fedshift.protocol.messages import Arrays, TensorInfo, pack_arrays, unpack_arrays
from fedshift.strategies import flower

Call = Callable[..., Any]

FIXED = "DifferentialPrivacyServerSideFixedClipping"
ADAPTIVE = "DifferentialPrivacyServerSideAdaptiveClipping"


def info(*shape: int, **changes: Any) -> TensorInfo:
    fields = {"network": "net", "role": "weight", "sharing": "averaged", "dtype": "float64"}
    return TensorInfo(shape=shape, **{**fields, **changes})  # type: ignore[arg-type]


TENSORS = {"net/a": info(3, 2), "net/b": info(4)}
SITES = [f"s{number}" for number in range(7)]
EXAMPLES = {site: number + 1 for number, site in enumerate(SITES)}
LOSSES = {site: {"risk_received": 1 / (number + 1)} for number, site in enumerate(SITES)}


def draw(seed: int, tensors: dict[str, TensorInfo] = TENSORS) -> Arrays:
    random = np.random.default_rng(seed)
    return {
        name: np.asarray(random.standard_normal(info.shape)).astype(info.dtype)
        for name, info in tensors.items()
    }


def sent_in(round: int) -> dict[str, Arrays]:
    return {site: draw(100 * round + number) for number, site in enumerate(SITES)}


# The same rounds with Flower's own object, kept from round to round as Flower keeps it.

CASES: dict[str, dict[str, Any]] = {
    "FedAvg": {},
    "FedAvgM": {"server_learning_rate": 0.5, "server_momentum": 0.9},
    "FedAdagrad": {"eta": 0.3, "tau": 0.1},
    "FedAdam": {"eta": 0.3, "beta_1": 0.8, "beta_2": 0.9},
    "FedYogi": {"eta": 0.3, "beta_1": 0.8, "beta_2": 0.9},
    "FedProx": {"proximal_mu": 0.1},
    "QFedAvg": {"client_learning_rate": 0.1, "q": 0.4},
    "FedMedian": {},
    "FedTrimmedAvg": {"beta": 0.3},
    "Krum": {"num_malicious_nodes": 1},
    "MultiKrum": {"num_malicious_nodes": 1, "num_nodes_to_select": 3},
    "Bulyan": {"num_malicious_nodes": 1},
    FIXED: {"noise_multiplier": 0.3, "clipping_norm": 1.5},
    ADAPTIVE: {"noise_multiplier": 0.3, "initial_clipping_norm": 2.0, "clip_norm_lr": 0.5},
}


def adapter(name: str, **settings: Any) -> flower.Flower:
    weighting = {"weighting": "uniform"} if name in (FIXED, ADAPTIVE) else {}
    built = strategies.build({"name": name, **weighting, **settings})
    assert isinstance(built, flower.Flower)
    return built


def original(name: str, settings: dict[str, Any]) -> Any:
    """Flower's object, which samples nobody."""
    if name in (FIXED, ADAPTIVE):
        inner = flower_strategies.FedAvg(fraction_train=0.0)
        kind = getattr(flower_strategies, name)
        return kind(strategy=inner, num_sampled_clients=len(SITES), **settings)
    if name == "QFedAvg":
        settings = {**settings, "train_loss_key": "risk_received"}
    return getattr(flower_strategies, name)(fraction_train=0.0, **settings)


def round_of(own: Any, number: int, current: Arrays, uniform: bool) -> Arrays:
    """One round of Flower's object."""
    replies = []
    for site, arrays in sent_in(number).items():
        weight = 1.0 if uniform else float(EXAMPLES[site])
        metrics = MetricRecord({"num-examples": weight, **LOSSES[site]})
        asked = Message(RecordDict(), dst_node_id=1, message_type="train")
        content = RecordDict({"arrays": pack_arrays(arrays), "metrics": metrics})
        replies.append(Message(content, reply_to=asked))
    own.configure_train(number, pack_arrays(current), ConfigRecord(), None)
    model, _ = own.aggregate_train(number, replies)
    return unpack_arrays(model)


@pytest.mark.parametrize("name", CASES)
def test_each_is_flowers_own_aggregation_to_the_bit(begin: Call, fold: Call, name: str) -> None:
    """Over three rounds, so that what Flower's object keeps in memory is part of it."""
    strategy = begin(adapter(name, **CASES[name]), SITES, TENSORS)
    own = original(name, CASES[name])
    ours = theirs = draw(0)
    held = np.random.get_state()  # noqa: NPY002
    for number in (1, 2, 3):
        ours = fold(
            strategy, ours, sent_in(number), examples=EXAMPLES, metrics=LOSSES, number=number
        )
        seed = derive_seed(0, number, "net", "Flower's noise")
        np.random.set_state(np.random.MT19937(seed).state)  # noqa: NPY002
        theirs = round_of(own, number, theirs, uniform=name in (FIXED, ADAPTIVE))
        assert strategy.outcome.skipped is None
        for tensor in TENSORS:
            np.testing.assert_array_equal(ours[tensor], theirs[tensor])
    np.random.set_state(held)  # noqa: NPY002


def test_every_class_of_flower_is_run_or_refused() -> None:
    known = {*flower.NAMES, *flower._REFUSED, "Result", "Strategy"}
    assert known == set(flower_strategies.__all__)
    assert set(CASES) == set(flower.NAMES)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"name": "FedAvg"}, {"name": "fedavg"}),
        (
            {"name": "FedAvgM", "server_learning_rate": 0.5, "server_momentum": 0.9},
            {"name": "fedavgm", "lr": 0.5, "momentum": 0.9},
        ),
        ({"name": "FedMedian"}, {"name": "median"}),
        ({"name": "FedTrimmedAvg", "beta": 0.3}, {"name": "trimmed_mean", "byzantine": 2}),
        ({"name": "Krum", "num_malicious_nodes": 2}, {"name": "krum", "byzantine": 2}),
        (
            {
                "name": "MultiKrum",
                "num_malicious_nodes": 1,
                "num_nodes_to_select": 4,
                "weighting": "uniform",
            },
            {"name": "multi_krum", "byzantine": 1, "chosen": 4},
        ),
        (
            {
                "name": FIXED,
                "noise_multiplier": 0,
                "clipping_norm": 1.5,
                "weighting": "uniform",
            },
            {"name": "norm_clipping", "bound": 1.5, "weighting": "uniform"},
        ),
    ],
    ids=lambda settings: settings["name"],
)
def test_the_same_rule_of_ours_gives_the_same_model(
    begin: Call, fold: Call, theirs: dict[str, Any], ours: dict[str, Any]
) -> None:
    found = []
    for settings in (theirs, ours):
        strategy = begin(strategies.build(settings), SITES, TENSORS)
        model = draw(0)
        for number in (1, 2):
            model = fold(strategy, model, sent_in(number), examples=EXAMPLES, number=number)
        found.append(model)
    for tensor in TENSORS:
        np.testing.assert_allclose(found[0][tensor], found[1][tensor], rtol=1e-12, atol=1e-14)


def test_fedprox_asks_the_sites_for_its_term() -> None:
    assert adapter("FedProx", proximal_mu=0.3).rules() == {"proximal": {"mu": 0.3}}
    assert adapter("FedProx").rules() == adapter("FedAvg").rules() == {}
    wrapper = adapter(
        FIXED, wrapped="FedProx", proximal_mu=0.3, noise_multiplier=1, clipping_norm=1
    )
    assert wrapper.rules() == {"proximal": {"mu": 0.3}}


def test_qfedavg_by_hand(begin: Call, fold: Call) -> None:
    # L = 2, q = 1. a: loss 3, gradient 2 (0 - 1) = -2: delta -6, h = 4 + 2 * 3 = 10.
    # b: loss 1, gradient 2 (0 - 4) = -8: delta -8, h = 64 + 2 = 66. w = 0 + 14 / 76.
    tensors = {"net/w": info(1)}
    strategy = begin(adapter("QFedAvg", client_learning_rate=0.5, q=1), "ab", tensors)
    sent = {"a": {"net/w": np.array([1.0])}, "b": {"net/w": np.array([4.0])}}
    told = {"a": {"risk_received": 3.0}, "b": {"risk_received": 1.0}}
    found = fold(strategy, {"net/w": np.zeros(1)}, sent, metrics=told)
    np.testing.assert_allclose(found["net/w"], [14 / 76], rtol=1e-8)


def test_qfedavg_asks_for_the_loss_it_weights_by() -> None:
    assert adapter("QFedAvg", client_learning_rate=0.1).rules() == {"risk": {}}
    other = adapter("QFedAvg", client_learning_rate=0.1, train_loss_key="loss")
    assert (other.rules(), other.loss_key) == ({}, "loss")


# Under our guards.


def test_a_site_that_sends_nan_is_rejected(begin: Call, fold: Call) -> None:
    sent = sent_in(1)
    sent["s2"]["net/b"][1] = math.nan
    strategy = begin(adapter("FedMedian"), SITES, TENSORS)
    found = fold(strategy, draw(0), sent)
    assert strategy.outcome.rejected == {"s2": "sent net/b with numbers that are not finite"}
    del sent["s2"]
    expected = np.median([arrays["net/b"] for arrays in sent.values()], axis=0)
    np.testing.assert_allclose(found["net/b"], expected, rtol=1e-14)


def test_types_stay_and_running_statistics_are_averaged(begin: Call, fold: Call) -> None:
    tensors = {
        "net/w": info(3, dtype="float32"),
        "net/mean": info(2, dtype="float32", role="norm_buffer"),
        "net/count": info(dtype="int64", role="norm_buffer"),
    }
    sent = {site: draw(number, tensors) for number, site in enumerate(SITES)}
    for number, site in enumerate(SITES):
        sent[site]["net/count"] = np.array(10 * number)
    for settings in ({"name": "Krum", "num_malicious_nodes": 1}, {"name": "FedAdam"}):
        strategy = begin(strategies.build(settings), SITES, tensors)
        found = fold(strategy, draw(99, tensors), sent)
        assert {name: array.dtype.name for name, array in found.items()} == {
            name: info.dtype for name, info in tensors.items()
        }
        mean = np.mean([arrays["net/mean"] for arrays in sent.values()], axis=0)
        np.testing.assert_allclose(found["net/mean"], mean, rtol=1e-6)
        assert found["net/count"] == 30


def test_each_sub_network_is_combined_over_the_sites_that_trained_it(
    begin: Call, fold: Call
) -> None:
    tensors = {
        "one/w": info(1, network="one"),
        "two/w": info(1, network="two"),
        "two/mean": info(1, network="two", role="norm_buffer"),
        "sum/w": info(1, network="sum", sharing="balanced", domains=("",)),
    }
    current = {name: np.zeros(1) for name in tensors}
    sent = {
        f"s{k}": {"one/w": np.array([float(k)]), "sum/w": np.array([float(k)])} for k in range(5)
    }
    for k in (0, 4):
        sent[f"s{k}"] |= {"two/w": np.array([7.0]), "two/mean": np.array([7.0])}
    strategy = begin(adapter("Krum", num_malicious_nodes=1), list(sent), tensors)
    found = fold(strategy, current, sent)
    # Krum's scores of 0, 1, 2, 3, 4 are 5, 2, 2, 2, 5.
    np.testing.assert_array_equal(found["one/w"], [1])
    np.testing.assert_array_equal(found["sum/w"], [2])
    np.testing.assert_array_equal(found["two/w"], [0])
    np.testing.assert_array_equal(found["two/mean"], [0])
    words = "two stays as it was: 2 updates, 5 needed by Flower's Krum"
    assert strategy.outcome.skipped == words


def test_tensors_may_come_in_any_order_and_parts_are_rejected(begin: Call, fold: Call) -> None:
    tensors = {name: info(2) for name in ("net/a", "net/b")}
    sent = {s: draw(number, tensors) for number, s in enumerate("abc")}
    strategy = begin(adapter("FedAvgM", server_momentum=0.5), "abc", tensors)
    expected = fold(strategy, draw(9, tensors), sent)
    turned = {s: dict(reversed(arrays.items())) for s, arrays in sent.items()}
    strategy = begin(adapter("FedAvgM", server_momentum=0.5), "abc", tensors)
    found = fold(strategy, draw(9, tensors), turned)
    for name in tensors:
        np.testing.assert_array_equal(found[name], expected[name])
    del sent["b"]["net/a"]
    fold(strategy, draw(9, tensors), sent)
    assert strategy.outcome.rejected == {"b": "sent net without its tensor net/a"}


def test_numbers_of_no_dimension_are_clipped_with_the_rest(begin: Call, fold: Call) -> None:
    tensors = {"net/scale": info(), "net/w": info(1)}
    wrapper = adapter(FIXED, noise_multiplier=0, clipping_norm=1)
    current = {"net/scale": np.array(0.0), "net/w": np.zeros(1)}
    sent = {site: {"net/scale": np.array(30.0), "net/w": np.array([40.0])} for site in "ab"}
    found = fold(begin(wrapper, "ab", tensors), current, sent)
    assert found["net/scale"].shape == ()
    np.testing.assert_allclose([found["net/scale"], found["net/w"][0]], [0.6, 0.8])


def test_a_model_that_overflows_stays_as_it_was_with_its_state(
    begin: Call, fold: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedshift.protocol.answers.LARGEST_WEIGHT", 1e300)
    tensors = {"net/w": info(1)}
    strategy = begin(adapter("FedAdam"), "a", tensors)
    first = fold(strategy, {"net/w": np.zeros(1)}, {"a": {"net/w": np.array([1.0])}})
    state = {name: array.copy() for name, array in strategy.state.items()}
    found = fold(strategy, first, {"a": {"net/w": np.array([1e200])}}, number=2)
    assert "FedAdam made it, or what it remembers, non-finite" in strategy.outcome.skipped
    np.testing.assert_array_equal(found["net/w"], first["net/w"])
    assert strategy.state == state


def test_a_site_without_a_loss_is_rejected_by_qfedavg(begin: Call, fold: Call) -> None:
    strategy = begin(adapter("QFedAvg", client_learning_rate=0.1), SITES, TENSORS)
    told = {**LOSSES, "s1": {"risk_received": math.nan}, "s4": {}}
    assert fold(strategy, draw(0), sent_in(1), metrics=told) is not None
    assert set(strategy.outcome.rejected) == {"s1", "s4"}
    assert "reports no risk_received of at least 0" in strategy.outcome.rejected["s1"]


# Noise.


def test_noise_is_of_the_stated_size_and_follows_from_the_seed(begin: Call, fold: Call) -> None:
    tensors = {"net/w": info(10_000)}
    current = {"net/w": np.zeros(10_000)}
    direction = np.full(10_000, 0.01)  # of length 1
    sent = {site: {"net/w": direction} for site in "abcd"}

    def noise(number: int, seed: int = 0) -> np.ndarray:
        strategy = begin(adapter(FIXED, noise_multiplier=2, clipping_norm=0.5), "abcd", tensors)
        strategy.instruction = strategy.instruction.but(seed=seed)
        found = fold(strategy, current, sent, number=number)["net/w"]
        return np.asarray(found - 0.5 * direction)

    np.random.seed(3)  # noqa: NPY002
    expected = np.random.random(2)  # noqa: NPY002
    np.random.seed(3)  # noqa: NPY002
    first = noise(1)
    np.testing.assert_array_equal(np.random.random(2), expected)  # noqa: NPY002
    # 2 * 0.5 / 4; the standard error of a standard deviation of 10,000 draws is 0.7 %.
    assert first.std() == pytest.approx(0.25, rel=0.03)
    assert abs(first.mean()) < 4 * 0.25 / 100
    np.testing.assert_array_equal(noise(1), first)
    assert not np.array_equal(noise(2), first)
    assert not np.array_equal(noise(1, seed=1), first)


def test_noise_is_for_the_updates_that_arrived(begin: Call, fold: Call) -> None:
    tensors = {"net/w": info(10_000)}
    strategy = begin(adapter(FIXED, noise_multiplier=2, clipping_norm=0.5), "abcd", tensors)
    direction = np.full(10_000, 0.005)
    sent = {site: {"net/w": direction} for site in "ab"}
    found = fold(strategy, {"net/w": np.zeros(10_000)}, sent)["net/w"]
    assert (found - direction).std() == pytest.approx(0.5, rel=0.03)


def test_a_site_that_did_not_move_is_rejected_where_changes_are_clipped(
    begin: Call, fold: Call
) -> None:
    sent = {**sent_in(1), "s3": draw(0)}
    strategy = begin(adapter(FIXED, **CASES[FIXED]), SITES, TENSORS)
    assert fold(strategy, draw(0), sent) is not None
    assert list(strategy.outcome.rejected) == ["s3"]
    assert "cannot clip a change of length 0" in strategy.outcome.rejected["s3"]


def test_what_flower_refuses_in_a_round_leaves_the_model(begin: Call, fold: Call) -> None:
    # With clipped_count_stddev = n / 20 Flower takes multipliers below n / 10: 0.3 is too much
    # when three of seven sites answer.
    strategy = begin(adapter(ADAPTIVE, noise_multiplier=0.3), SITES, TENSORS)
    few = {site: arrays for site, arrays in sent_in(1).items() if site in SITES[:3]}
    found = fold(strategy, draw(0), few)
    assert "net stays as it was: If not specified" in strategy.outcome.skipped
    np.testing.assert_array_equal(found["net/a"], draw(0)["net/a"])


# Settings.


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"name": "FedAvgg"}, r"strategy.name=FedAvgg is no strategy of Flower; did you mean"),
        ({"name": "FedXgbBagging"}, "it combines trees"),
        ({"name": "DifferentialPrivacyClientSideFixedClipping"}, "client mods"),
        ({"name": "Krum", "num_malicious_node": 1}, "did you mean num_malicious_nodes"),
        ({"name": "FedAvg", "beta": 0.1}, "strategy.beta is not a setting of Flower's FedAvg"),
        ({"name": "FedAvg", "fraction_train": 0.5}, "set strategy.fraction and strategy.min_sites"),
        ({"name": "FedAdam", "eta_l": 0.1}, "the sites' learning rate"),
        ({"name": "Bulyan", "selection_rule": "x"}, "no number or text"),
        ({"name": "QFedAvg"}, "QFedAvg has no default for strategy.client_learning_rate"),
        ({"name": "FedAdam", "eta": -1}, r"strategy.eta must be at least 0"),
        ({"name": "FedAdam", "eta": "fast"}, r"strategy.eta must be of type float"),
        ({"name": "Krum", "fraction": 2}, r"strategy.fraction must be at most 1"),
        ({"name": "Krum", "wrapped": "FedAvg"}, "strategy.wrapped is not a setting"),
        ({"name": FIXED, "wrapped": "FedAdam"}, "choose from FedAvg, FedProx"),
        ({"name": FIXED}, "set strategy.weighting=uniform"),
        (
            {"name": FIXED, "weighting": "uniform", "clipping_norm": 1},
            "no default for strategy.noise_multiplier",
        ),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words):
        strategies.build(settings)


@pytest.mark.parametrize(
    ("strategy", "words"),
    [
        (
            {"name": "Krum", "num_malicious_nodes": 3},
            "Krum needs 9 sites in a round with strategy.num_malicious_nodes=3, and 7 train",
        ),
        ({"name": "Bulyan", "num_malicious_nodes": 2}, "needs 11 sites"),
        ({"name": "FedTrimmedAvg", "beta": 0.5}, "refuses its settings: `beta` must be"),
        ({"name": FIXED, "noise_multiplier": 1, "clipping_norm": 0}, "should be a positive"),
    ],
)
def test_what_cannot_run_is_refused_before_training(
    begin: Call, strategy: dict[str, Any], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        begin(adapter(**strategy), SITES, TENSORS)


def test_the_config_lists_every_setting_at_flowers_default() -> None:
    path = Path(flower.__file__).parent.parent / "configs" / "strategy" / "flower.yaml"
    listed = yaml.safe_load(path.read_text())
    settable = {key for name in flower.NAMES for key in flower._settable(name)}
    assert set(listed) == {"name", "wrapped", *flower._COMMON, *settable}
    assert strategies.build(listed) is not None
    assert {key for key in settable if listed[key] is not None} == set()


# Runs.


def test_explain_and_the_list_show_it(command: Call) -> None:
    out = command("explain", "strategy=flower", "strategy.name=FedMedian", "method.width=4").out
    assert "FedMedian with supervised" in out
    assert "combined by Flower's strategy of this name, then sent to every site" in out
    assert "would be the same" not in out
    (line,) = [x for x in command("strategies").out.splitlines() if x.startswith("flower ")]
    assert "Flower's own" in line


def test_a_run_is_quiet(
    simulate_undrawn: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    simulate_undrawn(tmp_path, "strategy=flower", "strategy.name=FedAdam", "rounds=1")
    assert logging.getLogger("flwr").level != logging.ERROR
    assert "configure_train" not in capfd.readouterr().err


def test_a_run_of_qfedavg_measures_the_loss(
    simulate_undrawn: Callable[..., Path], tmp_path: Path
) -> None:
    options = ("strategy=flower", "strategy.name=QFedAvg", "strategy.client_learning_rate=0.01")
    run = simulate_undrawn(tmp_path / "run", *options, "baselines=[]", "rounds=1")
    line = json.loads((run / "rounds.jsonl").read_text())
    assert (line["rejected"], line["skipped"]) == ({}, None)
    assert all(site["risk_received"] > 0 for site in line["sites"].values())


def test_krum_runs_from_the_command_line(
    command: Call, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    options = (*tiny, "strategy=flower", "strategy.name=Krum", "baselines=[]", "rounds=1")
    assert command("simulate", *options, f"out={tmp_path / 'run'}").code == 0
    assert (tmp_path / "run" / "report.html").exists()
    more = ("strategy.num_malicious_nodes=1", f"out={tmp_path / 'other'}")
    refused = command("simulate", *options, *more)
    assert refused.code == 2
    assert "Flower's Krum needs 5 sites in a round" in refused.err
