"""The sites of a simulated federation, all on this machine."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fedshift.client import ledger
from fedshift.client.policy import Policy
from fedshift.client.worker import SiteWorker
from fedshift.protocol.allocator import keep_freed
from fedshift.protocol.messages import POOLED
from fedshift.protocol.storage import keep_lines
from fedshift.sites import DataSettings, open_site, pooled_site, survey
from fedshift.sites.facts import Surveyed
from fedshift.sites.types import Federation, SiteData

_OPEN_SITES = 16
"""How many sites a process keeps open: memory must not grow with the federation."""


@dataclass(frozen=True)
class LocalSites:
    """How to open any site of a federation on this machine; picklable, holds no data.

    ``folder`` holds a folder a site with its state and ledger, ``own`` the settings of the method
    that are each site's own, here the same for all. With ``pooled`` there is one more
    site, named ``all``, that holds every training site's data: the upper bound no real
    federation can reach.
    """

    federation: Federation
    data: DataSettings
    policy: Policy
    folder: Path
    seed: int
    own: Mapping[str, Any] = field(default_factory=dict)
    pooled: bool = False
    amp: bool = False
    audited: bool = True
    """Whether sites note what leaves them; not when a finished run's own models are read again."""

    @property
    def names(self) -> tuple[str, ...]:
        """The sites' names, sorted, the pooled one last."""
        names = tuple(site.name for site in self.federation.sites)
        return (*names, POOLED) if self.pooled else names

    def worker(self, name: str, device: torch.device) -> SiteWorker:
        """The worker of the site called ``name``; its data is opened when first needed."""
        return SiteWorker(
            name,
            self._open_pooled if name == POOLED else partial(self.open, name),
            look=partial(self.look, name),
            policy=self.policy if name != POOLED else replace(self.policy, max_steps=None),
            folder=self.folder / name,
            device=device,
            own=self.own,
            amp=self.amp and device.type == "cuda",
            audited=self.audited and name != POOLED,
        )

    def open(self, name: str) -> SiteData:
        """The data of the site called ``name``."""
        site = self.federation.site(name)
        return open_site(site, self.federation.parts, self.data, self.seed)

    def look(self, name: str) -> Sequence[Surveyed]:
        """What the files of the site called ``name`` are like."""
        return survey(self.federation.site(name), self.data)

    def _open_pooled(self) -> SiteData:
        training = [site.name for site in self.federation.sites if site.role == "train"]
        return pooled_site([self.open(name) for name in training], name=POOLED)

    def roll_back(self, round: int) -> None:
        """Forget what left after ``round``: a resumed simulation repeats those rounds, nothing
        having really left. A deployed site's ledger is never shortened."""
        for name in self.names:
            keep_lines(self._ledger(name), ledger.left_by(round))

    def ledger_sizes(self) -> dict[str, int]:
        """The ledgers' lengths in bytes, by site."""
        paths = {name: self._ledger(name) for name in self.names}
        return {name: path.stat().st_size for name, path in paths.items() if path.exists()}

    def _ledger(self, name: str) -> Path:
        return self.folder / name / "egress.jsonl"

    def egress(self, positions: dict[str, int]) -> str:
        """The ledgers' lines since ``positions`` (site -> byte offset, moved on), in site order."""
        parts = []
        for name in self.names:
            path = self._ledger(name)
            if not path.exists():
                continue
            with path.open("rb") as file:
                file.seek(positions.get(name, 0))
                part = file.read()
            positions[name] = positions.get(name, 0) + len(part)
            parts.append(part.decode())
        return "".join(parts)


class OpenSites:
    """The workers a process has open, the least recently used closed first."""

    def __init__(self, sites: LocalSites, device: torch.device) -> None:
        keep_freed()
        self.sites = sites
        self.device = device
        self._workers: OrderedDict[str, SiteWorker] = OrderedDict()

    def __getitem__(self, name: str) -> SiteWorker:
        worker = self._workers.pop(name, None) or self.sites.worker(name, self.device)
        self._workers[name] = worker
        if len(self._workers) > _OPEN_SITES:
            self._workers.popitem(last=False)
        return worker
