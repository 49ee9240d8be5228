"""Who is let in, and what is said to who is not: by requests made by hand over HTTPS, and by the
agent's own connection."""

from __future__ import annotations

import base64
import http.client
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from kit.fleet import ByHand, SiteFiles, agent, echo, question

from fedshift import UserError
from fedshift.client.agent.connection import Address, Denied, Signer, Unreachable, connect, trust
from fedshift.protocol.fleet import PUBLIC_KEY, VERSION, MessageHead, Node
from fedshift.protocol.parcel import Parcel, ids
from fedshift.server.fleet import keys
from fedshift.server.fleet.asgi import listening
from fedshift.server.fleet.grid import FleetGrid
from fedshift.server.fleet.grpc import GrpcServer
from fedshift.server.fleet.https import HttpsServer
from fedshift.server.fleet.hub import Hub
from fedshift.server.fleet.service import LARGEST_REQUEST, Fleet


@dataclass
class World:
    """A coordinator over HTTPS, and an enrolled site that is asked by hand."""

    folder: Path
    hub: Hub
    port: int
    site: SiteFiles
    lines: list[str] = field(default_factory=list)
    told: list[tuple[str, str]] = field(default_factory=list)

    @property
    def authority(self) -> Path:
        return self.folder / "ca.crt"

    def by_hand(self, signer: Signer | None) -> ByHand:
        return ByHand(self.port, self.authority, signer)

    def enrolled(self, name: str) -> SiteFiles:
        files = SiteFiles.made(self.folder / name)
        self.hub.enrol(name, files.pem)
        return files

    def address(self, files: SiteFiles, authority: Path | None = None) -> Address:
        return Address(f"127.0.0.1:{self.port}", files.key, authority or self.authority)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    keys.make_authority(tmp_path)
    keys.make_certificate(tmp_path, ["127.0.0.1"])
    lines: list[str] = []
    told: list[tuple[str, str]] = []
    hub = Hub(tell=lambda site, what: told.append((site, what)))
    fleet = Fleet(hub, log=lines.append)
    files = {"certificate": tmp_path / "server.crt", "key": tmp_path / "server.key"}
    with HttpsServer(fleet, "127.0.0.1", 0, **files) as server:
        found = World(tmp_path, hub, server.port, SiteFiles(tmp_path, tmp_path, tmp_path))
        found.lines, found.told = lines, told
        found.site = found.enrolled("hospital-1")
        yield found
        hub.close()


def test_nothing_is_served_but_the_fleet_api(world: World) -> None:
    by_hand = world.by_hand(Signer(world.site.key))
    for path in ("/", "/docs", "/openapi.json", "/v1/control", "/v1/runtime", "/v1/fleet/", "/x"):
        assert by_hand.post(path).status_code == 404, path
        assert by_hand.client.get(path).status_code == 404, path
    assert by_hand.client.get("/v1/fleet/pull-messages").status_code == 405


def test_a_body_over_the_limit_is_refused_and_logged(world: World) -> None:
    signed = dict(Signer(world.site.key).headers())
    told = http.client.HTTPSConnection(
        "127.0.0.1", world.port, context=trust(world.authority), timeout=30
    )
    told.putrequest("POST", "/v1/fleet/push-object")
    for name, value in {**signed, "content-length": str(LARGEST_REQUEST + 1)}.items():
        told.putheader(name, value)
    told.endheaders()
    assert told.getresponse().status == 413
    chunks = (b"\0" * 2**20 for _ in range(17))
    with suppress(httpx.TransportError):  # It is hung up on before it has sent all.
        response = world.by_hand(None).client.post(
            "/v1/fleet/push-object", content=chunks, headers=signed
        )
        assert response.status_code == 413
    assert sum("hospital-1 was denied PushObject" in line for line in world.lines) == 2


def test_without_a_signature_nothing_is_read(world: World) -> None:
    status, words = world.by_hand(None).denied("PullMessages")
    assert (status, words) == (401, "the request carries no signature of a site's key")


def test_an_unknown_key_is_refused_in_words_at_both_ends(world: World, tmp_path: Path) -> None:
    stranger = SiteFiles.made(tmp_path / "stranger")
    with agent(world.address(stranger), stranger) as (found, thread):
        thread.join(20)
        assert not thread.is_alive()
    assert "the key is not enrolled here, or was revoked" in found.status.problem
    assert any("127.0.0.1 was denied: the key is not enrolled" in line for line in world.lines)


def test_a_revoked_key_is_refused_from_that_moment_on(world: World) -> None:
    with agent(world.address(world.site), world.site) as (found, thread):
        _until(lambda: found.status.state == "connected")
        (peer,) = world.hub.peers
        world.hub.revoke(peer.id)
        thread.join(20)
        assert not thread.is_alive()
    assert "or was revoked" in found.status.problem


def test_a_signature_of_another_key_opens_nothing(world: World, tmp_path: Path) -> None:
    stranger = SiteFiles.made(tmp_path / "stranger")
    known = base64.b64encode(Signer(world.site.key).public).decode()
    by_hand = world.by_hand(Signer(stranger.key))
    response = by_hand.post("/v1/fleet/pull-messages", **{PUBLIC_KEY: known})
    assert response.status_code == 401
    assert response.json()["detail"] == "the request's signature is not one of its key"


def test_the_signature_of_an_earlier_key_opens_nothing_for_the_one_in_its_place(
    world: World, tmp_path: Path
) -> None:
    before = Signer(world.site.key)
    old = dict(before.headers())
    assert world.by_hand(before).call("ActivateNode", public_key=before.public).status_code == 200
    (peer,) = world.hub.peers
    renewed = SiteFiles.made(tmp_path / "renewed")
    world.hub.enrol("hospital-1", renewed.pem, peer.id)
    known = base64.b64encode(Signer(renewed.key).public).decode()
    response = world.by_hand(None).post("/v1/fleet/pull-messages", **{**old, PUBLIC_KEY: known})
    assert response.json()["detail"] == "the request's signature is not one of its key"


@pytest.mark.parametrize(
    ("off", "words"),
    [
        (60.0, "is 60 s ahead of the coordinator's"),
        (8.0, "is 8 s ahead of the coordinator's"),
        (-400.0, "is 400 s behind the coordinator's"),
        (4.0, None),
        (-300.0, None),
    ],
)
def test_a_clock_that_is_off_is_told_by_how_much(
    world: World, off: float, words: str | None
) -> None:
    signer = Signer(world.site.key, clock=lambda: time.time() + off)
    response = world.by_hand(signer).call("ActivateNode", public_key=signer.public)
    if words is None:
        assert response.status_code == 200
        return
    assert response.status_code == 401 and words in response.json()["detail"]
    assert any(words in line and "hospital-1" in line for line in world.lines)


def test_another_release_is_refused_with_both_versions(world: World) -> None:
    response = world.by_hand(Signer(world.site.key)).post(
        "/v1/fleet/activate-node", **{VERSION: "99.0.0"}
    )
    assert response.status_code == 426
    assert "and the site 99.0.0: install the same release" in response.json()["detail"]


def test_a_node_of_another_key_is_refused(world: World) -> None:
    other = world.enrolled("hospital-2")
    signer = Signer(world.site.key)
    by_hand = world.by_hand(signer)
    by_hand.answer("ActivateNode", public_key=signer.public)
    node = Node(node_id=world.hub.enrol("hospital-2", Signer(other.key).public))
    assert by_hand.denied("PullMessages", node=node)[0] == 401
    assert by_hand.denied("ActivateNode", public_key=Signer(other.key).public)[0] == 401


def test_two_agents_with_one_key_are_told(world: World) -> None:
    first, second = Signer(world.site.key), Signer(world.site.key)
    node = world.by_hand(first).answer("ActivateNode", public_key=first.public).node_id
    world.by_hand(second).answer("ActivateNode", public_key=second.public)
    status, words = world.by_hand(first).denied("PullMessages", node=Node(node_id=node))
    assert status == 409 and "another agent took over with the key of site hospital-1" in words
    assert any("two agents share its key" in line for line in world.lines)


def test_before_it_is_activated_an_agent_is_asked_to_be(world: World) -> None:
    signer = Signer(world.site.key)
    (peer,) = world.hub.peers
    assert world.by_hand(signer).denied("PullMessages", node=Node(node_id=peer.id))[0] == 410


def test_garbage_is_no_request(world: World) -> None:
    signer = Signer(world.site.key)
    by_hand = world.by_hand(signer)
    by_hand.answer("ActivateNode", public_key=signer.public)
    response = by_hand.post("/v1/fleet/pull-messages", b"\xff\xff\xff garbage")
    assert response.status_code == 400
    assert response.json()["detail"] == "the request is no PullMessagesRequest"


def test_bad_replies_are_refused_and_named_and_harm_no_other_site(world: World) -> None:
    honest = world.enrolled("a-honest")
    signer = Signer(world.site.key)
    bad = world.by_hand(signer)
    node = Node(node_id=bad.answer("ActivateNode", public_key=signer.public).node_id)
    with agent(world.address(honest), honest), FleetGrid(world.hub) as grid:
        _until(lambda: len(list(grid.get_node_ids())) == 2)
        by_name = {name: number for number, name in grid.enrolled.items()}
        first, second = grid.push_messages([question(by_name[n]) for n in sorted(by_name)])
        asked = _pulled(bad, node)
        reply = echo(asked)
        stranger = MessageHead.FromString(reply.head.SerializeToString())
        stranger.metadata.reply_to_message_id = first  # That of the other site.
        refused = bad.answer(
            "PushMessages",
            node=node,
            messages_list=[stranger],
            message_object_trees=[reply.tree],
        )
        assert list(refused.results.values()) == [1] and not refused.objects_to_push
        taken = bad.answer(
            "PushMessages",
            node=node,
            messages_list=[reply.head],
            message_object_trees=[reply.tree],
        )
        wanted = taken.objects_to_push[0]
        status, words = bad.denied(
            "PushObject", node=node, object_id=wanted, object_content=b"garbage"
        )
        assert status == 422 and "not what its hash says" in words
        replies = {}
        for name in (first, second):
            while not (found := list(grid.pull_messages([name]))):
                pass
            replies[name] = found[0]
        assert replies[first].has_content()
        assert replies[second].has_error()
        assert "its reply was refused" in replies[second].error.reason
    assert [site for site, _ in world.told] == ["hospital-1", "hospital-1"]
    assert {peer.name: peer.refused for peer in world.hub.peers} == {
        "a-honest": 0,
        "hospital-1": 2,
    }


def _pulled(by_hand: ByHand, node: Node) -> Parcel:
    pulled = by_hand.answer("PullMessages", node=node)
    head, tree = pulled.messages_list[0], pulled.message_object_trees[0]
    contents = {
        name: by_hand.answer("PullObject", node=node, object_id=name).object_content
        for name in ids(tree)
    }
    return Parcel(head, tree, contents)


def test_a_wrong_authority_is_told_at_the_site(world: World, tmp_path: Path) -> None:
    keys.make_authority(tmp_path / "other")
    address = world.address(world.site, tmp_path / "other" / "ca.crt")
    connection = connect(address, Signer(world.site.key))
    with pytest.raises(Unreachable, match="certificate verify failed"):
        connection.call("PullMessages")


def test_an_expired_certificate_is_told_and_renewed_while_the_server_runs(
    tmp_path: Path,
) -> None:
    keys.make_authority(tmp_path)
    keys.make_certificate(tmp_path, ["127.0.0.1"], days=0)
    site = SiteFiles.made(tmp_path / "site")
    hub = Hub()
    hub.enrol("site", site.pem)
    files = {"certificate": tmp_path / "server.crt", "key": tmp_path / "server.key"}
    with HttpsServer(Fleet(hub), "127.0.0.1", 0, **files) as server:
        address = Address(f"127.0.0.1:{server.port}", site.key, tmp_path / "ca.crt")
        signer = Signer(site.key)
        with pytest.raises(Unreachable, match="certificate has expired"):
            connect(address, signer).call("ActivateNode", public_key=signer.public)
        keys.make_certificate(tmp_path, keys.hosts_of(files["certificate"]))
        server.renew()
        assert connect(address, signer).call("ActivateNode", public_key=signer.public).node_id


def test_grpc_asks_for_a_certificate_of_the_authority(tmp_path: Path) -> None:
    keys.make_authority(tmp_path)
    keys.make_certificate(tmp_path, ["127.0.0.1"])
    keys.make_authority(tmp_path / "other")
    site = SiteFiles.made(tmp_path / "site")
    public = site.pem
    hub = Hub()
    hub.enrol("site", public)
    files = {"certificate": tmp_path / "server.crt", "key": tmp_path / "server.key"}
    authority = tmp_path / "ca.crt"
    signer = Signer(site.key)
    with GrpcServer(Fleet(hub), "127.0.0.1", 0, **files, authority=authority) as server:
        where = f"127.0.0.1:{server.port}"
        (tmp_path / "good.crt").write_bytes(keys.certify(tmp_path, "site", public))
        (tmp_path / "bad.crt").write_bytes(keys.certify(tmp_path / "other", "site", public))
        good = Address(where, site.key, authority, "grpc", tmp_path / "good.crt")
        bad = Address(where, site.key, authority, "grpc", tmp_path / "bad.crt")
        assert connect(good, signer).call("ActivateNode", public_key=signer.public).node_id
        with pytest.raises(Unreachable):
            connect(bad, signer).call("ActivateNode", public_key=signer.public)
        stranger = SiteFiles.made(tmp_path / "stranger")
        (tmp_path / "s.crt").write_bytes(keys.certify(tmp_path, "stranger", stranger.pem))
        unknown = Address(where, stranger.key, authority, "grpc", tmp_path / "s.crt")
        with pytest.raises(Denied, match="the key is not enrolled here") as denied:
            connect(unknown, Signer(stranger.key)).call("ActivateNode", public_key=b"")
        assert denied.value.status == 401


def test_a_taken_port_and_a_strange_certificate_are_one_sentence(tmp_path: Path) -> None:
    keys.make_authority(tmp_path)
    keys.make_certificate(tmp_path, ["127.0.0.1"])
    files = {"certificate": tmp_path / "server.crt", "key": tmp_path / "server.key"}
    with listening("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"cannot listen on 127.0.0.1:{port}"):
            HttpsServer(Fleet(Hub()), "127.0.0.1", port, **files)
        with pytest.raises(UserError, match=rf"cannot listen on 127.0.0.1:{port}"):
            GrpcServer(Fleet(Hub()), "127.0.0.1", port, **files, authority=tmp_path / "ca.crt")
    strange = {**files, "key": tmp_path / "ca.key"}
    with pytest.raises(UserError, match=r"cannot be used together .* keys --renew"):
        HttpsServer(Fleet(Hub()), "127.0.0.1", 0, **strange)


def _until(holds: Callable[[], bool]) -> None:
    """Wait; the suite's own limit ends what never comes."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)
