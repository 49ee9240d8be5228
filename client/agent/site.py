"""What answers a coordinator at a real site: a worker a run, each with its own state, over one set
of images, one policy and one ledger. It runs in the agent's child process."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from fedshift import Tellable, UserError
from fedshift.client.agent.folder import (
    MOST_WAITING,
    Approval,
    Described,
    StateFolder,
    private,
)
from fedshift.client.ledger import ChainedLedger
from fedshift.client.policy import Policy, Refused, Unapproved
from fedshift.client.tasks import TASKS
from fedshift.client.worker import SiteWorker
from fedshift.protocol.flower import ArrayRecord, Message, RecordDict
from fedshift.protocol.messages import ARMS, ARRAYS, CONFIG, Action, Instruction
from fedshift.protocol.settings import suggest
from fedshift.sites import DataSettings, load_federation, open_site, survey
from fedshift.sites.facts import Surveyed
from fedshift.sites.manifest import read_manifest
from fedshift.sites.types import SiteData, SiteSpec

log = logging.getLogger(__name__)

_WARM = 4
"""How many runs' workers are kept, with their networks and open data."""
_BEFORE_DATA = frozenset({Action.NAME, Action.SUMMARY, Action.HASHES})
"""What is asked before a run's settings of the data are planned."""
_ROLES = frozenset({"unseen_sites", "unlabelled_sites"})


@dataclass
class Site:
    """The site ``name``. ``data`` are its own settings of the images
    (:func:`~fedshift.client.agent.folder.own_settings`), ``state`` is the folder of all that it
    keeps, ``own`` are the method's settings that no run may bring, such as a file of weights.
    ``threads`` of torch are part of the arithmetic, and so is mixed precision (``amp``, on a GPU):
    a simulation has one thread and ``engine.amp``. ``now`` is the local time.

    Raises :class:`UserError` when the state folder is another site's.
    """

    name: str
    data: Mapping[str, Any]
    policy: Policy
    state: Path
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    own: Mapping[str, Any] = field(default_factory=dict)
    amp: bool = True
    threads: int = 1
    now: Callable[[], datetime] = datetime.now

    def __post_init__(self) -> None:
        torch.set_num_threads(self.threads)
        self.folder = StateFolder(self.state)
        self.folder.begin(self.name, self.data)
        self._runs: OrderedDict[str, _Run] = OrderedDict()

    def handle(self, message: Message) -> Message:
        """The reply to ``message``, an error reply where there is none. All that leaves is in the
        ledger, on disk, before this returns."""
        with private():
            run = self._run(message)
            reply = run.worker.handle(message)
            if not reply.has_error():
                run.keep(message.content)
            return reply

    def _run(self, message: Message) -> _Run:
        """The run that a request is of; one without a name, which is let in to nothing, is as good
        as any for a request that cannot be read."""
        try:
            name = Instruction.from_record(message.content.get(CONFIG)).run
        except ValueError:
            name = ""
        run = self._runs.pop(name, None) or _Run(self, name)
        self._runs[name] = run
        if len(self._runs) > _WARM:
            self._runs.popitem(last=False)
        return run


class _Run:
    """A run at this site: what a worker needs of its records
    (:class:`~fedshift.client.worker.Records`), and the worker."""

    def __init__(self, site: Site, name: str) -> None:
        self.site = site
        self.name = name
        self.folder = site.folder.run(name)
        self.ledger = ChainedLedger(site.folder.ledger, site.name, name)
        self.pseudonyms = site.folder.pseudonyms
        self._asked: Instruction | None = None
        self._forgotten: frozenset[str] = frozenset()
        self.worker = SiteWorker(
            site.name,
            self._open,
            look=self._look,
            policy=site.policy,
            folder=self.folder.path,
            device=site.device,
            own=site.own,
            amp=site.amp and site.device.type == "cuda",
            records=self,
        )

    def admit(self, asked: Instruction) -> None:
        """Let a request in; raises :class:`Refused` where the run has no name, was left, is not
        approved or new beyond the policy's ``max_runs``, and where it asks for what the policy does
        not let a run ask for or changes what it had fixed. The site's name is told to any run."""
        folder = self.site.folder
        self._asked = None
        described = Described.of(asked)
        approved = not self.site.policy.ask or folder.approves(self.name, described)
        asks = not approved and self.name and self.name not in folder.left()
        room = not asks or folder.wait(self.name, Approval(described, self.site.policy.release))
        if asked.action is Action.NAME:
            return
        if not self.name:
            raise Refused("the request is of no run; a real site answers those of a named one only")
        if (purged := folder.left().get(self.name)) is not None:
            if purged:
                self.folder.remove()  # What was in work when the staff removed it wrote once more.
            raise Refused("the site has left this run")
        self.site.policy.check_run(asked, self.site.now())
        if asked.round > asked.rounds:
            raise Refused("the request is of a round beyond those that its run says it has")
        if not room:
            raise Refused(
                f"{MOST_WAITING} runs wait for the site's approval already; there somebody has to "
                "approve or leave some (fedshift client status)"
            )
        if not approved:
            raise Unapproved(
                f"nobody at the site has approved of the run yet; there: fedshift client approve "
                f"{self.name} (policy.ask)"
            )
        most = self.site.policy.max_runs
        if most is not None and not folder.knows(self.name) and folder.let_in >= most:
            raise Refused(f"the site has let in {most} runs and takes no more (policy.max_runs)")
        self._settings(asked)
        pinned = self.folder.pinned
        if asked.action not in _BEFORE_DATA:
            pinned = _same(pinned, asked)
        self.folder.describe(asked, pinned)
        if (forgotten := folder.forgotten()) != self._forgotten:
            self._forgotten = forgotten
            self.worker.reopen()
        self._asked = asked

    def trained(self, asked: Instruction, subjects: Collection[str]) -> None:
        """Note whose images a model was trained on."""
        self.folder.note(asked.arm, asked.round, self.pseudonyms.codes(subjects))

    def keep(self, content: RecordDict) -> None:
        """Keep the shared model that an answered request brought, which the site may take home. To
        be trained comes the model after the round before, to be validated that of the round."""
        asked, arrays = self._asked, content.get(ARRAYS)
        if asked is None or asked.arm != ARMS[0] or not isinstance(arrays, ArrayRecord):
            return
        after = {Action.FIT: asked.round - 1, Action.VALIDATE: asked.round}.get(asked.action)
        if after is None:
            return
        try:
            self.folder.keep_model(arrays, after)
        except UserError as error:  # The round is worth more than the copy.
            log.error(
                "site %s does not keep the model of run %s: %s", self.site.name, self.name, error
            )

    # The site's images, as the run asks for them

    def _settings(self, asked: Instruction) -> DataSettings:
        """The settings of the images: the site's own, and those that the run asks for, but for
        roles. Raises :class:`Refused` for values that nothing can have."""
        given = {key: value for key, value in asked.data.items() if key not in _ROLES}
        try:
            form = TASKS.named(str(asked.task.get("name", ""))).form
            DataSettings.from_config({key: asked.data[key] for key in asked.data}, form)
        except UserError as error:
            raise Refused(str(error)) from error
        return DataSettings.from_config({**self.site.data, **given}, form)

    def _listed(self) -> tuple[SiteSpec, tuple[str, ...], DataSettings]:
        """The site's images, the parts that their labels tell apart, and the settings."""
        asked = self._asked
        assert asked is not None, "the worker asks for data only when a request was let in"
        data = self._settings(asked)
        table = read_manifest(data).images
        listed = self.site.name if self.site.name in table else next(iter(table))
        if listed != self.site.name and len(table) > 1:
            raise UserError(
                f"{data.manifest} lists {len(table)} sites and none is called {self.site.name!r}"
                f"{suggest(self.site.name, table)}; name the site as its table does, or mend that"
            )
        data = replace(data, sites=(listed,))
        federation = load_federation({"kind": "manifest"}, data, asked.seed)
        if [*federation.parts] != [*asked.task.get("parts", ())]:
            raise Refused("the run's task has other parts than its data.labels")
        name = self.site.name
        spec = replace(federation.site(listed), name=name)
        if name in asked.data.get("unseen_sites", ()):
            spec = replace(spec, role="unseen")
        hidden = (name,) if name in asked.data.get("unlabelled_sites", ()) else ()
        return spec, federation.parts, replace(data, sites=(name,), unlabelled_sites=hidden)

    def _look(self) -> Sequence[Surveyed]:
        spec, _, data = self._listed()
        # A row that is left out stays one: hashes are told in the table's order.
        return [
            replace(one, facts=None) if one.subject in self._forgotten else one
            for one in survey(spec, data)
        ]

    def _open(self) -> SiteData:
        assert self._asked is not None
        spec, parts, data = self._listed()
        opened = open_site(spec, parts, data, self._asked.seed)
        if not self._forgotten:
            return opened
        # Left out once the splits are dealt: nobody changes from one to another by that.
        splits = {
            split: tuple(case for case in cases if case.subject not in self._forgotten)
            for split, cases in opened.splits.items()
        }
        if not any(splits.values()):
            raise Tellable(f"the site {self.site.name} has no image left of subjects it may use")
        return replace(opened, splits=splits)


def _same(pinned: Mapping[str, Any] | None, asked: Instruction) -> dict[str, Any]:
    """What a run fixes of the data: its settings, the seed that deals the splits, and what is
    learnt. Raises :class:`Refused` where it was fixed otherwise: a site that was cut anew in the
    course of a run would train on what it is tested on."""
    now = {
        **{f"data.{key}": value for key, value in asked.data.items()},
        "seed": asked.seed,
        "task": asked.task.get("name"),
        "parts": asked.task.get("parts"),
    }
    if pinned is not None and now != pinned:
        changed = sorted(k for k in now.keys() | pinned.keys() if now.get(k) != pinned.get(k))
        raise Refused(
            f"{changed[0]} cannot change in the course of a run: the images were cut and prepared "
            "with another; begin another run"
        )
    return now
