"""The coordinator's process: its commands, its runs, and what becomes of them when it ends."""

from __future__ import annotations

import json
import socket
import stat
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from kit.fleet import SiteFiles, agent, question

from fedshift import UserError
from fedshift.cli.server import runs, sites, stop
from fedshift.client.agent.connection import Address, Denied, Signer, connect
from fedshift.protocol.fleet import Node
from fedshift.protocol.flower import Grid
from fedshift.runs.config import load
from fedshift.runs.serve import Server, ServeSettings, loopback, make_keys, renew
from fedshift.runs.watching import Tell, Watch
from fedshift.server.fleet import control
from fedshift.server.fleet.grid import FleetGrid
from fedshift.server.fleet.roster import Roster

ANYWHERE = ServeSettings(listen="127.0.0.1:0", grpc="127.0.0.1:0", dashboard="0")


class Rounds:
    """In the place of a run: asks all sites once a round, and goes on where ``out`` says."""

    def __init__(self, pause_s: float = 0.05) -> None:
        self.pause_s = pause_s
        self.fault: Exception | None = None

    def __call__(
        self,
        out: Path,
        config: dict[str, Any],
        grid: Grid,
        tell: Tell,
        watch: Watch,
        *,
        sites: Sequence[str],
        wait_s: float | None,
        purpose: str,
        asked_by: str,
    ) -> None:
        if self.fault is not None:
            raise self.fault
        out.mkdir(parents=True, exist_ok=True)
        rounds = out / "done"
        while len(list(grid.get_node_ids())) < len(sites):
            time.sleep(0.02)
        with watch("rounds") as progress:
            progress.expect(config["rounds"])
            for number in range(
                int(rounds.read_text()) if rounds.exists() else 0, config["rounds"]
            ):
                nodes = list(grid.get_node_ids())
                assert isinstance(grid, FleetGrid)
                replies = list(grid.send_and_receive([question(node, number) for node in nodes]))
                assert len(replies) == len(sites) and not any(r.has_error() for r in replies)
                rounds.write_text(str(number + 1))
                progress.advance(f"round {number + 1}")
                time.sleep(self.pause_s)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    make_keys(tmp_path / "state", [])
    return tmp_path / "state"


@contextmanager
def federation(
    state: Path, deploy: Callable[..., None], names: Sequence[str] = ("a", "b")
) -> Iterator[Server]:
    """A server with its enrolled sites, the last of which comes by gRPC."""
    roster = Roster(state)
    files = {name: SiteFiles.made(state.parent / name) for name in names}
    certificates = {name: roster.enrol(name, files[name].public) for name in names}
    with Server(state, ANYWHERE, deploy) as server, ExitStack() as stack:
        for name in names:
            transport = "grpc" if name == names[-1] else "https"
            address = Address(
                f"127.0.0.1:{server.ports[transport]}",
                files[name].key,
                state / "ca.crt",
                transport,  # type: ignore[arg-type]
                certificates[name],
            )
            stack.enter_context(agent(address, files[name]))
        yield server


def config(**values: Any) -> dict[str, Any]:
    return {**load(["federation=manifest", "data.labels={x: 1}", "rounds=3"]), **values}


def run(state: Path, name: str) -> dict[str, Any]:
    (found,) = [each for each in control.ask(state, "runs") if each["name"] == name]
    return dict(found)


def until(state: Path, name: str, told: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while (found := run(state, name))["state"] != told:
        assert time.monotonic() < end, found
        time.sleep(0.05)
    return found


def test_two_runs_at_once_by_both_transports(state: Path) -> None:
    with federation(state, Rounds()) as server:
        for _ in range(2):
            control.ask(state, "submit", config=config(out="x"))
        assert until(state, "x", "done")["why"] == ""
        assert Path(until(state, "x-2", "done")["folder"]) == state / "runs" / "x-2"
        sites = {site["name"]: site for site in control.ask(state, "sites")}
        assert sites["a"]["here"] and sites["b"]["here"] and sites["a"]["bytes_in"] > 0
        assert not server.hub._sent and not server.hub._objects


def test_no_name_is_cut_and_programs_read_json(
    state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with federation(state, Rounds(0.0)) as server:
        long = "a-run-with-a-name-that-is-longer-than-any-terminal-is-wide-" + "x" * 40
        found = server.runs.submit(config(out=long))
        until(state, found["name"], "done")
        runs(state)
        assert f"{found['name']}: done, round" in capsys.readouterr().out
        runs(state, as_json=True)
        assert json.loads(capsys.readouterr().out)[0]["name"] == found["name"]
        sites(state, as_json=True)
        told = json.loads(capsys.readouterr().out)
        assert [site["name"] for site in told] == ["a", "b"] and told[0]["contact"]["here"]


def test_a_run_is_stopped_and_resumed(state: Path) -> None:
    with federation(state, Rounds(pause_s=0.3)):
        control.ask(state, "submit", config=config(out="x", rounds=4))
        while not (state / "runs" / "x" / "done").exists():
            time.sleep(0.02)
        control.ask(state, "stop", name="x")
        assert run(state, "x")["state"] == "stopped"
        with pytest.raises(UserError, match="does not go on: it is stopped"):
            control.ask(state, "stop", name="x")
        control.ask(state, "resume", name="x")
        until(state, "x", "done")
        with pytest.raises(UserError, match="run x is done"):
            control.ask(state, "resume", name="x")
        with pytest.raises(UserError, match="there is no run 'y'"):
            control.ask(state, "stop", name="y")


def test_a_run_that_pauses_is_stopped_at_once(state: Path) -> None:
    paused = threading.Event()

    def waiting(out: Path, config: dict[str, Any], grid: FleetGrid, *_: Any, **__: Any) -> None:
        paused.set()
        grid.pause(600)

    with federation(state, waiting):
        control.ask(state, "submit", config=config(out="x"))
        assert paused.wait(30)
        assert control.ask(state, "stop", name="x") == "stopped"
        assert run(state, "x")["state"] == "stopped"


def test_a_run_that_does_not_end_in_time_is_not_said_to_be_stopped(
    state: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fedshift.runs.submitted._FAREWELL_S", 0.01)
    begun, end = threading.Event(), threading.Event()

    def busy(out: Path, config: dict[str, Any], grid: FleetGrid, *_: Any, **__: Any) -> None:
        begun.set()
        end.wait(60)
        list(grid.get_node_ids())

    with federation(state, busy):
        control.ask(state, "submit", config=config(out="x"))
        assert begun.wait(30)
        stop(state, "x")
        assert "run x is to stop, and still ends what it does" in capsys.readouterr().out
        end.set()
        until(state, "x", "stopped")


def test_a_server_that_starts_again_goes_on_with_its_runs(state: Path) -> None:
    with federation(state, Rounds(pause_s=0.3)):
        control.ask(state, "submit", config=config(out="x", rounds=4))
        while not (state / "runs" / "x" / "done").exists():
            time.sleep(0.02)
    assert json.loads((state / "runs" / "x.json").read_text())["state"] == "going"
    with Server(state, ANYWHERE, Rounds()) as server:
        assert run(state, "x")["state"] == "going"
        assert [peer.name for peer in server.hub.peers] == ["a", "b"]


def test_a_certificate_is_renewed_while_a_run_goes_on(state: Path) -> None:
    with federation(state, Rounds(pause_s=0.2)) as server:
        control.ask(state, "submit", config=config(out="x", rounds=4))
        before = (state / "server.crt").read_bytes()
        renew(state, [])
        assert (state / "server.crt").read_bytes() != before
        node = {peer.name: peer.id for peer in server.hub.peers}["a"]
        for transport in ("https", "grpc"):
            site = state.parent / "a"
            address = Address(
                f"127.0.0.1:{server.ports[transport]}",
                site / "site.key",
                state / "ca.crt",
                transport,  # type: ignore[arg-type]
                state / "sites" / "a.crt",
            )
            # It is known, by both; only no agent of its own.
            with pytest.raises(Denied, match="another agent took over"):
                signer = Signer(site / "site.key")
                connect(address, signer).call("SendNodeHeartbeat", node=Node(node_id=node))
        until(state, "x", "done")


def test_a_fault_of_a_run_ends_neither_the_server_nor_another_run(state: Path) -> None:
    rounds = Rounds()
    with federation(state, rounds):
        for fault, told in (
            (UserError("no site can train; mend that"), "no site can train; mend that"),
            (KeyError("all"), "a fault of fedshift, see the log: KeyError: 'all'"),
        ):
            rounds.fault = fault
            found = control.ask(state, "submit", config=config(out="bad"))
            assert until(state, found["name"], "failed")["why"] == told
        rounds.fault = None
        control.ask(state, "submit", config=config(out="good"))
        until(state, "good", "done")
        control.ask(state, "resume", name="bad")
        until(state, "bad", "done")
    logged = [json.loads(line) for line in (state / "server.jsonl").read_text().splitlines()]
    assert any("KeyError" in line.get("trace", "") for line in logged)


def test_what_cannot_be_run_is_refused(state: Path) -> None:
    with Server(state, ANYWHERE, Rounds()):
        with pytest.raises(UserError, match="no site is enrolled"):
            control.ask(state, "submit", config=config())
        with pytest.raises(UserError, match="no site 'x' is enrolled"):
            control.ask(state, "submit", config=config(), sites=["x"])
        with pytest.raises(UserError, match="rounds must be"):
            control.ask(state, "submit", config=config(rounds="many"))
        with pytest.raises(UserError, match="knows no such command"):
            control.ask(state, "format")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.labels=null", r"data\.labels is not set, and a coordinator has no table"),
        ("baselines=[pooled]", "pooled trains on the images of all sites in one place"),
        ("strategy=pooled", "pooled trains on the images of all sites in one place"),
        ("protocol=leave_one_vendor_out", "protocol=leave_one_vendor_out is of simulations"),
    ],
)
def test_what_no_real_federation_can_run_takes_no_name(
    state: Path, tmp_path: Path, override: str, sentence: str
) -> None:
    Roster(state).enrol("a", SiteFiles.made(tmp_path / "a").public)
    asked = load(["federation=manifest", "data.labels={x: 1}", override])
    with Server(state, ANYWHERE, Rounds()):
        with pytest.raises(UserError, match=sentence):
            control.ask(state, "submit", config=asked)
        assert control.ask(state, "runs") == []


def test_the_state_is_its_owners_alone(state: Path) -> None:
    with Server(state, ANYWHERE, Rounds()):
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in [state, *state.rglob("*")]}
    assert modes[state] == 0o700 and modes[state / control.NAME] == 0o600
    assert not any(mode & 0o077 for path, mode in modes.items() if path.suffix != ".crt")


def test_a_line_that_never_ends_is_refused(state: Path) -> None:
    with Server(state, ANYWHERE, Rounds()), socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(state / control.NAME))
        sending = threading.Thread(target=_pour, args=(channel,), daemon=True)
        sending.start()
        assert "too long" in json.loads(channel.makefile().readline())["error"]


def _pour(channel: socket.socket) -> None:
    try:
        for _ in range(8):
            channel.sendall(b"x" * 2**20)
    except OSError:
        pass


def test_what_keeps_a_server_from_starting_is_one_sentence(state: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no certificate; `fedshift server keys`"):
        Server(tmp_path / "empty", ANYWHERE, Rounds()).__enter__()
    with pytest.raises(UserError, match="no server runs with --state"):
        control.ask(state, "runs")
    with Server(state, ANYWHERE, Rounds()) as server:
        with pytest.raises(UserError, match="another server runs with"):
            Server(state, ANYWHERE, Rounds()).__enter__()
        port = server.ports["https"]
        other = tmp_path / "other"
        make_keys(other, [])
        with pytest.raises(UserError, match=rf"cannot listen on 127.0.0.1:{port}"):
            Server(other, ServeSettings(listen=f"127.0.0.1:{port}"), Rounds()).__enter__()
    with pytest.raises(UserError, match="longer than a socket's may be"):
        control.ask(tmp_path / ("x" * 200), "runs")


@pytest.mark.parametrize("where", ["0.0.0.0:8080", "10.0.0.1:80", "hospital:80", "x", "1.2:99999"])
def test_the_page_is_shown_on_this_machine_alone(where: str) -> None:
    with pytest.raises(UserError, match="--dashboard"):
        loopback(where)


def test_the_page_is_only_read(state: Path) -> None:
    with Server(state, ANYWHERE, Rounds()) as server:
        base = f"http://127.0.0.1:{server.ports['dashboard']}/"
        with urllib.request.urlopen(base) as answer:
            assert "default-src 'none'" in answer.headers["content-security-policy"]
            assert answer.headers["cache-control"] == "no-store"
            assert answer.headers["refresh"]
        for request, status in (
            (urllib.request.Request(base, data=b"x"), 405),
            (urllib.request.Request(base + "v1/control"), 404),
            (urllib.request.Request(base, headers={"host": "evil.example"}), 421),
        ):
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request)
            assert refused.value.code == status
