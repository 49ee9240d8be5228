"""What a site gives to a coordinator that it need not trust: nothing beyond its policy, and nothing
that its ledger does not say. The requests are those of a hostile coordinator, made by hand."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
from kit.asking import (
    METHOD,
    arrays_of,
    ask,
    entries_of,
    initial,
    instruction,
    ledger,
    local_federation,
    metrics_of,
    reason,
)

from fedshift import Tellable, UserError
from fedshift.client.contract.method import Method
from fedshift.client.ledger import Ledger, left_by
from fedshift.client.limits import limited
from fedshift.client.methods import METHODS
from fedshift.client.methods.supervised import Supervised
from fedshift.client.model import Model
from fedshift.client.policy import Policy, Refused
from fedshift.client.pseudonyms import Pseudonyms, resolve
from fedshift.client.simulation import LocalSites
from fedshift.client.slices import fewest_subjects
from fedshift.client.state import SiteState
from fedshift.protocol import statistics as names
from fedshift.protocol.flower import ConfigRecord, Message, RecordDict
from fedshift.protocol.messages import (
    ARMS,
    CONFIG,
    STATISTICS,
    Action,
    Instruction,
    Purpose,
    answer,
    details,
)
from fedshift.protocol.storage import keep_lines, write_tensors
from fedshift.runs.config import load
from fedshift.sites import DataSettings, load_federation
from fedshift.sites.types import SPLITS

CPU = torch.device("cpu")
DEPLOYED = Policy.from_config(load(["policy=deployed"])["policy"])
OF_IMAGES = (Action.FIT, Action.VALIDATE, Action.SCORE, Action.STATISTICS, Action.SHIFT_ANSWER)
OF_MODELS = (*OF_IMAGES, Action.INITIAL, Action.MODEL)


@pytest.fixture
def local_sites(tiny: tuple[str, ...], tmp_path: Path) -> Callable[..., LocalSites]:
    return partial(local_federation, tiny, tmp_path / "sites")


@pytest.fixture
def sites(local_sites: Callable[..., LocalSites]) -> LocalSites:
    return local_sites()


def question(sites: LocalSites, projections: int) -> dict[str, np.ndarray]:
    """One about the images in the features of the small network, which have 16 dimensions."""
    rng = np.random.default_rng(0)
    return {
        names.BANDWIDTHS: np.array([0.5, 1.0, 2.0]),
        names.DIRECTIONS: rng.standard_normal((projections, 16)),
        names.THRESHOLDS: rng.standard_normal(projections),
    }


def asked_of(sites: LocalSites, action: Action, **changes: Any) -> Instruction:
    """An honest request, but for ``changes``."""
    usual = {"splits": ("test",)} if action is Action.SCORE else {}
    number = 1 if action in (Action.FIT, Action.VALIDATE) else 0
    return instruction(sites, action, **{"round": number, **usual, **changes})


def honest(sites: LocalSites, name: str, action: Action, **changes: Any) -> Message:
    """What the site answers to such a request."""
    model = None if action in (Action.INITIAL, Action.MODEL) else initial(sites)
    posed = question(sites, 2) if action is Action.SHIFT_ANSWER else None
    return ask(sites.worker(name, CPU), asked_of(sites, action, **changes), model, posed)


def only_an_error(sites: LocalSites, name: str, reply: Message) -> str:
    """Nothing but the sentence left, and the ledger says so; returns it."""
    assert reply.has_error()
    assert not reply.has_content()
    lines = ledger(sites.worker(name, CPU))
    assert [(line["purpose"], line["record"]) for line in lines] == [("error", "error/reason")]
    return reason(reply)


# What may be done.


@pytest.mark.parametrize("action", OF_MODELS)
@pytest.mark.parametrize("method", METHODS.names())
def test_a_forbidden_method_gets_no_answer_of_any_kind(
    method: str, action: Action, local_sites: Callable[..., LocalSites]
) -> None:
    sites = local_sites(Policy(methods=("another",)))
    reply = honest(sites, "vendor_a", action, method={"name": method})
    assert "(policy.methods)" in only_an_error(sites, "vendor_a", reply)


def test_a_run_of_a_forbidden_strategy_is_refused(sites: LocalSites) -> None:
    policy, now = Policy(strategies=("fedavg",)), datetime(2026, 1, 1)
    policy.check_run(asked_of(sites, Action.CARD, about={"strategy": "fedavg"}), now)
    for about in ({"strategy": "fedprox"}, {}):
        with pytest.raises(Refused, match=r"strategy '.*' \(policy\.strategies\)"):
            policy.check_run(asked_of(sites, Action.CARD, about=about), now)


@pytest.mark.parametrize("action", OF_MODELS)
def test_a_forbidden_rule_gets_no_answer_of_any_kind(
    action: Action, local_sites: Callable[..., LocalSites]
) -> None:
    sites = local_sites(Policy(rules=("proximal",)))
    reply = honest(sites, "vendor_a", action, rules={"harmonised": {}})
    assert "(policy.rules)" in only_an_error(sites, "vendor_a", reply)


@pytest.mark.parametrize(
    "purpose", [p for p in Purpose if p not in (Purpose.NAME, Purpose.ERROR, Purpose.HASHES)]
)
def test_each_purpose_is_a_right_of_its_own(
    purpose: Purpose, local_sites: Callable[..., LocalSites]
) -> None:
    allowed = tuple(one for one in Policy().release if one != purpose)
    sites = local_sites(Policy(release=allowed))
    worker = sites.worker("vendor_a", CPU)
    asked = [action for action, (right, _) in worker._actions.items() if right is purpose]
    assert asked
    for action in asked:
        assert "(policy.release)" in reason(honest(sites, "vendor_a", action))
    assert {line["purpose"] for line in ledger(worker)} == {"error"}


@pytest.mark.parametrize("action", [Action.SCORE, Action.VALIDATE])
def test_models_are_scored_on_the_splits_of_the_policy_alone(
    action: Action, local_sites: Callable[..., LocalSites]
) -> None:
    sites = local_sites(Policy(splits=("test",)))
    for split in ("train", "val", "holdout"):
        reply = honest(sites, "vendor_a", action, splits=("test", split))
        assert "(policy.splits)" in reason(reply)
    assert honest(sites, "vendor_a", Action.SCORE).has_content()


def test_training_images_are_no_ones_to_score_unless_the_policy_says_so() -> None:
    for policy in (Policy(), DEPLOYED):
        assert policy.splits == ("val", "test")


@pytest.mark.parametrize(
    ("limit", "asked", "key"),
    [
        ({"max_steps": 5}, {"steps": 6}, "policy.max_steps"),
        ({"max_rounds": 5}, {"round": 6}, "policy.max_rounds"),
    ],
)
def test_a_round_is_no_longer_than_the_policy_lets_it_be(
    limit: dict[str, Any],
    asked: dict[str, Any],
    key: str,
    local_sites: Callable[..., LocalSites],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Supervised, "fit", lambda *_: pytest.fail("it trained"))
    sites = local_sites(Policy(**limit))
    reply = honest(sites, "vendor_a", Action.FIT, **asked)
    assert key in only_an_error(sites, "vendor_a", reply)


def test_a_request_ends_when_its_time_is_over(local_sites: Callable[..., LocalSites]) -> None:
    sites = local_sites(Policy(max_seconds=1.0))
    reply = honest(sites, "vendor_a", Action.FIT, steps=10**8)
    assert "1 s (policy.max_seconds)" in only_an_error(sites, "vendor_a", reply)


def test_no_import_is_ended_half_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It could never be made again in that process."""
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(1.5)\nDONE = True\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(Refused, match="1 s"), limited(Policy(max_seconds=1.0)):
        slow = import_module("slow_to_import")
        assert slow.DONE
        time.sleep(5)
    assert import_module("slow_to_import").DONE


@pytest.mark.parametrize("changed", [{"width": 100_000}, {"width": 512, "blocks": 10**6}])
def test_a_network_beyond_the_memory_of_the_policy_is_an_error_answer(
    changed: dict[str, Any], local_sites: Callable[..., LocalSites]
) -> None:
    sites = local_sites(Policy(max_memory_mb=300.0, max_seconds=60.0))
    reply = honest(sites, "vendor_a", Action.INITIAL, method={**METHOD, **changed})
    only_an_error(sites, "vendor_a", reply)
    assert honest(sites, "vendor_b", Action.INITIAL).has_content()


def test_weights_of_an_extractor_are_the_sites_own_setting(
    local_sites: Callable[..., LocalSites], tmp_path: Path
) -> None:
    theirs = {"name": "style_transfer", "extractor": "vgg16", "perceptual": [1] * 5}
    theirs |= {"style": [1] * 5}
    sites = local_sites()
    for path in ("/etc/passwd", "~/.bashrc", str(tmp_path), "/nowhere", None):
        method = {**theirs, "extractor_file": path}
        reply = honest(sites, "vendor_a", Action.INITIAL, method=method)
        assert reason(reply) == (
            "method.extractor_file is the site's own setting; no request may bring it"
        )
    reply = honest(sites, "vendor_a", Action.INITIAL, method=theirs)
    assert "extractor_file=None do not go together" in reason(reply)
    own = replace(sites, own={"extractor_file": str(tmp_path / "vgg16.pth")})
    assert honest(own, "vendor_a", Action.INITIAL, method=theirs).has_content()


# Names from the coordinator.


@pytest.mark.parametrize("arm", ["/tmp/secret", "../../secret", "../vendor_b/federated", "", "a"])
@pytest.mark.parametrize("action", [Action.FIT, Action.VALIDATE, Action.MODEL])
def test_no_arm_reaches_out_of_the_sites_folder(
    arm: str, action: Action, sites: LocalSites, tmp_path: Path
) -> None:
    foreign = [tmp_path / "secret", sites.folder / "vendor_b" / "federated"]
    for folder in foreign:
        for number in (5, 6):
            write_tensors(folder / f"round_{number:04d}.safetensors", initial(sites))
    before = sorted(tmp_path.rglob("*"))
    kept = tuple(initial(sites))
    for named in (arm, str(tmp_path / "secret")):
        asked = asked_of(sites, action, arm=named, round=8, kept=kept)
        reply = ask(sites.worker("vendor_a", CPU), asked, {})
        assert "arm is none of federated, local, pooled" in reason(reply)
    own = sites.folder / "vendor_a"
    assert [path for path in sorted(tmp_path.rglob("*")) if own not in (path, *path.parents)] == (
        before
    )


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"round": {"site": "someone else"}}, "round is no whole number"),
        ({"round": float("nan")}, "not finite"),
        ({"round": 1e40}, "round is no whole number"),
        ({"round": 10**40}, "number beyond"),
        ({"round": -1}, "round is no whole number"),
        ({"round": True}, "round is no whole number"),
        ({"round": "1"}, "round is no whole number"),
        ({"seed": None}, "seed is no whole number"),
        ({"steps": 1e9}, "steps is no whole number"),
        ({"action": "train.steal"}, "action is not known"),
        ({"action": ["train.fit"]}, "action is not known"),
        ({"kept": "net"}, "kept is no list of names"),
        ({"kept": ["a", "a"]}, "kept is no list of names"),
        ({"splits": ["test"] * 1000}, "splits is no list of names"),
        ({"rules": {"proximal": 3}}, "rules are no settings"),
        ({"rules": []}, "rules holds no settings"),
        ({"method": "supervised"}, "method holds no settings"),
        ({"stage": 1}, "stage is no name"),
        ({"method": {"name": "\ud800"}}, "no Unicode"),
        ({"method": {"name": "x" * 5000}}, "too long"),
        ({"task": {"parts": [[[[[[[[["x"]]]]]]]]]}}, "nested more than 8 deep"),
        ({"min_count": 1}, "a field, or has one that is not known"),
    ],
)
def test_no_message_writes_a_false_line_into_the_ledger(
    changed: dict[str, Any], told: str, sites: LocalSites
) -> None:
    fields = json.loads(str(asked_of(sites, Action.FIT).to_record()["instruction"]))
    record = ConfigRecord({"instruction": json.dumps({**fields, **changed}), "rounds": 1})
    worker = sites.worker("vendor_a", CPU)
    content = RecordDict({CONFIG: record})
    reply = worker.handle(Message(content, dst_node_id=5, message_type="train"))
    assert told in only_an_error(sites, "vendor_a", reply)
    (line,) = ledger(worker)
    assert (line["site"], line["round"], line["action"]) == ("vendor_a", 0, None)
    keep_lines(worker.folder / "egress.jsonl", left_by(0))
    assert ledger(worker) == [line]


def test_a_deep_or_broken_instruction_is_an_error_answer(sites: LocalSites) -> None:
    worker = sites.worker("vendor_a", CPU)
    for text in ("[" * 200_000, "{", '{"seed": NaN}', "3", "", "x" * 2**23):
        record = ConfigRecord({"instruction": text, "rounds": 1})
        content = RecordDict({CONFIG: record})
        assert worker.handle(Message(content, dst_node_id=5, message_type="train")).has_error()
    assert {line["round"] for line in ledger(worker)} == {0}


def test_tensors_that_are_to_stay_are_tensors_of_the_model(sites: LocalSites) -> None:
    reply = honest(sites, "vendor_a", Action.FIT, kept=("../../secret",))
    assert "none of the model" in reason(reply)


def test_what_is_sent_is_finite(sites: LocalSites) -> None:
    worker = sites.worker("vendor_a", CPU)
    asked = asked_of(sites, Action.FIT, rules={"harmonised": {}})
    model = initial(sites)
    odd = {**model, next(iter(model)): np.full_like(next(iter(model.values())), np.inf)}
    bank = {"vendor_b": {"rule.amplitude": np.full((32, 32), np.nan, np.float32)}}
    for reply in (ask(worker, asked, odd), ask(worker, asked, model, bank=bank)):
        assert reason(reply) == "an array of the request is not finite"
    assert not (worker.folder / "federated").exists()


def test_stages_are_those_of_the_method(sites: LocalSites) -> None:
    assert "no such stage" in reason(honest(sites, "vendor_a", Action.SCORE, stage="other"))


# Statistics.


@pytest.mark.parametrize(
    ("rule", "settings"),
    [
        ("harmonised", {}),
        (
            "amplitude_exchange",
            {"reach": 0.5, "inner_lr": 1e-3, "boundary": 0.0, "temperature": 1.0},
        ),
    ],
)
def test_statistics_leave_beside_an_update_under_the_right_to_statistics(
    rule: str, settings: dict[str, Any], local_sites: Callable[..., LocalSites]
) -> None:
    open_site = local_sites()
    reply = honest(open_site, "vendor_a", Action.FIT, rules={rule: settings})
    sent = arrays_of(reply, STATISTICS)
    assert sent
    lines = ledger(open_site.worker("vendor_a", CPU))
    noted = {line["record"] for line in lines if line["purpose"] == Purpose.STATISTICS}
    assert noted == {f"statistics/{name}" for name in sent}

    allowed = tuple(one for one in Policy().release if one != Purpose.STATISTICS)
    shut = local_sites(Policy(release=allowed))
    reply = honest(shut, "vendor_b", Action.FIT, rules={rule: settings})
    assert STATISTICS not in reply.content
    assert metrics_of(reply)["statistics_withheld"] == 1
    lines = ledger(shut.worker("vendor_b", CPU))
    assert {line["purpose"] for line in lines} == {"model update"}


def test_a_question_has_three_bandwidths_and_as_many_projections_as_other_sites_need(
    local_sites: Callable[..., LocalSites],
) -> None:
    sites = local_sites(Policy(sites=4))
    worker = sites.worker("vendor_a", CPU)
    asked = asked_of(sites, Action.SHIFT_ANSWER)
    fine = question(sites, 60)
    wrong = [
        question(sites, 61),
        {**fine, names.BANDWIDTHS: np.ones(10_000)},
        {**fine, names.BANDWIDTHS: np.ones((3, 1))},
        {**fine, names.BANDWIDTHS: np.array([1.0, 0.0, 1.0])},
        {**fine, names.THRESHOLDS: np.full(60, np.nan)},
        {**fine, names.THRESHOLDS: np.zeros((60, 1))},
        {name: fine[name] for name in (names.BANDWIDTHS, names.DIRECTIONS)},
        {name: fine[name] for name in (names.DIRECTIONS, names.THRESHOLDS)},
        {name: array.astype(np.float32) for name, array in fine.items()},
    ]
    for number, posed in enumerate(wrong):
        unlimited = sites.worker("vendor_b", CPU)
        unlimited.policy = Policy()
        if number:
            assert ask(unlimited, asked, initial(sites), posed).has_error()
        # Each of them is the one question of this run, so each is asked of a fresh site.
        shutil.rmtree(worker.folder)
        worker.folder.mkdir()
        worker = sites.worker("vendor_a", CPU)
        assert ask(worker, asked, initial(sites), posed).has_error()
    shutil.rmtree(worker.folder)
    worker.folder.mkdir()
    reply = ask(sites.worker("vendor_a", CPU), asked, initial(sites), fine)
    assert arrays_of(reply, STATISTICS)[names.DOMAIN_COUNTS].shape[1] == 60


def test_one_subject_is_never_summarised_where_several_must_be(
    local_sites: Callable[..., LocalSites],
) -> None:
    sites = local_sites(Policy(min_count=1, min_subjects=3))
    data = sites.open("vendor_a")
    few = {case.subject for case in data.splits["train"][:2]}
    assert len(few) == 2
    worker = sites.worker("vendor_a", CPU)
    worker.data = replace(data, splits={**data.splits, "train": data.splits["train"][:2]})
    model = initial(sites)
    reply = ask(worker, asked_of(sites, Action.STATISTICS), model)
    assert STATISTICS not in reply.content
    reply = ask(worker, asked_of(sites, Action.SHIFT_ANSWER), model, question(sites, 1))
    assert STATISTICS not in reply.content
    reply = ask(worker, asked_of(sites, Action.FIT, rules={"harmonised": {}}), model)
    assert "(policy.min_subjects)" in reason(reply)
    reply = ask(worker, asked_of(sites, Action.VALIDATE), model)
    assert metrics_of(reply) == {"num-examples": 0}


def test_an_update_is_of_as_many_subjects_as_the_policy_says(
    local_sites: Callable[..., LocalSites], monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = local_sites(Policy(min_subjects=3))
    cases = sites.open("vendor_a").splits["train"]
    assert Counter(case.subject for case in cases for _ in case.image).most_common(1)[0][1] == 2
    for steps, batch, answered in ((1, 1, False), (2, 2, False), (5, 1, True), (1, 12, True)):
        reply = honest(
            sites, "vendor_a", Action.FIT, steps=steps, method={**METHOD, "batch": batch}, round=9
        )
        assert reply.has_content() is answered
        if not answered:
            assert "(policy.min_subjects)" in reason(reply)
    assert [fewest_subjects({"a": 9, "b": 4, "c": 4}, n) for n in (0, 1, 9, 10, 13, 14, 99)] == [
        *(0, 1, 1, 2, 2, 3, 3),
    ]
    monkeypatch.setattr(Supervised, "drawn", Method.drawn)  # One that does not say.
    assert honest(sites, "vendor_b", Action.FIT, steps=9).has_error()


@pytest.mark.parametrize("name", METHODS.names())
def test_every_method_says_how_many_images_an_update_is_of(name: str) -> None:
    method = METHODS.build({"name": name})
    batches = [value for key, value in vars(method).items() if key.endswith("batch")]
    assert type(method).drawn is not Method.drawn
    assert 1 < method.drawn(1) <= min(batches)


def test_blocks_hold_as_many_subjects_as_the_policy_says(
    local_sites: Callable[..., LocalSites],
) -> None:
    reply = honest(local_sites(Policy(min_count=1, min_subjects=2)), "vendor_a", Action.STATISTICS)
    counts = arrays_of(reply, STATISTICS)[names.BLOCK_COUNTS]
    assert counts.tolist() == [4.0, 4.0]  # two subjects of two slices each


# Questions.


def test_a_federation_of_that_many_sites_is_answered_and_no_question_more(
    local_sites: Callable[..., LocalSites],
) -> None:
    sites = local_sites(Policy(sites=2))
    model = initial(sites)
    name = max(model, key=lambda key: model[key].size)

    def ask_with(action: Action, number: int, **changes: Any) -> Message:
        other = {**model, name: model[name] + np.float32(number)}
        posed = question(sites, 1) if action is Action.SHIFT_ANSWER else None
        # A worker of its own each time: the count outlives it.
        return ask(sites.worker("vendor_a", CPU), asked_of(sites, action, **changes), other, posed)

    honest_ones = {Action.SCORE: 2 * 2 + 2, Action.STATISTICS: 1, Action.SHIFT_ANSWER: 1}
    for action, most in honest_ones.items():
        for number in range(most):
            assert ask_with(action, number).has_content()
        assert "(policy.sites, policy.matrices)" in reason(ask_with(action, most))
        # Asked again it is no other question.
        assert ask_with(action, 0).has_content()
    for action in (Action.FIT, Action.VALIDATE):
        for number, arm in enumerate(("federated", "local")):
            assert ask_with(action, number, arm=arm).has_content()
            assert "(policy.sites" in reason(ask_with(action, number + 2, arm=arm))
            assert ask_with(action, number, arm=arm).has_content()
        assert ask_with(action, 0, round=2).has_content()
    for arm in ARMS[:2]:
        asked = asked_of(sites, Action.MODEL, arm=arm)
        assert "(policy.sites" not in reason(ask(sites.worker("vendor_a", CPU), asked))


def test_training_pixels_cannot_be_read_off_by_scores(
    local_sites: Callable[..., LocalSites],
) -> None:
    sites = local_sites(replace(DEPLOYED, min_subjects=1))
    model = initial(sites)
    name = max(model, key=lambda key: model[key].size)
    worker = sites.worker("vendor_a", CPU)
    answered = 0
    for number in range(40):
        other = {**model, name: model[name] * np.float32(1 + number)}
        asked = asked_of(sites, Action.SCORE, splits=("train",))
        assert "(policy.splits)" in reason(ask(worker, asked, other))
        answered += ask(worker, asked_of(sites, Action.SCORE), other).has_content()
    assert answered == 2 * 12 + 2


def test_a_site_may_tell_means_alone(local_sites: Callable[..., LocalSites]) -> None:
    told = details(honest(local_sites(), "vendor_a", Action.SCORE).content)["rows"]
    sites = local_sites(Policy(scores="site"))
    cases = honest(local_sites(), "vendor_a", Action.SCORE)
    dice = metrics_of(cases)["dice"]
    reply = honest(sites, "vendor_b", Action.SCORE)
    assert set(metrics_of(reply)) == {"num-examples"}
    means = {tuple(line[:4]): line[4:] for line in details(reply.content)["means"]}
    assert means and details(reply.content).keys() == {"means"}
    for number, failed, mean in means.values():
        assert number > 0 and failed >= 0
        assert float(f"{mean:.3g}") == mean
    reply = honest(sites, "vendor_a", Action.SCORE)
    means = {tuple(line[:4]): line[4:] for line in details(reply.content)["means"]}
    for part in {row[4] for row in told}:
        values = [value for row, value in zip(told, dice, strict=True) if row[4] == part]
        number, _, mean = means["test", "vendor_a", part, "dice"]
        assert number == len(values)
        assert mean == pytest.approx(np.mean(values), rel=5e-3)
    few = local_sites(Policy(scores="site", min_subjects=2))
    assert details(honest(few, "vendor_a", Action.SCORE).content)["means"] == []


# Pseudonyms.


def test_subjects_and_cases_leave_as_codes_that_the_site_resolves(
    local_sites: Callable[..., LocalSites], command: Callable[..., Any]
) -> None:
    sites = local_sites(Policy(pseudonyms=True))
    rows = details(honest(sites, "vendor_a", Action.SCORE).content)["rows"]
    again = details(honest(sites, "vendor_a", Action.SCORE).content)["rows"]
    assert rows == again
    named = details(honest(local_sites(), "vendor_a", Action.SCORE).content)["rows"]
    folder = sites.folder / "vendor_a"
    for row, plain in zip(rows, named, strict=True):
        assert [row[k] for k in (0, 1, 4)] == [plain[k] for k in (0, 1, 4)]
        for place in (2, 3):
            assert row[place] != plain[place]
            assert resolve(folder, row[place]) == plain[place]
    for private in ("pseudonyms.key", "pseudonyms.jsonl"):
        assert (folder / private).stat().st_mode & 0o777 == 0o600
    shown = command("client", "who", rows[0][2], "--state", str(folder))
    assert (shown.code, shown.out.strip()) == (0, named[0][2])
    missing = command("client", "who", "0" * 20, "--state", str(folder))
    assert missing.code == 2 and "none of the" in missing.err
    # Another site, another key.
    other = details(honest(sites, "vendor_b", Action.SCORE).content)["rows"]
    assert not {row[2] for row in other} & {row[2] for row in rows}


def test_a_code_that_a_crash_cut_short_was_never_given_out(tmp_path: Path) -> None:
    (first,) = Pseudonyms(tmp_path).give(["one"])
    with (tmp_path / "pseudonyms.jsonl").open("a") as file:
        file.write('["abc')
    (second,) = Pseudonyms(tmp_path).give(["two"])
    assert resolve(tmp_path, first) == "one" and resolve(tmp_path, second) == "two"
    (tmp_path / "pseudonyms.key").write_bytes(b"short")
    with pytest.raises(UserError, match=r"pseudonyms\.key is no key"):
        Pseudonyms(tmp_path).give(["one"])


# Texts.


def test_no_sentence_that_leaves_names_a_file_or_a_subject_where_the_policy_has_it(
    local_sites: Callable[..., LocalSites],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    secret = "/data/Erika_Mustermann/scan.nii"

    def fail(error: Exception, *_: object) -> None:
        raise error

    for error in (UserError(f"{secret} is broken"), OSError(5, "I/O", secret), KeyError(secret)):
        monkeypatch.setattr(LocalSites, "open", partial(fail, error))
        for texts, hidden in (("rows", True), ("full", False)):
            sites = local_sites(Policy.from_config({"texts": texts}))
            caplog.clear()
            with caplog.at_level(logging.ERROR):
                told = reason(ask(sites.worker("vendor_a", CPU), asked_of(sites, Action.CARD)))
            assert (secret in told) is not hidden
            assert secret in caplog.text or not hidden
    told = "training diverged; lower method.lr"
    monkeypatch.setattr(LocalSites, "open", partial(fail, Tellable(told)))
    sites = local_sites(Policy(texts="rows"))
    assert reason(ask(sites.worker("vendor_a", CPU), asked_of(sites, Action.CARD))) == told


@pytest.mark.parametrize("fault", ["missing", "broken", "nan", "label", "all"])
def test_no_answer_names_the_folder_of_a_patient(fault: str, tmp_path: Path) -> None:
    folder = tmp_path / "Erika_Mustermann"
    folder.mkdir()
    lines = ["path\tlabel_path\tsite\tsubject\tvendor"]
    label = np.zeros((16, 16, 4), np.uint8)
    label[4:9, 4:9] = 1
    for number in range(5):
        image, mask = folder / f"{number}.nii", folder / f"{number}_label.nii"
        noise = np.random.default_rng(number).normal(size=label.shape).astype(np.float32)
        for path, array in ((image, noise), (mask, label)):
            nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), path)
        lines.append(f"{image}\t{mask}\tA\tsubject{number}\tV")
        if fault == "all" or (number == 1 and fault == "missing"):
            image.unlink()
        elif number == 1 and fault == "broken":
            image.write_bytes(image.read_bytes()[:400])
        elif number == 1 and fault == "nan":
            nan = np.full_like(noise, np.nan)
            nibabel.save(nibabel.Nifti1Image(nan, np.eye(4)), image)
        elif number == 1 and fault == "label":
            nibabel.save(nibabel.Nifti1Image(label[:8], np.eye(4)), mask)
    table = tmp_path / "table.tsv"
    table.write_text("\n".join(lines) + "\n")
    fixed = ["data.spacing_mm=1", "data.size=16", "data.slice_axis=2", "data.labels={a: 1}"]
    config = load(["federation=manifest", f"data.manifest={table}", *fixed])
    data = DataSettings.from_config(config["data"])
    sites = LocalSites(
        federation=load_federation(config["federation"], data, 0),
        data=data,
        policy=DEPLOYED,
        folder=tmp_path / "sites",
        seed=0,
    )
    reply = honest(sites, "A", Action.CARD)
    if fault == "all":
        told = only_an_error(sites, "A", reply)
        assert "no usable image out of 5 (row 2: missing-file" in told
    else:
        told = str(details(reply.content))
        assert "left out: 1 of 5 images (row 3: " in told
    assert "Mustermann" not in told and "subject" not in told.replace("'subjects'", "")
    assert str(tmp_path) not in told + (sites.folder / "A" / "egress.jsonl").read_text()


# What is said to stay, stays.


@pytest.mark.parametrize(
    ("method", "kept"),
    [
        ({"name": "drai", "style_encoder": "kept"}, {"style_encoder", "content_judge"}),
        ({"name": "style_transfer", "style_encoder": "kept"}, {"style_encoder"}),
    ],
)
def test_networks_that_never_leave_their_site_do_not(
    method: dict[str, Any], kept: set[str], sites: LocalSites
) -> None:
    asked = asked_of(sites, Action.INITIAL, method=method)
    task = {**asked.task, "size": [32, 32]}
    model = Model(method, task, CPU, 0)
    stays = model.kept()
    assert stays and {name.split("/")[0] for name in stays} >= {"style_encoder"}
    worker = sites.worker("vendor_a", CPU)
    held = {**model.read()}
    write_tensors(worker.folder / "federated" / "round_0001.safetensors", held)
    reply = ask(worker, asked.but(action=Action.MODEL, round=1, task=task))
    assert list(arrays_of(reply)) == sorted(held.keys() - stays)
    # Without them the model is scored all the same, and to the same numbers.
    rng = np.random.default_rng(0)
    scored = asked.but(action=Action.SCORE, task=task, splits=("test",))
    shared = {name: array for name, array in held.items() if name not in stays}
    odd = {name: rng.standard_normal(held[name].shape).astype(np.float32) for name in stays}
    one, other = (ask(worker, scored, arrays) for arrays in (shared, {**shared, **odd}))
    assert entries_of(one) == entries_of(other)
    assert metrics_of(one) == metrics_of(other)


@pytest.mark.parametrize("question", [{"name": "supervised"}, {"name": "style_transfer"}])
def test_what_stays_is_noted_with_it_and_not_asked_of_the_question(
    question: dict[str, Any], sites: LocalSites
) -> None:
    """By another method, or the same with another setting, nothing that stayed is got out."""
    method = {"name": "style_transfer", "style_encoder": "kept"}
    asked = asked_of(sites, Action.INITIAL, method=method)
    task = {**asked.task, "size": [32, 32]}
    model = Model(method, task, CPU, 0)
    stays = model.kept()
    worker = sites.worker("vendor_a", CPU)
    state = SiteState(worker.folder, "federated")
    state.save(1, model.read(), {"stays": {name: np.zeros(0, np.uint8) for name in stays}})
    reply = ask(worker, asked.but(action=Action.MODEL, round=1, task=task, method=question))
    assert stays and set(arrays_of(reply)) == set(model.read()) - stays


def test_a_training_notes_what_stays(sites: LocalSites) -> None:
    method = {"name": "style_transfer", "style_encoder": "kept"}
    asked = asked_of(sites, Action.FIT, method=method).but(round=1, rounds=20, steps=1)
    worker = sites.worker("vendor_a", CPU)
    model = Model(method, {**asked.task, "size": [32, 32]}, CPU, 0)
    asked = asked.but(task={**asked.task, "size": [32, 32]})
    assert not ask(worker, asked, model.read()).has_error()
    state = SiteState(worker.folder, "federated")
    held = state.load(1)
    assert set(state.notes("stays", 1)) == model.kept() & set(held)


def test_validation_is_as_coarse_as_scores_are(local_sites: Callable[..., LocalSites]) -> None:
    fine, coarse = (
        metrics_of(honest(local_sites(policy), "vendor_a", Action.VALIDATE))["val_dice"]
        for policy in (Policy(), Policy(scores="site"))
    )
    assert coarse == float(f"{fine:.3g}") != fine


# The ledger.


def test_the_ledger_counts_bytes_and_names_the_site_once(tmp_path: Path) -> None:
    book = Ledger(tmp_path / "egress.jsonl", "Köln")
    for _ in range(2):
        book.record(answer("Köln"), action=Action.NAME, round=0, purpose=Purpose.NAME)
    text = RecordDict({"error": ConfigRecord({"reason": "Prüfung – Köln"})})
    book.record(text, action=None, round=0, purpose=Purpose.ERROR)
    lines = [json.loads(line) for line in book.path.read_text().splitlines()]
    assert [(line["record"], line["bytes"]) for line in lines] == [
        ("answer/site", len("site") + 5),
        ("answer/details", len("details") + 2),
        ("error/reason", len("reason") + 18),
    ]


def test_a_ledger_goes_on_after_a_crash_on_a_line_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    book = Ledger(tmp_path / "egress.jsonl", "a")
    book.path.write_text('{"site":"a","rou')
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    book.record(answer("a"), action=Action.CARD, round=2, purpose=Purpose.CARD)
    assert synced
    torn, *lines = book.path.read_text().splitlines()
    assert torn == '{"site":"a","rou'
    assert [json.loads(line)["round"] for line in lines] == [2, 2]


def test_no_line_of_a_ledger_breaks_a_resume(tmp_path: Path) -> None:
    path = tmp_path / "egress.jsonl"
    odd = ['"text"', "3", "null", "[]", '{"round":"later"}', '{"round":{"site":"b"}}', '{"x":NaN}']
    fit = '{"round":1,"action":"train.fit","purpose":"statistics"}'
    late = ['{"round":2,"action":"train.fit","purpose":"model update"}']
    late += ['{"round":1,"action":"query.statistics","purpose":"statistics"}']
    late += ['{"round":1,"purpose":"case metrics"}']  # of an older run
    path.write_text("".join(line + "\n" for line in [*odd, fit, *late]))
    keep_lines(path, left_by(1))
    assert path.read_text().splitlines() == [*odd, fit]


@pytest.mark.parametrize("method", METHODS.names())
def test_every_reply_of_every_method_is_in_the_ledger_as_it_left(
    method: str, sites: LocalSites
) -> None:
    settings = {"name": method}
    task = {**asked_of(sites, Action.CARD).task, "size": [32, 32], "unlabelled": ["vendor_c"]}
    usual = {"method": settings, "task": task, "rounds": 8}
    model = Model(settings, task, CPU, 0)
    arrays = {name: array for name, array in model.read().items() if name not in model.kept()}
    worker = sites.worker("vendor_a", CPU)
    bank: dict[str, Any] = {}
    left = []
    for action, number in [
        *((action, 0) for action in (Action.NAME, Action.CARD, Action.INITIAL)),
        *((Action.FIT, number) for number in (1, 2)),
        (Action.VALIDATE, 2),
        *((action, 2) for action in (Action.MODEL, Action.SCORE, Action.STATISTICS)),
    ]:
        sent = None if action in (Action.NAME, Action.CARD, Action.INITIAL) else arrays
        asked = asked_of(
            sites, action, **usual, round=number, kept=tuple(sorted(model.kept())), arm="federated"
        )
        reply = ask(worker, asked, sent, bank=bank or None)
        if reply.has_content() and action is Action.FIT and STATISTICS in reply.content:
            bank = {"vendor_b": arrays_of(reply, STATISTICS)}
        left.append((action, number, reply))
    assert sum(reply.has_content() for _, _, reply in left) >= 7
    expected = [
        (action.value, number, *entry)
        for action, number, reply in left
        for entry in entries_of(reply)
    ]
    found = [
        (line["action"], line["round"], line["record"], line["shape"], line["bytes"])
        for line in ledger(worker)
    ]
    assert found == expected


def test_other_accounts_see_no_prepared_image(
    local_sites: Callable[..., LocalSites], tmp_path: Path
) -> None:
    sites = local_sites(cache=tmp_path / "cache")
    sites.open("vendor_a")
    files = [path for path in (tmp_path / "cache").rglob("*.npy") if path.is_file()]
    assert files
    for path in [*files, tmp_path / "cache" / "any"]:
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_the_policies_that_are_shipped_are_policies(tiny: tuple[str, ...]) -> None:
    simulation = Policy.from_config(load([*tiny, "policy=simulation"])["policy"])
    assert simulation == Policy()
    assert DEPLOYED.most_projections == 20 * 11
    assert DEPLOYED.most_questions(Action.SHIFT_ANSWER, stages=0) == 1
    assert DEPLOYED.pseudonyms and DEPLOYED.texts == "rows"
    assert set(DEPLOYED.splits) < set(SPLITS)


def test_an_honest_run_never_meets_the_bounds_of_a_site_that_trusts_nobody(
    simulate_undrawn: Callable[..., Path], cut_short: Callable[..., Path], tmp_path: Path
) -> None:
    bounded = ("policy=deployed", "policy.sites=4", "policy.min_subjects=1", "strategy=ditto")
    bounded += ("baselines=[local,pooled]", "method.norm=batch")
    run = simulate_undrawn(tmp_path / "run", *bounded)

    def refused(out: Path) -> list[str]:
        notes = json.loads((out / "checkpoints" / "evaluation.json").read_text())["problems"]
        lines = [json.loads(line) for line in (out / "egress.jsonl").read_text().splitlines()]
        return notes + [line["record"] for line in lines if line["purpose"] == Purpose.ERROR]

    assert refused(run) == []
    free = (f"policy.{key}" for key in ("sites=null", "pseudonyms=false", "texts=full"))
    other = simulate_undrawn(tmp_path / "other", *bounded, *free)
    for name in ("shift.csv", "checkpoints/round_0002.safetensors"):
        assert (run / name).read_bytes() == (other / name).read_bytes()
    told, named = ((out / "cases.csv").read_text().splitlines() for out in (run, other))
    assert len(told) == len(named) and told[0] == named[0]
    assert not any(code in named for code in told[1:])
    # Killed after its first round it goes on, and what is asked again counts once.
    resumed = cut_short(run, tmp_path / "resumed")
    simulate_undrawn(resumed, *bounded, "resume=true")
    assert refused(resumed) == []
    assert (resumed / "cases.csv").read_bytes() == (run / "cases.csv").read_bytes()
