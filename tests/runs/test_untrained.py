"""A run that trained nothing, or could score nothing, is an error and not a result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

import fedshift
from fedshift import UserError, strategies
from fedshift.client.contract.method import FitReport
from fedshift.client.methods import METHODS
from fedshift.client.methods.supervised import Supervised
from fedshift.protocol.flower import ArrayRecord, Error, Message, RecordDict
from fedshift.protocol.messages import (
    ERROR_CLOSED,
    ERROR_FAILED,
    ERROR_REFUSED,
    Action,
    Instruction,
)
from fedshift.runs.evaluate import evaluate
from fedshift.server.record import untrained
from fedshift.server.training import Arm

FINAL = ("cases.csv", "cross_site.csv", "report.html")


@dataclass(frozen=True)
class Moody(Supervised):
    """Works but for the parts that are ``broken`` at the sites named."""

    broken: ClassVar[str] = ""
    sites: ClassVar[tuple[str, ...]] = ("vendor_a", "vendor_b", "vendor_c")

    def fit(self, site: Any, *given: Any) -> FitReport:
        if self.broken == "fit" and site.name in self.sites:
            raise UserError("it does not want to")
        report = super().fit(site, *given)
        return FitReport() if self.broken == "report" else report

    def predict(self, *given: Any) -> Any:
        if self.broken == "predict":
            raise UserError("it sees nothing")
        return super().predict(*given)


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    fedshift.register(Moody)
    yield
    METHODS.registered.clear()


OPTIONS = ("method=moody", "method.width=4", "method.depth=3", "rounds=2", "local_steps=1")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (
            "fit",
            r"method=moody with strategy=fedavg: no site trained in any round: site vendor_a: ",
        ),
        ("report", r"no site trained in any round: 0 usable updates.*; mend that, and run it anew"),
        ("predict", r"nothing could be scored: .*it sees nothing; mend that, and go on with"),
    ],
)
def test_such_a_run_ends_in_a_sentence_and_resume_does_its_work(
    broken: str,
    words: str,
    simulate_undrawn: Callable[..., Path],
    contents: Callable[..., dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    out = tmp_path / "run"
    monkeypatch.setattr(Moody, "broken", broken)
    for _ in range(2):
        with pytest.raises(UserError, match=words):
            simulate_undrawn(out, *OPTIONS, "validate_every=0", "resume=true")
        assert not any((out / name).exists() for name in FINAL)
        assert len((out / "rounds.jsonl").read_text().splitlines()) == 2
    if broken != "predict":
        with pytest.raises(UserError, match="has no trained model: no site trained in any round"):
            evaluate(out, [], None, None)
    monkeypatch.setattr(Moody, "broken", "")
    simulate_undrawn(out, *OPTIONS, "validate_every=0", "resume=true")
    whole = contents(simulate_undrawn(tmp_path / "whole", *OPTIONS, "validate_every=0"))
    found = contents(out)
    names = ["cases.csv", "cross_site.csv", "checkpoints/round_0002.safetensors"]
    assert [found[name] for name in names] == [whole[name] for name in names]


def test_a_finished_run_of_before_that_trained_nothing_is_begun_again(
    simulate_undrawn: Callable[..., Path], tmp_path: Path
) -> None:
    out = simulate_undrawn(tmp_path / "run", *OPTIONS)
    told = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    for line in told:
        line |= {"failed": {"vendor_a": "it did not"}, "sites": {}}
    (out / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    assert untrained(out)
    simulate_undrawn(out, *OPTIONS, "resume=true")
    assert not untrained(out)


def test_one_bad_site_never_ends_a_run(
    simulate_undrawn: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Moody, "broken", "fit")
    monkeypatch.setattr(Moody, "sites", ("vendor_a",))
    out = simulate_undrawn(tmp_path / "run", *OPTIONS)
    lines = [json.loads(line) for line in (out / "rounds.jsonl").read_text().splitlines()]
    assert [line["failed"] for line in lines] == [{"vendor_a": "it does not want to"}] * 2
    assert (out / "cross_site.csv").exists()


def test_a_run_that_every_site_refuses_ends_in_its_first_round_and_goes_on_when_none_does(
    simulate_undrawn: Callable[..., Path], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    asked = ("strategy=fedprox", "strategy.mu=0.1")
    told = r"every site refuses to train federated \(strategy=fedprox\), such as vendor_a: .*policy"
    with pytest.raises(UserError, match=told):
        simulate_undrawn(out, *asked, "policy.rules=[]")
    assert not (out / "rounds.jsonl").exists()
    assert not list((out / "checkpoints").glob("round_*"))
    simulate_undrawn(out, *asked, "resume=true")
    assert (out / "cross_site.csv").exists()


def test_who_refused_once_and_not_again_ends_no_run() -> None:
    """Where a round asks a part of the sites, those that refused before may not do so now."""

    def reply(node: int, code: int | None) -> Message:
        asked = Message(RecordDict(), dst_node_id=node, message_type="train")
        if code is None:
            return Message(RecordDict(), reply_to=asked)
        return Message(Error(code, "its policy"), reply_to=asked)

    strategy = strategies.build({"name": "fedavg"})
    strategy.begin({"a": 1, "b": 2}, {}, Instruction(action=Action.FIT, seed=0))
    arm = Arm(strategy, ArrayRecord())
    assert len(list(arm.heard([reply(1, ERROR_REFUSED)]))) == 1
    assert len(list(arm.heard([reply(1, None), reply(2, ERROR_REFUSED)]))) == 2
    assert len(list(arm.heard([reply(1, ERROR_FAILED)]))) == 1
    with pytest.raises(UserError, match=r"every site refuses to train federated .*such as a: its"):
        list(arm.heard([reply(1, ERROR_CLOSED)]))
