"""The coordinator's authority and certificates, and those of the sites for gRPC."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_public_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedshift import UserError
from fedshift.protocol.storage import write_key

AUTHORITY_DAYS = 3650
CERTIFICATE_DAYS = 825
"""The longest that common clients accept of a server's certificate."""
_EARLIER = datetime.timedelta(hours=1)
"""Certificates hold from a little before they are made: clocks differ."""


def make_authority(folder: Path, days: int = AUTHORITY_DAYS) -> None:
    """Make ``ca.key`` and ``ca.crt`` in ``folder``; raises :class:`UserError` when they are
    there."""
    key = ec.generate_private_key(ec.SECP256R1())
    write_key(folder / "ca.key", _private_pem(key))
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "fedshift authority")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=True,
                crl_sign=True,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .sign(key, hashes.SHA256())
    )
    (folder / "ca.crt").write_bytes(certificate.public_bytes(Encoding.PEM))


def make_certificate(folder: Path, hosts: list[str], days: int = CERTIFICATE_DAYS) -> None:
    """Make ``server.key`` and ``server.crt`` for ``hosts`` (names and addresses), signed by the
    authority in ``folder``; those that were there are replaced, so that a certificate can be
    renewed."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = _signed(folder, key.public_key(), hosts[0], days, hosts=hosts)
    for name, data in (("server.key", _private_pem(key)), ("server.crt", certificate)):
        beside = folder / f".{name}.part"
        beside.unlink(missing_ok=True)
        write_key(beside, data)
        beside.replace(folder / name)


def certify(folder: Path, name: str, public_key: bytes, days: int = CERTIFICATE_DAYS) -> bytes:
    """A certificate in PEM of the site ``name``'s key, signed by the authority in ``folder``."""
    return _signed(folder, read_public(public_key), name, days, hosts=None)


def read_public(public_key: bytes) -> ec.EllipticCurvePublicKey:
    """A site's public key from PEM or OpenSSH's line; raises ``ValueError`` for anything else."""
    try:
        is_pem = public_key.lstrip().startswith(b"-----")
        key = load_pem_public_key(public_key) if is_pem else load_ssh_public_key(public_key)
    except UnsupportedAlgorithm as error:
        raise ValueError("it is of a kind that is not known") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ValueError("it is no key on an elliptic curve")
    return key


def public_pem(public_key: bytes) -> bytes:
    """A site's public key as its node sends it; raises ``ValueError`` for no such key."""
    return read_public(public_key).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def _signed(
    folder: Path,
    public: ec.EllipticCurvePublicKey,
    name: str,
    days: int,
    *,
    hosts: list[str] | None,
) -> bytes:
    try:
        authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
        key = load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder} holds no authority (ca.crt and ca.key); `fedshift server keys` makes one"
        ) from error
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    now = datetime.datetime.now(datetime.UTC)
    usage = ExtendedKeyUsageOID.CLIENT_AUTH if hosts is None else ExtendedKeyUsageOID.SERVER_AUTH
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])]))
        .issuer_name(authority.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _EARLIER)
        .not_valid_after(min(now + datetime.timedelta(days=days), authority.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
        )
    )
    if hosts is not None:
        builder = builder.add_extension(
            x509.SubjectAlternativeName([_alternative(host) for host in hosts]), critical=False
        )
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _private_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def hosts_of(certificate: Path) -> list[str]:
    """The names and addresses that a server's certificate was made for; raises :class:`UserError`
    for no certificate of one."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (OSError, ValueError, x509.ExtensionNotFound) as error:
        raise UserError(
            f"{certificate} is no server's certificate; name its hosts with --host, and it is made "
            "anew"
        ) from error
    return [str(name.value) for name in names]
