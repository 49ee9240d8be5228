"""A real site: what its staff decides, what it keeps of runs, and what no coordinator changes."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from kit.asking import METHOD, arrays_of, metrics_of, reason
from kit.sites import open_sites

from fedshift import UserError
from fedshift.client.agent.folder import MOST_WAITING, StateFolder, own_settings
from fedshift.client.agent.site import Site
from fedshift.client.ledger import entries, verify
from fedshift.client.model import initial_arrays
from fedshift.client.policy import ERROR_REFUSED, ERROR_UNAPPROVED, Policy
from fedshift.protocol.flower import ConfigRecord, Message, RecordDict
from fedshift.protocol.messages import (
    CONFIG,
    ERROR_CLOSED,
    Action,
    Instruction,
    content_bytes,
    details,
    pack_arrays,
    request,
)
from fedshift.protocol.storage import read_tensors
from fedshift.runs.config import load
from fedshift.sites.example import labels, write_example
from fedshift.sites.settings import OF_A_RUN

PARTS = [*labels()]
DATA = {
    "labels": labels(),
    "size": 32,
    "slice_axis": 2,
    "normalise": "zscore",
    "split": {"train": 0.6, "val": 0.2, "test": 0.2},
}
ASKED = Instruction(
    action=Action.FIT,
    seed=0,
    round=1,
    rounds=4,
    steps=1,
    method=METHOD,
    task={
        "name": "segmentation",
        "parts": PARTS,
        "size": [32, 32],
        "in_channels": 1,
        "unlabelled": [],
    },
    run="trial-1",
    data=DATA,
    about={"purpose": "a trial", "asked_by": "Dr. A", "strategy": "fedavg"},
)
NAME = "hospital-1"


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_example(tmp_path_factory.mktemp("example"), sites=2, subjects=6, slices=2, size=32)


@pytest.fixture
def open_site(example: dict[str, Path], tmp_path: Path) -> Callable[..., Site]:
    """Open hospital-1, again and again on the same state."""

    def call(policy: Policy | None = None, **more: Any) -> Site:
        data = own_settings(example[NAME])
        return Site(NAME, data, policy or Policy(), tmp_path / "state", **more)

    return call


@pytest.fixture(scope="module")
def arrays() -> dict[str, np.ndarray]:
    return initial_arrays(METHOD, ASKED.task, 0)


def ask(
    site: Site, asked: Instruction = ASKED, arrays: dict[str, np.ndarray] | None = None
) -> Message:
    packed = None if arrays is None else pack_arrays(arrays)
    return site.handle(
        Message(request(asked, packed), dst_node_id=5, message_type=asked.action.message_type)
    )


def lines(site: Site) -> list[dict[str, Any]]:
    return list(entries(site.folder.ledger))


# What travels


def test_a_simulations_instruction_has_no_bytes_of_a_deployment() -> None:
    plain = ASKED.but(run="", data={}, about={})
    record = plain.to_record()
    assert record.keys() == {"instruction", "rounds"}
    assert not {"run", "data", "about"} & json.loads(str(record["instruction"])).keys()
    assert Instruction.from_record(record) == plain
    assert Instruction.from_record(ASKED.to_record()) == ASKED


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("run", "../other"),
        ("run", "A"),
        ("run", "a" * 65),
        ("run", 7),
        ("data", "[]"),
        ("data", "{"),
        ("data", '{"size": 1e999}'),
        ("about", '{"note": "x"}'),
        ("about", '{"purpose": 3}'),
        ("about", json.dumps({"purpose": "x" * 501})),
        ("about", json.dumps({"purpose": "two\nlines"})),
        ("about", json.dumps({"purpose": "\u202etxt"})),
    ],
)
def test_what_a_run_says_of_itself_is_read_strictly(key: str, value: Any) -> None:
    record = ASKED.to_record()
    record[key] = value
    with pytest.raises(ValueError, match="the instruction"):
        Instruction.from_record(record)


@pytest.mark.parametrize("parts", [5, True, "LV", {"LV": 1}, [1], ["x" * 201], ["x"] * 1001])
def test_what_is_learnt_is_a_list_of_short_names(parts: Any) -> None:
    """It is kept at the site before anybody has approved of the run."""
    with pytest.raises(ValueError, match="parts are no list of at most 1000 names"):
        Instruction.from_record(ASKED.but(task={**ASKED.task, "parts": parts}).to_record())


# The policy


@pytest.mark.parametrize(
    ("policy", "changes", "sentence"),
    [
        (
            {},
            {"data": {**DATA, "manifest": "/etc/passwd"}},
            "a request sets something of data that is the site's own",
        ),
        (
            {"data": tuple(key for key in OF_A_RUN if key != "unlabelled_sites")},
            {"data": {**DATA, "unlabelled_sites": [NAME]}},
            "lets no run set data.unlabelled_sites (policy.data)",
        ),
        ({}, {"data": {**DATA, "size": 9999}}, "data.size must be a whole number"),
        ({"strategies": ("fedbn",)}, {}, "strategy 'fedavg' (policy.strategies)"),
        ({"strategies": ("fedbn",)}, {"about": {}}, "strategy '' (policy.strategies)"),
        ({"hours": "20:00-06:00"}, {}, "works from 20:00 to 06:00 (policy.hours)"),
        ({"hours": "08:00-11:59"}, {}, "works from 08:00 to 11:59 (policy.hours)"),
        ({"max_array_mb": 0.001}, {}, "exceeds the site's limit of 0.001 MB (policy.max_array_mb)"),
        ({}, {"run": ""}, "the request is of no run"),
        ({}, {"round": 5}, "a round beyond those that its run says it has"),
        (
            {},
            {"action": Action.CARD, "task": {**ASKED.task, "parts": ["other"]}},
            "other parts than its data.labels",
        ),
        ({}, {"task": {**ASKED.task, "name": "cooking"}}, "task=cooking"),
    ],
)
def test_what_the_policy_forbids_is_refused_by_its_rule(
    policy: dict[str, Any],
    changes: dict[str, Any],
    sentence: str,
    open_site: Callable[..., Site],
    arrays: dict[str, np.ndarray],
) -> None:
    noon = datetime(2026, 7, 1, 12)
    site = open_site(Policy(texts="rows", **policy), now=lambda: noon)
    reply = ask(site, ASKED.but(**changes), arrays)
    assert sentence in reason(reply)
    assert reply.error.code == (ERROR_CLOSED if "hours" in policy else ERROR_REFUSED)
    (line,) = lines(site)
    assert (line["purpose"], line["run"]) == ("error", changes.get("run", "trial-1"))


@pytest.mark.parametrize("at", [20, 23, 0, 5])
def test_a_site_works_over_midnight(
    at: int, open_site: Callable[..., Site], arrays: dict[str, np.ndarray]
) -> None:
    site = open_site(Policy(hours="20:00-06:00"), now=lambda: datetime(2026, 7, 1, at))
    assert not ask(site, ASKED, arrays).has_error()


@pytest.mark.parametrize(
    "hours",
    ["20-6 o'clock", "20:00", "08:00-08:00", "25:00-06:00", "20:00+02:00-06:00", "20:00-06:00Z"],
)
def test_hours_that_are_none_are_one_sentence(hours: str) -> None:
    with pytest.raises(UserError, match=r"policy\.hours must be two different times of a day"):
        Policy(hours=hours)


def test_a_policy_cannot_let_runs_set_what_is_the_sites_own() -> None:
    with pytest.raises(UserError, match=r"policy\.data holds 'manifest', which no run sets"):
        Policy(data=("manifest",))


def test_the_shipped_policy_names_all_that_a_run_may_set() -> None:
    assert {*load(["policy=deployed"])["policy"]["data"]} == {*OF_A_RUN}


def test_a_site_lets_in_so_many_runs_and_those_that_were_purged_count(
    open_site: Callable[..., Site], arrays: dict[str, np.ndarray]
) -> None:
    site = open_site(Policy(max_runs=2))
    for run in ("one", "two", "one"):
        assert not ask(site, ASKED.but(run=run), arrays).has_error()
    assert "has let in 2 runs" in reason(ask(site, ASKED.but(run="three"), arrays))
    site.folder.leave("one", purge=True)
    assert "has let in 2 runs" in reason(ask(site, ASKED.but(run="three"), arrays))
    assert not (site.folder.path / "runs" / "three").exists()


# Approval


def test_a_run_is_answered_once_somebody_approved_of_it_as_it_is(
    open_site: Callable[..., Site], arrays: dict[str, np.ndarray]
) -> None:
    site = open_site(Policy(ask=True))
    assert not ask(site, ASKED.but(action=Action.NAME)).has_error()
    refused = ask(site, ASKED, arrays)
    assert refused.error.code == ERROR_UNAPPROVED
    assert "fedshift client approve trial-1 (policy.ask)" in reason(refused)
    assert not (site.folder.path / "runs").exists()
    staff = StateFolder.opened(site.state)
    (status,) = staff.runs()
    assert (status.run, status.state, status.described.purpose) == ("trial-1", "waiting", "a trial")
    with pytest.raises(UserError, match=r"no run 'trial' waits to be approved; did you mean trial"):
        staff.approve("trial")
    shown = staff.approve("trial-1").described
    assert (shown.method, shown.task, shown.rounds) == ("supervised", "segmentation", 4)
    site = open_site(Policy(ask=True))
    assert not ask(site, ASKED, arrays).has_error()
    assert not ask(site, ASKED.but(rounds=3, round=2), arrays).has_error()
    for change in (
        {"rounds": 5},
        {"method": {**METHOD, "name": "drai"}},
        {"about": {**ASKED.about, "purpose": "another"}},
    ):
        assert ask(site, ASKED.but(**change), arrays).error.code == ERROR_UNAPPROVED
        assert staff.waiting().keys() == {"trial-1"}


def test_a_run_that_was_left_waits_for_nobody(open_site: Callable[..., Site]) -> None:
    site = open_site(Policy(ask=True))
    ask(site, ASKED.but(action=Action.NAME))
    site.folder.leave("trial-1")
    assert not site.folder.waiting()
    assert reason(ask(site, ASKED.but(action=Action.CARD))) == "the site has left this run"
    with pytest.raises(UserError, match="no run 'trial-1' waits to be approved"):
        site.folder.approve("trial-1")


def test_no_flood_of_runs_that_ask_displaces_one_that_waits(
    open_site: Callable[..., Site],
) -> None:
    site = open_site(Policy(ask=True))
    ask(site, ASKED.but(action=Action.NAME))
    for number in range(MOST_WAITING + 3):
        ask(site, ASKED.but(action=Action.NAME, run=f"run-{number}"))
    waiting = [*site.folder.waiting()]
    assert len(waiting) == MOST_WAITING
    assert (waiting[0], waiting[-1]) == ("trial-1", f"run-{MOST_WAITING - 2}")
    late = ASKED.but(action=Action.CARD, run=f"run-{MOST_WAITING}")
    refused = ask(site, late)
    assert refused.error.code == ERROR_REFUSED
    assert f"{MOST_WAITING} runs wait for the site's approval already" in reason(refused)
    # Whoever waits may describe itself anew, and whoever is dealt with makes room.
    anew = ASKED.but(action=Action.CARD, about={**ASKED.about, "purpose": "another"})
    assert ask(site, anew).error.code == ERROR_UNAPPROVED
    site.folder.leave("run-0")
    assert ask(site, late).error.code == ERROR_UNAPPROVED


# A run's data


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"data": {**DATA, "size": 48}}, "data.size"),
        ({"data": {**DATA, "unseen_sites": [NAME]}}, "data.unseen_sites"),
        ({"seed": 1}, "seed"),
    ],
)
def test_the_data_of_a_run_cannot_change_in_its_course(
    changes: dict[str, Any],
    key: str,
    open_site: Callable[..., Site],
    arrays: dict[str, np.ndarray],
) -> None:
    """Cut by another seed, a site would train on what it is tested on."""
    assert not ask(open_site(), ASKED, arrays).has_error()
    site = open_site()
    assert f"{key} cannot change in the course of a run" in reason(
        ask(site, ASKED.but(round=2, **changes), arrays)
    )
    card = ASKED.but(action=Action.CARD, run="trial-2", **changes)
    assert not ask(site, card).has_error()


def test_a_site_is_unseen_or_without_labels_where_the_run_says_so(
    open_site: Callable[..., Site],
) -> None:
    site = open_site()

    def card(**data: Any) -> dict[str, Any]:
        run = "-".join([*data, "x"]).replace("_", "-")
        reply = ask(site, ASKED.but(action=Action.CARD, run=run, data={**DATA, **data}))
        return details(reply.content)

    assert card()["role"] == "train"
    assert card(unseen_sites=["other", NAME])["role"] == "unseen"
    hidden = card(unlabelled_sites=[NAME])["splits"]
    assert (hidden["train"]["labelled"], hidden["test"]["labelled"] > 0) == (0, True)


def test_a_table_of_one_site_is_that_of_the_agent_whatever_it_calls_it(
    example: dict[str, Path], tmp_path: Path
) -> None:
    folders = {"clinic": example[NAME]}
    (site,) = open_sites(folders, tmp_path).values()
    reply = ask(site, ASKED.but(action=Action.CARD))
    assert details(reply.content)["name"] == "clinic"
    many = {"clinic": example[NAME].parent}
    (site,) = open_sites(many, tmp_path / "many").values()
    assert "lists 2 sites and none is called 'clinic'" in reason(
        ask(site, ASKED.but(action=Action.CARD))
    )


def test_a_sites_own_settings_are_no_runs(example: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"data\.size is set by each run and not by a site"):
        own_settings(example[NAME], size=64)
    with pytest.raises(UserError, match=r"holds no MANIFEST\.tsv; write one with `fedshift sites"):
        own_settings(tmp_path)


# What is kept


def test_two_runs_at_once_keep_apart_and_survive_a_restart(
    open_site: Callable[..., Site], arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    """With what a strategy's rule keeps at the site."""
    first, second = (
        ASKED.but(run=run, seed=seed, rules={"dynamic": {"alpha": 0.1}})
        for run, seed in (("first", 0), ("second", 1))
    )

    def trained(site: Site, asked: Instruction, number: int) -> dict[str, np.ndarray]:
        reply = ask(site, asked.but(round=number), arrays)
        assert not reply.has_error(), reason(reply)
        return arrays_of(reply)

    site = open_site()
    alone = {}
    for asked in (first, second):
        apart = Site(NAME, site.data, Policy(), tmp_path / f"alone-{asked.run}")
        alone[asked.run] = [trained(apart, asked, number) for number in (1, 2)]
    for number in (1, 2):
        for asked in (first, second):
            found = trained(site, asked, number)
            expected = alone[asked.run][number - 1]
            assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)
        site = open_site()


def test_state_is_its_owners_alone(
    open_site: Callable[..., Site], arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    ask(open_site(), ASKED.but(rules={"dynamic": {"alpha": 0.1}}), arrays)
    paths = [tmp_path / "state", *(tmp_path / "state").rglob("*")]
    assert len(paths) > 6
    assert {stat.S_IMODE(path.stat().st_mode) & 0o077 for path in paths} == {0}


def test_a_folder_is_one_sites(open_site: Callable[..., Site], tmp_path: Path) -> None:
    site = open_site()
    with pytest.raises(UserError, match=r"holds the state of the site 'hospital-1'; give 'other'"):
        Site("other", site.data, Policy(), tmp_path / "state")
    with pytest.raises(UserError, match="holds no state of a site"):
        StateFolder.opened(tmp_path)


def test_the_ledger_is_a_chain_over_runs_and_restarts(
    open_site: Callable[..., Site], arrays: dict[str, np.ndarray]
) -> None:
    asked = [ASKED.but(run=run) for run in ("first", "second", "first")]
    replies = [ask(open_site(), each, arrays) for each in asked]
    site = open_site()
    path = site.folder.ledger
    found = verify(path)
    assert (found.lines, found.torn) == (len(lines(site)), 0)
    assert {line["run"] for line in lines(site)} == {"first", "second"}
    told = {status.run: status for status in site.folder.runs()}
    sent = sum(line["bytes"] for line in lines(site) if line["run"] == "second")
    assert told["second"].bytes_out == sent > content_bytes(replies[1].content)
    assert (told["first"].round, told["first"].refusals, told["first"].state) == (1, 0, "running")
    assert told["first"].contact > 0

    whole = path.read_bytes()
    half = whole + b'{"site": "hospi'
    path.write_bytes(half)
    ask(site, ASKED.but(round=2), arrays)
    assert verify(path).torn == 1
    kept = path.read_bytes().splitlines(keepends=True)
    for changed in (
        b"".join(kept[:3] + kept[4:]),
        b"".join([*kept[:3], kept[3].replace(b'"round":1', b'"round":2'), *kept[4:]]),
    ):
        path.write_bytes(changed)
        with pytest.raises(UserError, match=r"egress\.jsonl line [45] does not follow"):
            verify(path)


def test_an_answer_leaves_only_when_it_is_in_the_ledger(
    open_site: Callable[..., Site], arrays: dict[str, np.ndarray]
) -> None:
    site = open_site()
    site.folder.ledger.mkdir()
    assert ask(site, ASKED, arrays).has_error()


@pytest.mark.parametrize("where", ["fedshift.client.ledger.append_lines", "kept"])
def test_a_full_disk_is_told_and_nothing_else_leaves(
    open_site: Callable[..., Site],
    arrays: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    """Whether the ledger or the site's own state cannot be written."""
    site = open_site(Policy(texts="rows"))
    assert not ask(site, ASKED.but(action=Action.CARD)).has_error()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "kept":
        monkeypatch.setattr("fedshift.protocol.storage.os.fsync", full)
    else:
        monkeypatch.setattr(where, full)
    assert reason(ask(site, ASKED, arrays)) == "the site's disk is full"
    monkeypatch.undo()
    assert not ask(site, ASKED, arrays).has_error()


def test_a_run_that_was_left_is_refused_ever_after(
    open_site: Callable[..., Site], arrays: dict[str, np.ndarray]
) -> None:
    site = open_site()
    ask(site, ASKED, arrays)
    staff = StateFolder.opened(site.state)
    with pytest.raises(UserError, match="no run 'other' asked anything of this site"):
        staff.leave("other")
    before = staff.ledger.read_bytes()
    staff.leave("trial-1")
    assert reason(ask(site, ASKED.but(round=2), arrays)) == "the site has left this run"
    assert not ask(site, ASKED.but(action=Action.NAME)).has_error()
    assert staff.run("trial-1").path.exists()
    staff.leave("trial-1", purge=True)
    assert [path.name for path in staff.run("trial-1").path.iterdir()] == ["subjects.jsonl"]
    assert reason(ask(open_site(), ASKED.but(round=2), arrays)) == "the site has left this run"
    assert staff.ledger.read_bytes().startswith(before)
    assert verify(staff.ledger).lines > before.count(b"\n")
    (status,) = staff.runs()
    assert (status.state, status.refusals) == ("purged", 2)


def test_a_subject_that_is_forgotten_is_in_nothing_that_follows(
    open_site: Callable[..., Site], arrays: dict[str, np.ndarray]
) -> None:
    site = open_site()
    card = details(ask(site, ASKED.but(action=Action.CARD)).content)
    before = metrics_of(ask(site, ASKED, arrays))["num-examples"]
    run = site._runs["trial-1"]
    gone, *_ = sorted({case.subject for case in run.worker.data.splits["train"]})
    tested = [case.subject for case in run.worker.data.splits["test"]]
    staff = StateFolder.opened(site.state)
    with pytest.raises(UserError, match="the site's table has no subject 'hospital-1-0'"):
        staff.forget("hospital-1-0")
    found = staff.forget(gone)
    assert found.models == {"trial-1": {"federated": [1]}}
    after = metrics_of(ask(site, ASKED.but(round=2), arrays))["num-examples"]
    assert before == card["splits"]["train"]["labelled"] == after + 2
    # Nobody else changed from one split to another.
    assert [case.subject for case in run.worker.data.splits["test"]] == tested
    again = open_site()
    assert metrics_of(ask(again, ASKED.but(round=3), arrays))["num-examples"] == after
    assert staff.forget(gone).models == {"trial-1": {"federated": [1]}}
    summary = ASKED.but(action=Action.SUMMARY, run="trial-2")
    assert details(ask(again, summary).content)["images"] == 5
    text = (staff.run("trial-1").path / "subjects.jsonl").read_text()
    assert gone not in text
    assert text.count("subjects") == 3  # once a process, and where they changed


def test_a_purge_keeps_whom_the_run_was_trained_on(
    open_site: Callable[..., Site], arrays: dict[str, np.ndarray]
) -> None:
    site = open_site()
    ask(site, ASKED, arrays)
    case = site._runs["trial-1"].worker.data.splits["train"][0]
    staff = StateFolder.opened(site.state)
    staff.leave("trial-1", purge=True)
    # The agent removes once more what was in work meanwhile.
    assert ask(site, ASKED.but(round=2), arrays).has_error()
    assert staff.forget(case.subject).models == {"trial-1": {"federated": [1]}}
    (status,) = staff.runs()
    assert (status.state, status.contact) == ("purged", 0.0)


@pytest.mark.parametrize("purge", [True, False])
def test_a_purge_makes_the_room_that_its_note_needs(
    open_site: Callable[..., Site],
    arrays: dict[str, np.ndarray],
    monkeypatch: pytest.MonkeyPatch,
    purge: bool,
) -> None:
    site = open_site()
    ask(site, ASKED, arrays)
    staff = StateFolder.opened(site.state)
    large = staff.run("trial-1").path / "run.json"
    sync = os.fsync

    def full(handle: int) -> None:
        if large.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(handle)

    monkeypatch.setattr("fedshift.protocol.storage.os.fsync", full)
    if purge:
        staff.leave("trial-1", purge=True)
        assert staff.left() == {"trial-1": True} and not large.exists()
    else:
        with pytest.raises(UserError, match=r"is full .* run the same command again$"):
            staff.leave("trial-1")
        assert staff.left() == {} and large.exists()


def test_a_site_takes_the_model_home(
    open_site: Callable[..., Site], arrays: dict[str, np.ndarray], tmp_path: Path
) -> None:
    site = open_site()
    staff = StateFolder.opened(site.state)
    with pytest.raises(UserError, match="the run trial-1 has sent no model to this site yet"):
        staff.run("trial-1").export(tmp_path / "out")
    kept = tuple(sorted(arrays))[:2]
    ask(site, ASKED.but(kept=kept), arrays)
    newer = {name: array + 1 for name, array in arrays.items() if name not in kept}
    ask(site, ASKED.but(action=Action.VALIDATE, kept=kept), newer)
    told = staff.run("trial-1").export(tmp_path / "out")
    assert (told["run"], told["round"], told["personal"]) == ("trial-1", 1, list(kept))
    found = read_tensors(tmp_path / "out" / "global.safetensors")
    assert all((found[name] == newer[name]).all() for name in newer)
    own = read_tensors(tmp_path / "out" / "personal.safetensors")
    assert own.keys() == arrays.keys()
    assert not (own[kept[0]] == arrays[kept[0]]).all()
    # The models that are compared at the end are others', too.
    ask(site, ASKED.but(action=Action.SCORE, splits=("test",)), arrays)
    assert staff.run("trial-1").export(tmp_path / "out")["round"] == 1


def test_what_cannot_be_read_is_answered_and_noted(open_site: Callable[..., Site]) -> None:
    site = open_site()
    for content in (
        RecordDict(),
        RecordDict({CONFIG: ConfigRecord({"instruction": "{", "rounds": 1})}),
    ):
        reply = site.handle(Message(content, dst_node_id=5, message_type="query"))
        assert "instruction" in reason(reply)
    assert [line["purpose"] for line in lines(site)] == ["error", "error"]


def test_the_commands_of_the_staff_need_no_torch() -> None:
    code = (
        "import sys, fedshift.client.agent.folder, fedshift.client.policy; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_device_and_the_threads_are_the_sites(open_site: Callable[..., Site]) -> None:
    before = torch.get_num_threads()
    assert open_site(threads=2).device == torch.device("cpu")
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
