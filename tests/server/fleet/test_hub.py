"""What waits for whom: handing out, once and again; what is late, doubled, foreign or too large;
and nothing is left when the last message is gone."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest
from kit.fleet import echo, question

from fedshift.protocol.fleet import MessageHead
from fedshift.protocol.flower import Message
from fedshift.protocol.parcel import Parcel, Wrapper, ids, unwrap
from fedshift.server.fleet.grid import FleetGrid, Stopped
from fedshift.server.fleet.hub import Hub, Peer, Refusal

FOREVER = float("inf")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def told() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def hub(clock: Clock, told: list[tuple[str, str]]) -> Hub:
    return Hub(clock=clock, most_bytes=1e5, tell=lambda site, what: told.append((site, what)))


@pytest.fixture
def site(hub: Hub) -> Callable[[str], Peer]:
    def enrolled(name: str) -> Peer:
        hub.enrol(name, name.encode())
        peer = hub.peer(name.encode())
        assert peer is not None
        hub.heard(peer, 0)
        return peer

    return enrolled


def send(hub: Hub, peer: Peer, until: float = FOREVER, seed: int = 1) -> str:
    (name,) = hub.send([(Wrapper().wrap(question(peer.id, seed)), peer.id)], until)
    return name


def fetched(hub: Hub, peer: Peer) -> Parcel:
    """The site's next message, with its objects."""
    found = hub.take(peer, 0)
    assert found is not None
    head, tree = found
    contents = {name: hub.content(peer, name) for name in ids(tree)}
    assert all(content is not None for content in contents.values())
    return Parcel(head, tree, contents)  # type: ignore[arg-type]


def bring(hub: Hub, peer: Peer, reply: Parcel) -> None:
    for name in hub.announce(peer, reply.head, reply.tree):
        assert hub.put(peer, name, reply.contents[name])


def test_a_message_is_handed_out_once_and_answered(hub: Hub, site: Callable[[str], Peer]) -> None:
    peer = site("a")
    name = send(hub, peer)
    asked = fetched(hub, peer)
    assert hub.take(peer, 0) is None
    assert hub.awaited() == {"a": 1}
    bring(hub, peer, echo(asked))
    assert hub.awaited() == {}
    outcome = hub.receive(name, 0)
    assert outcome is not None and outcome.reply is not None
    assert outcome.arrived == hub.now()
    assert not hub._objects and not hub._holders and not hub._sent


def test_it_is_handed_out_again_when_its_answer_was_lost(
    hub: Hub, site: Callable[[str], Peer]
) -> None:
    peer = site("a")
    send(hub, peer)
    first = hub.take(peer, 0)
    assert first is not None
    assert hub.take(peer, 0) == first  # Nothing of it was fetched.
    fetched_one = next(iter(hub._sent.values())).objects[0]
    hub.content(peer, fetched_one)
    assert hub.take(peer, 0) is None
    hub.activate(peer, "anew")
    assert hub.take(peer, 0) == first


def test_an_answered_message_is_not_handed_out_to_an_agent_that_starts_anew(
    hub: Hub, site: Callable[[str], Peer]
) -> None:
    peer = site("a")
    send(hub, peer)
    bring(hub, peer, echo(fetched(hub, peer)))
    hub.activate(peer, "anew")
    assert hub.take(peer, 0) is None


def test_who_asks_again_ends_the_question_before(site: Callable[[str], Peer]) -> None:
    hub = Hub()
    hub.enrol("a", b"a")
    peer = hub.peer(b"a")
    assert peer is not None
    found: list[object] = []
    waiting = threading.Thread(target=lambda: found.append(hub.take(peer, 30)), daemon=True)
    waiting.start()
    while not peer.polls:
        time.sleep(0.01)
    hub.activate(peer, "anew")
    waiting.join(10)
    assert found == [None]
    send(hub, peer)
    assert hub.take(peer, 0) is not None


def test_without_a_deadline_a_site_away_for_longer_than_the_lease_is_given_up(
    hub: Hub, site: Callable[[str], Peer], clock: Clock
) -> None:
    peer = site("a")
    name = send(hub, peer)
    clock.now += hub.lease_s
    assert hub.receive(name, 0) is None
    clock.now += 1
    outcome = hub.receive(name, 0)
    assert outcome is not None and "not been heard of for 15 s" in outcome.fault


def test_while_a_deadline_runs_no_silence_drops_a_site(
    hub: Hub, site: Callable[[str], Peer], clock: Clock
) -> None:
    peer = site("a")
    name = send(hub, peer, until=clock.now + 100)
    asked = fetched(hub, peer)
    clock.now += 99
    assert not hub.here(peer) and hub.receive(name, 0) is None
    bring(hub, peer, echo(asked))
    clock.now += 50  # The coordinator comes late, the reply did not.
    outcome = hub.receive(name, 0)
    assert outcome is not None and outcome.reply is not None and outcome.arrived == clock.now - 50


def test_a_late_reply_is_refused_counted_and_told(
    hub: Hub, site: Callable[[str], Peer], clock: Clock, told: list[tuple[str, str]]
) -> None:
    peer, other = site("a"), site("b")
    name = send(hub, peer, until=clock.now + 10)
    asked = fetched(hub, peer)
    clock.now += 11
    outcome = hub.receive(name, 0)
    assert outcome is not None and outcome.fault == "it sent no reply in time"
    with pytest.raises(Refusal, match="nobody waited for it any more"):
        bring(hub, peer, echo(asked))
    assert peer.refused == 1 and other.refused == 0
    assert told == [("a", "its reply came when nobody waited for it any more")]


def test_a_reply_that_is_announced_and_not_sent_is_late_too(
    hub: Hub, site: Callable[[str], Peer], clock: Clock
) -> None:
    peer = site("a")
    name = send(hub, peer, until=clock.now + 10)
    reply = echo(fetched(hub, peer))
    missing = hub.announce(peer, reply.head, reply.tree)
    clock.now += 11
    outcome = hub.receive(name, 0)
    assert outcome is not None and outcome.reply is None
    assert not hub.put(peer, missing[0], reply.contents[missing[0]])
    assert not hub._objects and not hub._sent


def test_what_is_late_leaves_the_memory_with_the_next_message(
    hub: Hub, site: Callable[[str], Peer], clock: Clock
) -> None:
    peer = site("a")
    grid = FleetGrid(hub)
    for number in range(3):
        grid.push_messages([question(peer.id, number, ttl=10)])
        reply = echo(fetched(hub, peer))
        hub.announce(peer, reply.head, reply.tree)
        clock.now += 11
    assert len(hub._sent) == len(grid._asked) == 1
    with grid:
        pass
    assert not hub._sent and not hub._objects


def test_a_reply_that_comes_twice_is_taken_once(
    hub: Hub, site: Callable[[str], Peer], told: list[tuple[str, str]]
) -> None:
    peer = site("a")
    name = send(hub, peer)
    asked = fetched(hub, peer)
    reply = echo(asked)
    bring(hub, peer, reply)
    assert hub.announce(peer, reply.head, reply.tree) == []  # Its answer was lost: asked once more.
    again = unwrap(asked.head, asked.contents)
    with pytest.raises(Refusal, match="replied once more"):
        bring(hub, peer, Wrapper().wrap(Message(content=again.content, reply_to=again)))
    outcome = hub.receive(name, 0)
    assert outcome is not None and outcome.reply is not None
    assert len(told) == 1 and peer.refused == 1


def test_a_site_can_answer_for_nobody_else(
    hub: Hub, site: Callable[[str], Peer], told: list[tuple[str, str]]
) -> None:
    honest, other = site("honest"), site("other")
    name = send(hub, honest)
    asked = fetched(hub, honest)
    reply = echo(asked)
    for thief_of in (reply, foreign(reply)):
        with pytest.raises(Refusal, match="no message of this coordinator"):
            hub.announce(other, thief_of.head, thief_of.tree)
    assert hub.content(other, next(iter(asked.contents))) is None
    bring(hub, honest, reply)
    outcome = hub.receive(name, 0)
    assert outcome is not None and outcome.reply is not None
    assert [site for site, _ in told] == ["other", "other"] and honest.refused == 0


def foreign(reply: Parcel) -> Parcel:
    """A reply to a message that never was."""
    changed = MessageHead.FromString(reply.head.SerializeToString())
    changed.metadata.reply_to_message_id = "0" * 64
    return replace(reply, head=changed)


def test_an_object_that_is_not_its_hash_is_refused_and_ends_the_reply(
    hub: Hub, site: Callable[[str], Peer]
) -> None:
    peer = site("a")
    name = send(hub, peer)
    reply = echo(fetched(hub, peer))
    missing = hub.announce(peer, reply.head, reply.tree)
    with pytest.raises(Refusal, match="not what its hash says"):
        hub.put(peer, missing[0], b"garbage")
    outcome = hub.receive(name, 0)
    assert outcome is not None and "its reply was refused" in outcome.fault
    assert peer.refused == 1


def test_a_reply_that_is_too_large_is_refused(hub: Hub, site: Callable[[str], Peer]) -> None:
    hub.most_bytes = 1000
    peer = site("a")
    name = send(hub, peer)
    with pytest.raises(Refusal, match="--max-message-mb"):
        bring(hub, peer, echo(fetched(hub, peer)))
    outcome = hub.receive(name, 0)
    assert outcome is not None and "--max-message-mb" in outcome.fault


def test_objects_that_messages_share_stay_until_the_last_of_them_is_gone(
    hub: Hub, site: Callable[[str], Peer]
) -> None:
    peers = [site("a"), site("b")]
    grid = FleetGrid(hub)
    shared = question(0).content
    messages = [
        Message(content=shared, dst_node_id=peer.id, message_type="train", ttl=1e12)
        for peer in peers
    ]
    first, second = grid.push_messages(messages)
    bring(hub, peers[0], echo(fetched(hub, peers[0])))
    assert len(list(grid.pull_messages([first]))) == 1
    bring(hub, peers[1], echo(fetched(hub, peers[1])))  # All its objects are still there.
    assert len(list(grid.pull_messages([second]))) == 1
    assert not hub._objects and not hub._holders and not grid._asked


def test_a_revoked_site_is_answered_for_at_once(hub: Hub, site: Callable[[str], Peer]) -> None:
    peer = site("a")
    name = send(hub, peer)
    fetched(hub, peer)
    hub.revoke(peer.id)
    outcome = hub.receive(name, 0)
    assert outcome is not None and outcome.fault == "its key was revoked"
    assert hub.peer(b"a") is None and hub.take(peer, 30) is None
    assert not hub._objects


def test_a_new_key_takes_over_what_the_site_was_asked(
    hub: Hub, site: Callable[[str], Peer]
) -> None:
    peer = site("a")
    name = send(hub, peer)
    fetched(hub, peer)
    hub.enrol("a", b"new", peer.id)
    assert hub.peer(b"a") is None
    renewed = hub.peer(b"new")
    assert renewed is not None and renewed.id == peer.id
    hub.activate(renewed, "anew")
    bring(hub, renewed, echo(fetched(hub, renewed)))
    outcome = hub.receive(name, 0)
    assert outcome is not None and outcome.reply is not None


def test_a_grid_that_is_stopped_ends_its_run_and_withdraws_what_it_asked(
    hub: Hub, site: Callable[[str], Peer]
) -> None:
    peer = site("a")
    with pytest.raises(Stopped), FleetGrid(hub) as grid:
        (name,) = grid.push_messages([question(peer.id)])
        grid.stop()
        list(grid.pull_messages([name]))
    assert not hub._sent and not hub._objects
    assert hub.take(peer, 0) is None
