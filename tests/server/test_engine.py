"""The inline engine: the same bits for any number of workers, and what a dead one costs."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from kit.scripted import scripted_sites

from fedshift import UserError
from fedshift.client.model import Model, initial_arrays
from fedshift.client.policy import Policy
from fedshift.client.simulation import LocalSites
from fedshift.protocol.cards import SiteCard
from fedshift.protocol.flower import ArrayRecord, Message
from fedshift.protocol.messages import (
    Action,
    Arrays,
    Instruction,
    pack_arrays,
    request,
    unpack_arrays,
)
from fedshift.runs.config import load
from fedshift.server.app import _tell_notes
from fedshift.server.engines.devices import CONTEXT_BYTES, place, useful_workers
from fedshift.server.engines.inline import InlineGrid
from fedshift.server.exchange import exchange
from fedshift.server.federation import Sites, find
from fedshift.server.progress import Silent
from fedshift.sites import DataSettings, load_federation
from fedshift.strategies.fedavg import FedAvg

RESULTS = ("cases.csv", "cross_site.csv", "shift.csv", "egress.jsonl", "rounds.jsonl")
METHOD = {"name": "supervised", "width": 4, "depth": 3}


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers_gives_the_same_bits(
    reference: Path,
    simulate: Callable[..., Path],
    contents: Callable[..., dict[str, Any]],
    tmp_path: Path,
    workers: int,
) -> None:
    expected = contents(reference)
    found = contents(simulate(tmp_path / "run", f"engine.workers={workers}"))
    assert found.keys() == expected.keys()
    assert set(RESULTS) < found.keys()
    assert "checkpoints/round_0002.safetensors" in found
    for name in expected:
        if not name.endswith(".png"):
            assert found[name] == expected[name], name


# Workers that misbehave, without training.


def ask(grid: InlineGrid, number: int, nodes: dict[str, int]) -> list[Message]:
    content = request(Instruction(action=Action.NAME, seed=0, round=number))
    return [
        Message(content, dst_node_id=node, message_type="query")
        for _, node in sorted(nodes.items())
    ]


def test_a_worker_that_dies_costs_only_its_site(pool: Callable[..., InlineGrid]) -> None:
    grid = pool("a", "b", "dies", "e", "f")
    nodes, _ = find(grid, Instruction(action=Action.NAME, seed=0))
    assert list(nodes) == ["a", "b", "dies", "e", "f"]
    names = {node: name for name, node in nodes.items()}
    for number in (1, 2):
        replies = {
            names[reply.metadata.src_node_id]: reply
            for reply in grid.send_and_receive(ask(grid, number, nodes))
        }
        failed = {name for name, reply in replies.items() if reply.has_error()}
        assert replies.keys() == nodes.keys()
        assert failed == ({"dies"} if number == 1 else set())
        if number == 1:
            assert replies["dies"].error.reason == "the worker process ended with code 7"


def test_behind_several_workers_a_hostile_site_is_itself_and_costs_no_other(
    pool: Callable[..., InlineGrid],
) -> None:
    grid = pool("a", "b", "poses", "raises")
    nodes, _ = find(grid, Instruction(action=Action.NAME, seed=0))
    assert list(nodes) == ["a", "b", "poses", "raises"]
    names = {node: name for name, node in nodes.items()}
    for number in (1, 2):
        replies = list(exchange(grid, ask(grid, number, nodes), None))
        assert [names[reply.metadata.src_node_id] for reply in replies] == sorted(nodes)
        failed = [reply.error.reason for reply in replies if reply.has_error()]
        assert failed == (["the worker process ended with code 1"] if number == 1 else [])


def test_a_worker_killed_while_idle_costs_nothing(pool: Callable[..., InlineGrid]) -> None:
    grid = pool("a", "b", "c")
    nodes, _ = find(grid, Instruction(action=Action.NAME, seed=0))
    assert grid._pool is not None
    for slot in grid._pool._slots:
        assert slot.process.pid is not None
        os.kill(slot.process.pid, signal.SIGKILL)
        slot.process.join()
    replies = list(grid.send_and_receive(ask(grid, 2, nodes)))
    assert [reply.has_error() for reply in replies] == [False] * 3


def test_at_most_two_replies_a_worker_wait_in_memory(
    pool: Callable[..., InlineGrid], tmp_path: Path
) -> None:
    """While one worker is busy for long the other does not run through the whole federation."""
    grid = pool("hangs", *(f"s{number:02d}" for number in range(20)))
    nodes = dict(zip(grid.sites.names, grid.get_node_ids(), strict=True))
    first, *others = grid.push_messages(ask(grid, 1, nodes))
    done = tmp_path / "sites" / "order.txt"
    while not list(grid.pull_messages([first])):
        pass
    ahead = [line for line in done.read_text().splitlines() if not line.startswith("hangs")]
    assert 0 < len(ahead) <= 2 * 2 + 1  # two replies a worker, and one in the making
    for message_id in others:
        while not list(grid.pull_messages([message_id])):
            pass
    assert len(done.read_text().splitlines()) == 21


def test_a_site_takes_its_messages_one_by_one_in_the_order_they_were_sent(
    pool: Callable[..., InlineGrid], tmp_path: Path
) -> None:
    """Though another worker is idle: a site notes in its ledger what leaves it."""
    grid = pool("hangs")
    nodes = dict(zip(grid.sites.names, grid.get_node_ids(), strict=True))
    _, second = grid.push_messages([*ask(grid, 1, nodes), *ask(grid, 2, nodes)])
    start = time.monotonic()
    while not list(grid.pull_messages([second])):
        pass
    assert time.monotonic() - start > 1  # as long as the first one hangs
    assert len((tmp_path / "sites" / "order.txt").read_text().splitlines()) == 2


def test_replies_can_be_taken_in_any_order(pool: Callable[..., InlineGrid]) -> None:
    """The bound on waiting replies never keeps back the message whose reply is asked for."""
    grid = pool(*(f"s{number:02d}" for number in range(20)))
    nodes = dict(zip(grid.sites.names, grid.get_node_ids(), strict=True))
    ids = list(grid.push_messages(ask(grid, 1, nodes)))
    end = time.monotonic() + 20
    for message_id in reversed(ids):
        while not list(grid.pull_messages([message_id])):
            assert time.monotonic() < end, "the pool stalled"


def test_replies_that_nobody_waits_for_any_more_do_not_pile_up(
    pool: Callable[..., InlineGrid],
) -> None:
    """A coordinator that gives up, time after time, before it takes what is ready."""
    grid = pool("a", "hangs", "z")
    nodes, _ = find(grid, Instruction(action=Action.NAME, seed=0))
    for _ in range(4):
        messages = ask(grid, 1, nodes)
        for message in messages:
            message.metadata.ttl = 0.3
        _, hanging, _ = grid.push_messages(messages)
        end = time.monotonic() + 0.35
        while time.monotonic() < end:
            list(grid.pull_messages([hanging]))
    replies = list(grid.send_and_receive(ask(grid, 2, nodes), timeout=6))
    assert [reply.has_error() for reply in replies] == [False] * 3


def test_in_process_a_message_past_its_deadline_is_not_run(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    grid = InlineGrid(scripted_sites(tiny, tmp_path / "sites", "a"), ["cpu"], 1)
    (message,) = ask(grid, 1, {"a": 2})
    message.metadata.ttl = 0.01
    (message_id,) = grid.push_messages([message])
    time.sleep(0.05)
    (reply,) = grid.pull_messages([message_id])
    assert reply.error.reason == "no reply within its time to live (0.01 s)"
    assert not (tmp_path / "sites" / "order.txt").exists()


def test_send_and_receive_gives_up_after_its_timeout(pool: Callable[..., InlineGrid]) -> None:
    grid = pool("a", "hangs")
    nodes, _ = find(grid, Instruction(action=Action.NAME, seed=0))
    begin = time.monotonic()
    replies = list(grid.send_and_receive(ask(grid, 1, nodes), timeout=0.1))
    assert time.monotonic() - begin < 5
    assert [reply.metadata.src_node_id for reply in replies] == [nodes["a"]]


# Flower's own round loop and strategies on the grid.


@pytest.fixture
def three_sites(tiny: tuple[str, ...], tmp_path: Path) -> LocalSites:
    config = load([*tiny, "federation.unseen=[]"])
    data = DataSettings.from_config(config["data"])
    federation = load_federation(config["federation"], data, 0)
    sites = tuple(site for site in federation.sites if site.name != "vendor_d")
    return LocalSites(replace(federation, sites=sites), data, Policy(), tmp_path / "sites", seed=0)


def fit_instruction(sites: LocalSites) -> Instruction:
    task = {"name": "segmentation", "parts": list(sites.federation.parts)}
    return Instruction(action=Action.FIT, seed=0, round=1, method=METHOD, task=task, steps=2)


def mean_by_hand(sites: LocalSites, start: Arrays) -> Arrays:
    """What one round of FedAvg gives, from the sites' answers and numpy alone."""
    sent: list[Arrays] = []
    weights: list[Any] = []
    for name in sites.names:
        content = request(fit_instruction(sites), pack_arrays(start))
        reply = sites.worker(name, torch.device("cpu")).handle(
            Message(content, dst_node_id=2, message_type="train")
        )
        record = reply.content["arrays"]
        assert isinstance(record, ArrayRecord)
        sent.append(unpack_arrays(record))
        weights.append(reply.content["metrics"]["num-examples"])
    return {
        name: np.average([arrays[name] for arrays in sent], axis=0, weights=weights)
        for name in start
    }


def test_our_strategy_runs_in_flowers_own_loop(three_sites: LocalSites) -> None:
    asked = fit_instruction(three_sites)
    start = initial_arrays(asked.method, asked.task, 0)
    expected = mean_by_hand(three_sites, start)
    infos = Model(asked.method, asked.task, torch.device("cpu"), 0).infos()
    strategy = FedAvg()
    with InlineGrid(three_sites, ["cpu"], 1) as grid:
        nodes, _ = find(grid, asked)
        strategy.begin(nodes, infos, asked)
        result = strategy.start(grid, pack_arrays(start), num_rounds=1)
    found = unpack_arrays(result.arrays)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-6, atol=1e-8)
    assert strategy.outcome.sites.keys() == set(three_sites.names)


def test_flowers_own_fedavg_runs_on_the_grid(three_sites: LocalSites) -> None:
    asked = fit_instruction(three_sites)
    start = initial_arrays(asked.method, asked.task, 0)
    expected = mean_by_hand(three_sites, start)
    with InlineGrid(three_sites, ["cpu"], 1) as grid:
        result = FlowerFedAvg().start(
            grid,
            pack_arrays(start),
            num_rounds=1,
            train_config=asked.to_record(),
            evaluate_config=asked.but(action=Action.VALIDATE).to_record(),
        )
    found = unpack_arrays(result.arrays)
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-6)
    dice = result.evaluate_metrics_clientapp[1]["val_dice"]
    assert isinstance(dice, float)
    assert 0 <= dice <= 1


# Which device each worker gets.


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


def test_workers_fill_the_gpus_as_their_memory_allows(two_gpus: None) -> None:
    free = {"cuda:0": 5 * 2**30, "cuda:1": 3 * 2**30}
    need = 2**30 - CONTEXT_BYTES  # with its context, one GiB a worker
    slots = place("auto", None, 20, 1, lambda _: need, free.__getitem__)
    assert slots == ["cuda:0", "cuda:1"] * 3 + ["cuda:0"] * 2
    assert place("cuda:1", None, 20, 1, lambda _: need, free.__getitem__) == ["cuda:1"] * 3
    assert place("auto", 3, 20, 1, lambda _: need, free.__getitem__) == [
        "cuda:0",
        "cuda:1",
        "cuda:0",
    ]
    assert place("auto", None, 2, 1, lambda _: need, free.__getitem__) == ["cuda:0", "cuda:1"]


def test_a_gpu_that_is_too_full_still_gets_one_worker(two_gpus: None) -> None:
    assert place("cuda:0", None, 9, 1, lambda _: 2**40, lambda _: 2**30) == ["cuda:0"]


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"engine\.devices holds 'cuda:3'.* cpu, cuda:0"):
        place("cuda:0, cuda:3", None, 4, 1, lambda _: 0)


def test_without_a_gpu_workers_follow_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert place("auto", None, 100, 2, lambda _: 0) == ["cpu"] * 4
    assert place("cpu", None, 3, 2, lambda _: 0) == ["cpu"] * 3
    assert useful_workers(None, 100, 16) == 1
    assert useful_workers(5, 100, 16) == 5


def test_what_sites_note_is_told_before_training_the_rarest_first() -> None:
    def card(name: str, *notes: str) -> SiteCard:
        return SiteCard(name, "train", (), (), (), {}, True, {}, (), (8, 8), notes)

    cards = [card("a", "one subject"), card("b", "one subject", "the grid cuts off labels")]
    cards += [card(f"c{number}", "one subject", f"odd {number}") for number in range(9)]
    told: list[str] = []
    watcher = Silent()
    watcher.say = told.append  # type: ignore[method-assign]
    _tell_notes(Sites(None, {}, {each.name: each for each in cards}), watcher)  # type: ignore[arg-type]
    assert told[0] == "b: the grid cuts off labels"
    assert told[-1] == "and 3 more notes of sites, all in the report"
    assert len(told) == 9
    _tell_notes(Sites(None, {}, {each.name: each for each in cards[:2]}), watcher)  # type: ignore[arg-type]
    assert told[-1] == "a, b: one subject"
