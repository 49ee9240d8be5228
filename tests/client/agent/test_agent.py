"""The agent's parent against a coordinator that is a hub in this process: what travels, what is
sent again, and what is left when either end stops."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.waiting import until

from fedshift import UserError
from fedshift.client.agent.agent import Agent, Status
from fedshift.client.agent.connection import Denied, Signer, Unreachable
from fedshift.client.agent.folder import StateFolder
from fedshift.client.agent.frames import Outbox
from fedshift.client.agent.keys import make_key
from fedshift.client.agent.status import StatusFile
from fedshift.protocol.fleet import CALLS
from fedshift.protocol.flower import Message
from fedshift.protocol.messages import Action, Instruction, answer, pack_arrays, request
from fedshift.protocol.parcel import Parcel, Wrapper, unwrap
from fedshift.server.fleet.grid import FleetGrid
from fedshift.server.fleet.hub import Hub
from fedshift.server.fleet.service import Denied as Refused
from fedshift.server.fleet.service import Fleet


class Wire:
    """Calls that go straight to the service; ``cut`` loses them before or after they are served."""

    def __init__(self, fleet: Fleet, signer: Signer) -> None:
        self.fleet, self.signer = fleet, signer
        self.cut: Callable[[str], str | None] = lambda name: None
        self.calls: list[str] = []

    def call(self, name: str, **fields: Any) -> Any:
        self.calls.append(name)
        lost = self.cut(name)
        if lost == "before":
            raise Unreachable("cut")
        headers = dict(self.signer.headers())
        try:
            peer = self.fleet.authenticate(headers, "test")
            body = CALLS[name].request(**fields).SerializeToString()
            found = self.fleet.answer(name, headers, peer, body)
        except Refused as refused:
            raise Denied(refused.status, refused.words) from refused
        if lost == "after":
            raise Unreachable("cut")
        return CALLS[name].response.FromString(found)

    def close(self) -> None:
        pass


class Work:
    """Doubles the arrays; ``hold`` keeps a message in work."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.hold = threading.Event()
        self.hold.set()
        self.begun = threading.Event()

    def start(self) -> None:
        pass

    def close(self) -> None:
        pass

    def answer(self, asked: Parcel) -> Parcel:
        message = unwrap(asked.head, asked.contents)
        self.asked.append(message.metadata.message_id)
        self.begun.set()
        assert self.hold.wait(20)
        twice = pack_arrays(
            {name: 2 * array.numpy() for name, array in message.content["arrays"].items()}
        )
        return Wrapper().wrap(Message(content=answer("a", arrays=twice), reply_to=message))


class Federation:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        make_key(folder / "site.key", folder / "site.pub")
        self.refused: list[tuple[str, str]] = []
        self.hub = Hub(tell=lambda name, what: self.refused.append((name, what)))
        self.fleet = Fleet(self.hub)
        self.signer = Signer(folder / "site.key")
        self.hub.enrol("a", self.signer.public)
        self.grid = FleetGrid(self.hub)
        self.running: list[tuple[Agent, threading.Thread]] = []

    def agent(self, signer: Signer | None = None, **more: Any) -> tuple[Agent, Wire, Work]:
        signer = signer or Signer(self.folder / "site.key")
        wire, work = Wire(self.fleet, signer), Work()
        found = Agent(wire, signer.public, Outbox(self.folder / "outbox"), work, **more)
        return found, wire, work

    def start(self, agent: Agent) -> threading.Thread:
        def serve() -> None:
            with suppress(UserError):  # It stands in the status.
                agent.run()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        self.running.append((agent, thread))
        until(lambda: agent.status.state == "connected" or not thread.is_alive(), 20)
        return thread

    def push(self, value: float = 1.0) -> str:
        record = pack_arrays({"net/w": np.full((64, 64), value, "float32")})
        content = request(Instruction(Action.FIT, seed=1), record)
        (node,) = self.hub._peers
        message = Message(content=content, dst_node_id=node, message_type="train", ttl=1e12)
        (name,) = self.grid.push_messages([message])
        return name

    def pull(self, name: str, seconds: float = 20.0) -> Message:
        found: list[Message] = []
        until(lambda: bool(found.extend(self.grid.pull_messages([name])) or found), seconds)
        return found[0]


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Federation]:
    found = Federation(tmp_path)
    yield found
    found.hub.close()
    for agent, _ in found.running:
        agent.drain()
    for _, thread in found.running:
        thread.join(20)


def value(reply: Message) -> float:
    return float(reply.content["arrays"]["net/w"].numpy()[0, 0])


def test_a_message_is_answered_in_few_requests(federation: Federation) -> None:
    agent, wire, _ = federation.agent()
    federation.start(agent)
    assert value(federation.pull(federation.push(3.0))) == 6.0
    until(lambda: agent.status.answered == 1, 20)
    assert wire.calls.count("PullMessages") <= 2
    assert len([call for call in wire.calls if call != "SendNodeHeartbeat"]) <= 20
    assert not federation.hub._sent and not federation.hub._objects
    # Whatever app a coordinator has to offer, it is never asked for.
    assert not {"GetRun", "GetFab"} & {*wire.calls}


def test_of_a_model_that_comes_again_no_chunk_is_fetched_again(federation: Federation) -> None:
    agent, wire, _ = federation.agent()
    federation.start(agent)
    federation.pull(federation.push())
    first, fetched = agent.status.bytes_in, wire.calls.count("PullObject")
    federation.pull(federation.push())
    assert agent.status.bytes_in - first < 0.2 * first
    assert wire.calls.count("PullObject") < 2 * fetched


@pytest.mark.parametrize("lost", ["before", "after"])
@pytest.mark.parametrize(
    "call", ["PullMessages", "PullObject", "PushMessages", "PushObject", "ConfirmMessageReceived"]
)
def test_no_call_that_is_lost_loses_or_repeats_the_work(
    federation: Federation, call: str, lost: str
) -> None:
    agent, wire, work = federation.agent()
    left = [3]

    def cut(name: str) -> str | None:
        if name == call and left[0] and federation.hub._sent:
            left[0] -= 1
            return lost
        return None

    wire.cut = cut
    federation.start(agent)
    assert value(federation.pull(federation.push(2.0))) == 4.0
    until(lambda: agent.status.answered == 1, 20)
    assert len(work.asked) == 1 and not federation.refused


def test_what_is_finished_and_not_taken_is_brought_by_the_next_agent(
    federation: Federation,
) -> None:
    agent, wire, work = federation.agent()
    wire.cut = lambda name: "before" if name == "PushMessages" else None
    federation.start(agent)
    name = federation.push(5.0)
    until(lambda: bool(list((federation.folder / "outbox").glob("*.parcel"))), 20)
    agent._over.set()  # As a kill: nothing more is said.
    second, _, other = federation.agent()
    federation.start(second)
    assert value(federation.pull(name)) == 10.0
    assert len(work.asked) == 1 and not other.asked
    # It is dropped once the coordinator has confirmed it, a moment after it can be read there.
    until(lambda: not list((federation.folder / "outbox").glob("*.parcel")), 20)


def test_what_was_in_work_is_handed_to_the_next_agent(federation: Federation) -> None:
    agent, _, work = federation.agent()
    work.hold.clear()
    federation.start(agent)
    name = federation.push(5.0)
    assert work.begun.wait(10)
    agent._over.set()
    second, _, other = federation.agent()
    federation.start(second)
    assert value(federation.pull(name)) == 10.0
    assert len(other.asked) == 1
    work.hold.set()


def test_an_agent_that_drains_finishes_its_work(federation: Federation) -> None:
    agent, _, work = federation.agent()
    work.hold.clear()
    thread = federation.start(agent)
    name = federation.push(5.0)
    assert work.begun.wait(10)
    agent.drain()
    time.sleep(0.1)
    assert thread.is_alive()
    work.hold.set()
    assert value(federation.pull(name)) == 10.0
    thread.join(10)
    assert not thread.is_alive() and agent.status.state == "ended"
    assert not federation.hub.here(federation.hub.peers[0])


def test_an_older_agent_with_the_same_key_is_told_and_ends(federation: Federation) -> None:
    first, _, _ = federation.agent()
    thread = federation.start(first)
    second, _, _ = federation.agent()
    federation.start(second)
    thread.join(15)
    assert not thread.is_alive() and "another agent took over" in first.status.problem
    assert value(federation.pull(federation.push(1.0))) == 2.0


def test_a_key_that_is_not_enrolled_is_told_so(federation: Federation) -> None:
    make_key(federation.folder / "other.key", federation.folder / "other.pub")
    agent, _, _ = federation.agent(Signer(federation.folder / "other.key"))
    with pytest.raises(UserError, match="not enrolled here, or was revoked"):
        agent.run()


def test_an_agent_whose_key_is_revoked_is_told_and_ends(federation: Federation) -> None:
    agent, _, _ = federation.agent()
    thread = federation.start(agent)
    name = federation.push()
    federation.hub.revoke(federation.hub.peers[0].id)
    thread.join(15)
    assert not thread.is_alive() and "revoked" in agent.status.problem
    assert federation.pull(name).has_error()


@pytest.mark.parametrize(
    ("skew", "words"), [(60.0, "60 s ahead of"), (-400.0, "400 s behind"), (8.0, "8 s ahead of")]
)
def test_a_clock_that_is_off_is_told_in_words(
    federation: Federation, skew: float, words: str
) -> None:
    wrong = Signer(federation.folder / "site.key", clock=lambda: time.time() + skew)
    agent, _, _ = federation.agent(wrong)
    with pytest.raises(UserError, match=words):
        agent.run()


@pytest.mark.parametrize("skew", [4.0, -250.0])
def test_a_clock_that_is_a_little_off_is_no_hindrance(federation: Federation, skew: float) -> None:
    wrong = Signer(federation.folder / "site.key", clock=lambda: time.time() + skew)
    agent, _, _ = federation.agent(wrong)
    federation.start(agent)
    assert value(federation.pull(federation.push(1.0))) == 2.0


def test_another_release_is_told_so(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedshift.client.agent.connection.__version__", "9.9.0")
    agent, _, _ = federation.agent(Signer(federation.folder / "site.key"))
    with pytest.raises(UserError, match="install the same release on both"):
        agent.run()


def test_a_request_that_is_too_large_is_refused_and_named(federation: Federation) -> None:
    agent, _, work = federation.agent(most_bytes=1000)
    federation.start(agent)
    reply = federation.pull(federation.push())
    assert reply.has_error() and "policy.max_message_mb" in reply.error.reason
    assert not work.asked and agent.status.refused == 1


def test_a_coordinator_that_began_anew_is_told_who_is_there(federation: Federation) -> None:
    agent, wire, _ = federation.agent()
    federation.start(agent)
    federation.hub = Hub()
    federation.hub.enrol("a", federation.signer.public)
    wire.fleet.hub = federation.hub
    federation.grid = FleetGrid(federation.hub)
    until(lambda: federation.hub.met(federation.hub.peers[0]), 25)
    assert value(federation.pull(federation.push(4.0))) == 8.0


def test_the_status_tells_of_a_coordinator_that_cannot_be_reached(federation: Federation) -> None:
    told: list[Status] = []
    agent, wire, _ = federation.agent(tell=told.append)
    federation.start(agent)
    wire.cut = lambda name: "before"
    until(lambda: agent.status.problem != "", 20)
    wire.cut = lambda name: None
    until(lambda: agent.status.problem == "", 20)


def test_a_damaged_reply_in_the_outbox_is_dropped(federation: Federation) -> None:
    (federation.folder / "outbox").mkdir()
    (federation.folder / "outbox" / "abc.parcel").write_bytes(b"garbage")
    agent, _, _ = federation.agent()
    federation.start(agent)
    assert value(federation.pull(federation.push(1.0))) == 2.0
    assert not list((federation.folder / "outbox").glob("abc*"))


def test_a_full_disk_keeps_no_half_of_a_reply(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Instruction(action=Action.NAME, seed=0, round=0, rounds=1, steps=0, method={}, task={})
    message = Message(request(asked), dst_node_id=5, message_type=asked.action.message_type)
    outbox = Outbox(tmp_path)

    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fedshift.client.agent.frames.os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            outbox.put("abc", Wrapper().wrap(message))
    assert not list(tmp_path.iterdir())


def test_what_a_kill_cut_short_in_the_outbox_is_removed(tmp_path: Path) -> None:
    (tmp_path / "abc.part").write_bytes(b"half")
    Outbox(tmp_path)
    assert not list(tmp_path.iterdir())


def status_in(state: Path, **changes: Any) -> None:
    StateFolder(state).begin("hospital-1", {})
    StatusFile(state).write(Status(state="connected", **changes))


@pytest.mark.parametrize(("ago", "code"), [(5.0, 0), (45.0, 3)])
def test_a_contact_that_is_old_is_none(
    tmp_path: Path, command: Callable[..., Any], ago: float, code: int
) -> None:
    """Also where the agent is in contact and its disk too full to say so."""
    status_in(tmp_path, contact=time.time() - ago, answered=7)
    shown = command("client", "status", "--state", str(tmp_path))
    assert shown.code == code
    assert ("agent: connected" if code == 0 else "agent: out of contact") in shown.out
    assert ("no contact was noted for 30 s" in shown.out) == (code == 3)
    assert "7 messages answered, 0.0 MB in" in shown.out
    as_json = command("client", "status", "--json", "--state", str(tmp_path))
    assert as_json.code == code and ("out of contact" in as_json.out) == (code == 3)


def test_what_was_not_fetched_is_told(tmp_path: Path, command: Callable[..., Any]) -> None:
    status_in(tmp_path, contact=time.time(), refused=2)
    shown = command("client", "status", "--state", str(tmp_path))
    assert "0 messages answered, 2 not fetched" in shown.out


def test_the_status_is_its_owners_alone(tmp_path: Path) -> None:
    StatusFile(tmp_path).write(Status())
    assert (tmp_path / "status.json").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("key", "name", "nearest"),
    [
        ("methods", "supervisd", "supervised"),
        ("rules", "proximl", "proximal"),
        ("strategies", "fedagv", "fedavg"),
    ],
)
def test_a_name_in_the_policy_that_is_nothings_is_a_warning_of_agent_and_doctor(
    tmp_path: Path,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    key: str,
    name: str,
    nearest: str,
) -> None:
    module = importlib.import_module("fedshift.cli.client")
    monkeypatch.setattr(module, "run_site", lambda *_: None)
    monkeypatch.setattr("fedshift.cli.client.doctor.examine", lambda *_: ())
    (tmp_path / "MANIFEST.tsv").write_text("site\tsubject\timage\n")
    policy = tmp_path / "policy.yaml"
    policy.write_text(json.dumps({key: [nearest, name, "FedAvg" if key == "strategies" else "*"]}))
    options = [
        *("--site", "hospital-1", "--data", str(tmp_path), "--server", "localhost:9"),
        *("--key", str(tmp_path / "site.key"), "--policy", str(policy)),
    ]
    for one, sign in (("client", "Warning:"), ("doctor", "warning policy")):
        shown = command(one, *options)
        told = " ".join((shown.out + shown.err).split())
        assert told.count(sign) == 1
        assert f"policy.{key} names '{name}'" in told and f"did you mean {nearest}" in told


def test_the_parent_has_no_torch() -> None:
    """It stays small, and no array of a coordinator is read in the process that it reaches."""
    program = (
        "import sys; import fedshift.client.agent.run, fedshift.cli.client; "
        "print({'torch', 'fedshift.client.worker'} & sys.modules.keys())"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "set()"


def test_a_full_disk_costs_no_reply(
    federation: Federation, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Outbox, "put", full)
    agent, _, _ = federation.agent()
    federation.start(agent)
    assert value(federation.pull(federation.push(1.0))) == 2.0
