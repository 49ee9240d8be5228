"""The enrolled sites in a file of the coordinator's, which a restart reads."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedshift import UserError, unusable_site_name
from fedshift.protocol.lock import alone_in
from fedshift.protocol.messages import POOLED
from fedshift.protocol.nodes import node_id
from fedshift.protocol.storage import read_json, write_atomic
from fedshift.server.fleet import keys
from fedshift.server.fleet.hub import Hub


@dataclass(frozen=True)
class Enrolled:
    """A site by its ``name`` and public ``key`` (PEM); ``node`` is the id of its node, which no
    other site has, revoked or not, and which stays when the key is replaced. ``since`` it is
    enrolled, and ``revoked`` when it was, in ISO 8601."""

    name: str
    key: str
    node: int
    since: str
    revoked: str | None = None


class Roster:
    """The file ``sites.json`` of a coordinator's state folder, and beside it a certificate for each
    site, ``NAME.crt``, which gRPC asks for."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self.folder = state / "sites"
        self._path = self.folder / "sites.json"

    def read(self) -> list[Enrolled]:
        """The sites, by name, with those that were revoked; raises :class:`UserError` for a damaged
        file."""
        return read_json(self._path, lambda node: [Enrolled(**fields) for fields in node]) or []

    def enrol(self, name: str, public_key: Path, *, replacing: bool = False) -> Path:
        """Let the holder of the key in that file take part as ``name``; returns the certificate's
        path.

        With ``replacing`` the key takes the place of the site's earlier one. Raises
        :class:`UserError` for a name that no site can have, a file without a public key, and a name
        or a key that is enrolled already.
        """
        if name == POOLED:
            raise UserError(f"{name!r} stands for all sites together; choose another name")
        if fault := unusable_site_name(name):
            raise UserError(f"the site's name {fault}; choose letters and digits")
        key = _public(public_key)
        certificate = keys.certify(self._state, name, key.encode())
        with self._written() as sites:
            for other in sites.values():
                if other.key == key and other.name != name and other.revoked is None:
                    raise UserError(
                        f"the key in {public_key} is that of site {other.name}: one key serves one "
                        "site; make another by `fedshift client key`"
                    )
            before = sites.get(name)
            if before and before.key != key and before.revoked is None and not replacing:
                raise UserError(
                    f"site {name} is enrolled with another key; add --replace to put this one in "
                    "its place, or revoke it first"
                )
            node = _free_node(name, key, sites) if before is None else before.node
            sites[name] = Enrolled(name, key, node, _now())
        path = self.folder / f"{name}.crt"
        write_atomic(path, certificate)
        return path

    def revoke(self, name: str) -> None:
        """Let the site take part no more; raises :class:`UserError` for one that does not."""
        with self._written() as sites:
            if name not in sites or sites[name].revoked is not None:
                raise UserError(
                    f"no site {name!r} is enrolled; `fedshift server sites` lists those that are"
                )
            sites[name] = replace(sites[name], revoked=_now())

    def admit(self, hub: Hub) -> None:
        """Have ``hub`` know the sites as the file has them now; raises :class:`UserError` for a
        damaged file, and for one in which two sites that take part share a node."""
        sites = self.read()
        taking_part = {site.node: site for site in sites if site.revoked is None}
        for site in sites:
            # Rosters of earlier releases may hold a revoked site with the node of another.
            if site.node not in taking_part:
                hub.revoke(site.node)
            elif site.revoked is None and taking_part[site.node] is not site:
                raise UserError(
                    f"{self._path}: sites {site.name} and {taking_part[site.node].name} have one "
                    f"node; revoke {site.name}, and enrol it under another name"
                )
        for site in taking_part.values():
            hub.enrol(site.name, site.key.encode(), site.node)

    @contextmanager
    def _written(self) -> Iterator[dict[str, Enrolled]]:
        """The sites by name, to be changed; written when that raised nothing."""
        with alone_in(self.folder, f"another command is changing {self.folder}; try again"):
            sites = {site.name: site for site in self.read()}
            yield sites
            nodes: list[dict[str, Any]] = [asdict(sites[name]) for name in sorted(sites)]
            write_atomic(self._path, json.dumps(nodes, indent=1, ensure_ascii=False) + "\n")


def _free_node(name: str, key: str, sites: Mapping[str, Enrolled]) -> int:
    """The id of a new site's node: its key's, unless another entry holds that because the key was
    once enrolled under that name; then one of the key and the name together."""
    held = {site.node for site in sites.values()}
    node = node_id(key.encode())
    return node if node not in held else node_id(f"{key}{name}".encode())


def _public(path: Path) -> str:
    """The public key in that file as its holder sends it."""
    try:
        return keys.public_pem(path.read_bytes()).decode()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise UserError(
            f"{path} holds no public key of a site; it is the file site.pub that `fedshift client "
            "key` writes at the site"
        ) from error


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
