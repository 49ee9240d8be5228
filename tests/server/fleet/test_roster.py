"""Who is enrolled, under what name and by which key, in a file that a restart reads."""

from __future__ import annotations

import json
import stat
from pathlib import Path

import pytest
from cryptography import x509
from kit.fleet import SiteFiles

from fedshift import UserError
from fedshift.server.fleet import keys
from fedshift.server.fleet.hub import Hub
from fedshift.server.fleet.roster import Roster


@pytest.fixture
def state(tmp_path: Path) -> Path:
    keys.make_authority(tmp_path / "state")
    return tmp_path / "state"


def test_sites_are_enrolled_listed_revoked_and_enrolled_again(state: Path, tmp_path: Path) -> None:
    roster = Roster(state)
    site = SiteFiles.made(tmp_path / "a")
    certificate = x509.load_pem_x509_certificate(roster.enrol("a", site.public).read_bytes())
    assert certificate.subject.rfc4514_string() == "CN=a"
    hub = Hub()
    Roster(state).admit(hub)
    assert [peer.name for peer in hub.peers] == ["a"]
    roster.revoke("a")
    Roster(state).admit(hub)
    assert hub.peers == []
    assert Roster(state).read()[0].revoked is not None
    roster.enrol("a", site.public)
    Roster(state).admit(hub)
    assert hub.peer(site.pem) is not None


def test_a_new_key_keeps_the_sites_node(state: Path, tmp_path: Path) -> None:
    roster = Roster(state)
    first, second = SiteFiles.made(tmp_path / "a"), SiteFiles.made(tmp_path / "b")
    roster.enrol("a", first.public)
    with pytest.raises(UserError, match="enrolled with another key; add --replace"):
        roster.enrol("a", second.public)
    node = roster.read()[0].node
    roster.enrol("a", second.public, replacing=True)
    (found,) = roster.read()
    assert found.node == node and found.key == second.pem.decode()


def test_one_key_serves_one_site(state: Path, tmp_path: Path) -> None:
    roster = Roster(state)
    site = SiteFiles.made(tmp_path / "a")
    roster.enrol("a", site.public)
    with pytest.raises(UserError, match="is that of site a: one key serves one site"):
        roster.enrol("b", site.public)


def test_a_key_enrolled_under_a_wrong_name_takes_part_under_the_right_one(
    state: Path, tmp_path: Path
) -> None:
    site = SiteFiles.made(tmp_path / "a")
    roster, hub = Roster(state), Hub()
    # The revoked one sorts first, then last: neither order may touch the other.
    for wrong, right in (("a", "b"), ("d", "c")):
        roster.enrol(wrong, site.public)
        roster.revoke(wrong)
        roster.enrol(right, site.public)
        roster.admit(hub)
        peer = hub.peer(site.pem)
        assert peer is not None and peer.name == right
        roster.admit(hub)
        assert hub.peer(site.pem) is peer
        roster.revoke(right)
    assert len({found.node for found in roster.read()}) == 4


def test_a_replaced_key_gives_its_next_site_a_node_of_its_own(state: Path, tmp_path: Path) -> None:
    first, second = SiteFiles.made(tmp_path / "1"), SiteFiles.made(tmp_path / "2")
    roster, hub = Roster(state), Hub()
    roster.enrol("a", first.public)
    roster.enrol("a", second.public, replacing=True)
    roster.enrol("b", first.public)
    roster.admit(hub)
    assert [(peer.name, peer.key) for peer in hub.peers] == [("a", second.pem), ("b", first.pem)]


def test_a_roster_of_an_earlier_release_whose_revoked_site_shares_a_node(
    state: Path, tmp_path: Path
) -> None:
    site = SiteFiles.made(tmp_path / "a")
    roster, hub = Roster(state), Hub()
    roster.enrol("a", site.public)
    path = state / "sites" / "sites.json"
    (entry,) = json.loads(path.read_text())
    path.write_text(json.dumps([entry, {**entry, "name": "b", "revoked": entry["since"]}]))
    roster.admit(hub)
    assert [peer.name for peer in hub.peers] == ["a"]
    path.write_text(json.dumps([entry, {**entry, "name": "b"}]))
    with pytest.raises(UserError, match="sites a and b have one node; revoke a"):
        roster.admit(hub)


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "a::b", "all", "x" * 300, "\udc80"])
def test_names_that_no_site_can_have_are_refused(state: Path, tmp_path: Path, name: str) -> None:
    site = SiteFiles.made(tmp_path / "a")
    with pytest.raises(UserError, match="name"):
        Roster(state).enrol(name, site.public)
    assert Roster(state).read() == []


def test_a_file_without_a_public_key_is_refused(state: Path, tmp_path: Path) -> None:
    site = SiteFiles.made(tmp_path / "a")
    for path in (site.key, tmp_path / "none.pub"):
        with pytest.raises(UserError, match=str(path)):
            Roster(state).enrol("a", path)


def test_who_is_not_enrolled_cannot_be_revoked(state: Path) -> None:
    with pytest.raises(UserError, match="no site 'a' is enrolled"):
        Roster(state).revoke("a")


def test_a_damaged_file_is_named(state: Path) -> None:
    (state / "sites").mkdir()
    (state / "sites" / "sites.json").write_text(json.dumps([{"name": "a"}]))
    with pytest.raises(UserError, match=r"sites.json is damaged"):
        Roster(state).admit(Hub())


def test_keys_are_their_owners_alone_and_never_written_over(state: Path) -> None:
    keys.make_certificate(state, ["localhost", "10.0.0.1"])
    for name in ("ca.key", "server.key"):
        assert stat.S_IMODE((state / name).stat().st_mode) == 0o600
    assert keys.hosts_of(state / "server.crt") == ["localhost", "10.0.0.1"]
    before = (state / "ca.key").read_bytes()
    with pytest.raises(UserError, match="is there already"):
        keys.make_authority(state)
    assert (state / "ca.key").read_bytes() == before
