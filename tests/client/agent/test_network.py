"""A site reaches its coordinator through what hospitals put in between, and is told what keeps it
from that."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kit.hospitals import Coordinator, free_port
from kit.proxies import ConnectProxy, Inspector

from fedshift import UserError
from fedshift.client.agent import doctor
from fedshift.client.agent.connection import Address, Denied, Signer, Unreachable, connect
from fedshift.client.agent.keys import make_key
from fedshift.protocol.fleet import Node
from fedshift.server.fleet import keys


@pytest.fixture(scope="module", params=["https", "grpc"])
def coordinator(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Coordinator]:
    with Coordinator(tmp_path_factory.mktemp("coordinator"), request.param) as found:
        found.enrol("hospital-1")
        yield found


@pytest.fixture(scope="module")
def https(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Coordinator]:
    with Coordinator(tmp_path_factory.mktemp("https")) as found:
        found.enrol("hospital-1")
        yield found


def address(at: Coordinator, **more: object) -> Address:
    key = at.folder / "hospital-1.key"
    told = {
        "server": f"127.0.0.1:{at.port}",
        "key": key,
        "root_certificates": at.folder / "ca.crt",
        "transport": at.transport,
        "certificate": key.with_suffix(".crt"),
        **more,
    }
    return Address(**told)  # type: ignore[arg-type]


def join(to: Address, signer: Signer | None = None) -> int:
    """Begin as an agent does; the node's id."""
    signer = signer or Signer(to.key)
    connection = connect(to, signer)
    try:
        response = connection.call(
            "ActivateNode", public_key=signer.public, heartbeat_interval=30.0
        )
        connection.call("SendNodeHeartbeat", node=Node(node_id=response.node_id))
        return int(response.node_id)
    finally:
        connection.close()


def found(to: Address, folder: Path) -> dict[str, tuple[str, str]]:
    return {check.name: (check.level, check.told) for check in doctor.examine(to, folder)}


def test_a_site_is_let_in_over_either_transport(coordinator: Coordinator, tmp_path: Path) -> None:
    assert join(address(coordinator)) > 2**32
    told = found(address(coordinator), tmp_path)
    assert {level for level, _ in told.values()} == {"ok"}, told
    assert {"key", "disk", "reach", "certificate", "enrolment"} <= told.keys()


def test_a_key_of_nobody_is_told_so(coordinator: Coordinator, tmp_path: Path) -> None:
    make_key(tmp_path / "other.key", tmp_path / "other.pub")
    public = keys.public_pem((tmp_path / "other.pub").read_bytes())
    certificate = tmp_path / "other.crt"
    certificate.write_bytes(keys.certify(coordinator.folder, "other", public))
    other = address(coordinator, key=tmp_path / "other.key", certificate=certificate)
    with pytest.raises(Denied, match="not enrolled here, or was revoked"):
        join(other)
    level, told = found(other, tmp_path)["enrolment"]
    assert level == "error" and "fedshift server enroll" in told
    assert any("not enrolled" in line for line in coordinator.log)


def test_an_authority_that_is_not_trusted_is_told_so(
    coordinator: Coordinator, tmp_path: Path
) -> None:
    keys.make_authority(tmp_path)
    wrong = address(coordinator, root_certificates=tmp_path / "ca.crt")
    with pytest.raises(Unreachable):
        join(wrong)
    level, told = found(wrong, tmp_path)["certificate"]
    assert level == "error" and "--root-certificates must name the coordinator's ca.crt" in told


@contextmanager
def renewed(folder: Path, host: str = "127.0.0.1", **days: int) -> Iterator[Coordinator]:
    """A coordinator whose certificate was made anew while it runs."""
    with Coordinator(folder) as at:
        at.enrol("hospital-1")
        keys.make_certificate(at.folder, [host], **days)
        at.server.renew()
        yield at


def test_a_certificate_of_another_host_is_told_so(tmp_path: Path) -> None:
    with renewed(tmp_path / "here", "fl.example.org") as at:
        level, told = found(address(at), tmp_path)["certificate"]
        assert level == "error" and "of another host than 127.0.0.1" in told


def test_an_expired_certificate_is_told_so(tmp_path: Path) -> None:
    with renewed(tmp_path / "here", days=0) as at:
        time.sleep(1.1)
        with pytest.raises(Unreachable, match="expired"):
            join(address(at))
        level, told = found(address(at), tmp_path)["certificate"]
        assert level == "error" and "keys --renew" in told


def test_a_certificate_that_ends_soon_is_a_warning(tmp_path: Path) -> None:
    with renewed(tmp_path / "here", days=10) as at:
        level, told = found(address(at), tmp_path)["certificate"]
        assert level == "warning" and "keys --renew" in told


def test_nobody_there_is_told_so(https: Coordinator, tmp_path: Path) -> None:
    level, told = found(address(https, server=f"127.0.0.1:{free_port()}"), tmp_path)["reach"]
    assert level == "error" and "the firewall (outbound TCP)" in told


def test_a_name_that_is_unknown_is_told_so(https: Coordinator, tmp_path: Path) -> None:
    level, told = found(address(https, server="no.such.host.invalid:9443"), tmp_path)["reach"]
    assert level == "error" and "unknown here" in told


@pytest.mark.parametrize("server", ["host", "host:port", ":9443", "host:0", "host:70000"])
def test_an_address_that_is_none_is_told_so(server: str) -> None:
    with pytest.raises(UserError, match="--server must be HOST:PORT"):
        doctor.split(server)


@pytest.mark.parametrize(
    ("skew", "level"), [(0.0, "ok"), (60.0, "error"), (-400.0, "error"), (4.0, "warning")]
)
def test_a_clock_that_is_off_is_found(
    https: Coordinator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, skew: float, level: str
) -> None:
    real = time.time
    monkeypatch.setattr(doctor.time, "time", lambda: real() + skew)
    assert found(address(https), tmp_path)["clock"][0] == level


def test_a_key_that_others_can_read_is_found(https: Coordinator, tmp_path: Path) -> None:
    make_key(tmp_path / "site.key", tmp_path / "site.pub")
    (tmp_path / "site.key").chmod(0o644)
    level, told = found(address(https, key=tmp_path / "site.key"), tmp_path)["key"]
    assert level == "error" and "chmod 600" in told


@pytest.mark.parametrize("what", ["missing", "garbage", "a folder", "public"])
def test_a_file_that_is_no_key_is_told_so(https: Coordinator, tmp_path: Path, what: str) -> None:
    path = tmp_path / "site.key"
    if what == "garbage":
        path.write_text("garbage")
    elif what == "a folder":
        path.mkdir()
    elif what == "public":
        path.write_bytes((https.folder / "hospital-1.pub").read_bytes())
    with pytest.raises(UserError, match=r"fedshift client key|holds no private key"):
        Signer(path)


def test_a_proxy_is_passed_with_name_and_password(https: Coordinator, tmp_path: Path) -> None:
    with ConnectProxy("site", "se cret") as proxy:
        through = address(https, proxy=f"http://site:se%20cret@127.0.0.1:{proxy.port}")
        assert join(through) and proxy.served
        told = found(through, tmp_path)
        assert told["reach"] == ("ok", f"127.0.0.1:{https.port} answers through the proxy")
        assert {level for level, _ in told.values()} == {"ok"}, told
        served = proxy.served
        wrong = address(https, proxy=f"http://site:wrong@127.0.0.1:{proxy.port}")
        with pytest.raises(Unreachable, match="407"):
            join(wrong)
        assert found(wrong, tmp_path)["reach"][0] == "error" and proxy.served == served


def test_a_proxy_of_the_environment_is_used(
    https: Coordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ConnectProxy("site", "secret") as proxy:
        monkeypatch.setenv("HTTPS_PROXY", f"http://site:secret@127.0.0.1:{proxy.port}")
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        assert join(address(https)) and proxy.served


def test_tls_that_is_inspected_needs_the_inspecting_authority(
    https: Coordinator, tmp_path: Path
) -> None:
    keys.make_authority(tmp_path)
    keys.make_certificate(tmp_path, ["127.0.0.1"])
    with Inspector(tmp_path, https.port, https.folder / "ca.crt") as inspector:
        at = {"server": f"127.0.0.1:{inspector.port}"}
        with pytest.raises(Unreachable):
            join(address(https, **at))
        assert join(address(https, **at, root_certificates=tmp_path / "ca.crt"))
        assert inspector.served


def test_grpc_needs_a_certificate_of_the_authority(tmp_path: Path) -> None:
    with Coordinator(tmp_path / "here", "grpc") as at:
        at.enrol("hospital-1")
        with pytest.raises(UserError, match="name it with --certificate"):
            join(address(at, certificate=None))
        keys.make_authority(tmp_path)
        public = keys.public_pem((at.folder / "hospital-1.pub").read_bytes())
        (tmp_path / "own.crt").write_bytes(keys.certify(tmp_path, "hospital-1", public))
        with pytest.raises(Unreachable):
            join(address(at, certificate=tmp_path / "own.crt"))
