"""The site's own key: made at the site, and never anywhere else."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from fedshift.protocol.storage import write_key


def make_key(private: Path, public: Path) -> None:
    """Make a key (ECDSA on P-384 in OpenSSH's format, as Flower's nodes take it): ``private`` for
    the site's owner alone to read, ``public`` for the coordinator. Raises :class:`UserError` when
    ``private`` is there."""
    key = ec.generate_private_key(ec.SECP384R1())
    private.parent.mkdir(parents=True, exist_ok=True)
    write_key(private, key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH) + b"\n"
    )
