"""What a comparison's workers do: prepare a site, run a cell, and tell how far it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from fedshift import UserError
from fedshift.protocol.lock import alone_in
from fedshift.runs import provenance
from fedshift.runs.config import Config
from fedshift.runs.simulate import run
from fedshift.server import checkpoint
from fedshift.sites import DataSettings, open_site
from fedshift.sites.types import SiteSpec

FAILURE = "failed.txt"
"""In a failed cell's folder: the reason and, if nobody expected it, where it came from."""


@dataclass(frozen=True)
class OpenSite:
    """Prepare a site's images, so that no two cells do it at once."""

    site: SiteSpec
    structures: tuple[str, ...]
    data: DataSettings
    seed: int

    def __call__(self, device: str, tell: Callable[[float, str], None]) -> None:
        """Fill the cache with them."""
        open_site(self.site, self.structures, self.data, self.seed)


@dataclass(frozen=True)
class RunCell:
    """Run a cell, or what is left of it; ``number`` is its place in the grid and ``folds`` the
    number of runs in it."""

    number: int
    folder: Path
    config: Config
    folds: int

    def __call__(self, device: str, tell: Callable[[float, str], None]) -> None:
        """Do what ``fedshift simulate`` does on this one device, but for figures and page."""
        engine = {**self.config["engine"], "workers": 1, "devices": device}
        with alone_in(self.folder):
            (self.folder / FAILURE).unlink(missing_ok=True)
            if others := half_done(self.folder) and provenance.differing(self.folder):
                raise UserError(
                    f"{self.folder} is half done and may not go on to the same numbers here: "
                    f"{others}; remove its folder to run it anew"
                )
            run(
                self.folder,
                {**self.config, "engine": engine},
                watch=Reporter(tell, self.folds),
                drawn=False,
                checked=True,
            )


def half_done(folder: Path) -> bool:
    """Whether the run in ``folder`` has done something, and has still to end."""
    begun = checkpoint.last_round(folder / "checkpoints") > 0 or (folder / "folds").exists()
    return begun and not (folder / "cross_site.csv").exists()


class Reporter:
    """Watches the runs of a cell, one after the other, for whoever shows how far it is."""

    def __init__(self, tell: Callable[[float, str], None], runs: int) -> None:
        self._tell = tell
        self._runs = runs
        self._opened = 0
        self._units = self._done = 0

    def __call__(self, title: str) -> AbstractContextManager[Reporter]:
        """Watch the next run; there is nothing to close after it."""
        self._opened += 1
        return nullcontext(self)

    def expect(self, units: int) -> None:
        """Say how many units of work are ahead in this run."""
        self._units, self._done = units, 0

    def advance(self, what: str) -> None:
        """Say that one unit is done, and what it was."""
        self._done += 1
        share = (self._opened - 1 + self._done / max(1, self._units)) / self._runs
        fold = f"fold {self._opened}/{self._runs}, " if self._runs > 1 else ""
        self._tell(min(share, 1.0), f"{fold}{what}")

    def say(self, sentence: str) -> None:
        """The run's own files tell it again."""
