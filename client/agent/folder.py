"""The folder in which a real site keeps all that outlasts its agent: the ledger, what its staff
decided about runs and subjects, and a folder a run. Nothing here needs torch, so that the staff's
commands start at once, also while the agent is running.

| file | what |
|---|---|
| ``site.json`` | the site's name, and its own settings of ``data`` |
| ``egress.jsonl`` | the ledger of all runs, a hash chain (:mod:`fedshift.client.ledger`) |
| ``pseudonyms.*`` | key and book of the codes, the same in every run |
| ``waiting.json`` | runs that asked and were not approved, as they described themselves |
| ``approved.json`` | runs that were, with what was shown then |
| ``left.json`` | runs that the site left, refused ever after |
| ``forgotten.json`` | subjects that are left out of every run from then on |
| ``runs/RUN/`` | what a run keeps here: :class:`RunFolder` |
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedshift import UserError
from fedshift.client import ledger
from fedshift.client.pseudonyms import Pseudonyms
from fedshift.client.state import SiteState
from fedshift.protocol.flower import ArrayRecord
from fedshift.protocol.messages import ARMS, Action, Instruction, Purpose, unpack_arrays
from fedshift.protocol.settings import suggest
from fedshift.protocol.storage import (
    append_lines,
    read_json,
    read_json_lines,
    read_tensors,
    write_atomic,
    write_tensors,
)
from fedshift.sites.manifest import read_manifest
from fedshift.sites.settings import OF_A_RUN, DataSettings

MOST_WAITING = 100
"""How many runs wait for approval at once."""
_LONGEST = 200
"""Of a name that a run gives, in characters; an instruction bounds the others."""
_SUBJECTS = "subjects.jsonl"
_MODEL = re.compile(r"model_(\d+)\.safetensors$")
_TABLES = ("MANIFEST.tsv", "MANIFEST.csv", "manifest.tsv", "manifest.csv")


@dataclass(frozen=True)
class Described:
    """What a run says it is, as far as a site's staff approves of it: texts of the coordinator, and
    the names of method and task, which the site's own software gives their meaning.

    ``rounds`` is how many the run has at most, ``labels`` are the parts that it learns.
    """

    purpose: str = ""
    asked_by: str = ""
    strategy: str = ""
    method: str = ""
    task: str = ""
    rounds: int = 0
    labels: tuple[str, ...] = ()

    @classmethod
    def of(cls, asked: Instruction) -> Described:
        """What a request says of its run."""
        return cls(
            **asked.about,
            method=str(asked.method.get("name", ""))[:_LONGEST],
            task=str(asked.task.get("name", ""))[:_LONGEST],
            rounds=asked.rounds,
            labels=tuple(str(name) for name in asked.task.get("parts") or ()),
        )

    @classmethod
    def from_json(cls, node: Mapping[str, Any]) -> Described:
        """Undo :func:`dataclasses.asdict` and JSON."""
        return cls(**{**node, "labels": tuple(node["labels"])})

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**vars(self), "labels": list(self.labels)}

    def within(self, approved: Described) -> bool:
        """Whether this run is the one that was ``approved``, with no more rounds."""
        return self.rounds <= approved.rounds and {**vars(self), "rounds": 0} == {
            **vars(approved),
            "rounds": 0,
        }


@dataclass(frozen=True)
class Approval:
    """What was shown of a run when somebody approved of it: how it described itself, and under
    which rights something may leave for it (the policy's ``release`` then). ``at`` is UTC."""

    described: Described
    leaves: tuple[str, ...]
    at: str = ""

    @classmethod
    def from_json(cls, node: Mapping[str, Any]) -> Approval:
        """Undo :meth:`to_json`."""
        described = Described.from_json(node["described"])
        return cls(described, tuple(node["leaves"]), node["at"])

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        leaves = list(self.leaves)
        return {"described": self.described.to_json(), "leaves": leaves, "at": self.at}


@dataclass(frozen=True)
class RunStatus:
    """What a site's staff is told of a run. ``state`` is ``running``, ``waiting`` (for approval),
    ``left`` or ``purged``; ``round`` the last one it was trained in; ``bytes_out`` what left, with
    errors; ``contact`` when it last asked something, in seconds since the epoch (0: unknown)."""

    run: str
    state: str
    described: Described
    round: int = 0
    bytes_out: int = 0
    refusals: int = 0
    contact: float = 0.0


@dataclass(frozen=True)
class Forgotten:
    """A subject that is left out from now on. ``models`` are the rounds that it was trained in, by
    run and arm (:data:`~fedshift.protocol.messages.ARMS`): the shared models of these and of all
    later rounds hold something of it, and what left cannot be called back."""

    subject: str
    models: Mapping[str, Mapping[str, Sequence[int]]] = field(default_factory=dict)


class StateFolder:
    """The folder itself. Its owner alone can open it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = path / "egress.jsonl"
        self.pseudonyms = Pseudonyms(path)

    @classmethod
    def opened(cls, path: Path) -> StateFolder:
        """The one at ``path`` for the site's staff; raises :class:`UserError` where there is
        none."""
        if not (path / "site.json").is_file():
            raise UserError(
                f"{path} holds no state of a site; name the folder that its agent was given with "
                "--state"
            )
        return cls(path)

    def begin(self, name: str, data: Mapping[str, Any]) -> None:
        """Make the folder the private one of the site ``name``, with its own settings ``data``.

        Raises :class:`UserError` when it is another site's, or cannot be written."""
        found = self._read("site.json") or {"name": name}
        if found["name"] != name:
            raise UserError(
                f"{self.path} holds the state of the site {found['name']!r}; give {name!r} a "
                "folder of its own with --state"
            )
        try:
            self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.chmod(0o700)
        except OSError as error:
            raise UserError(f"{self.path} cannot be used as a folder ({error.strerror})") from error
        self._write("site.json", {"name": name, "data": dict(data)})

    def run(self, run: str) -> RunFolder:
        """What ``run`` keeps here."""
        return RunFolder(self.path / "runs" / run)

    # What the staff decided

    def waiting(self) -> dict[str, Approval]:
        """The runs that wait for approval, the newest last, with what there is to be shown."""
        node = self._read("waiting.json") or {}
        found = {run: Approval.from_json(shown) for run, shown in node.items()}
        left, approved = self.left(), self.approved()
        return {
            run: shown
            for run, shown in found.items()
            if run not in left
            and not (run in approved and shown.described.within(approved[run].described))
        }

    def wait(self, run: str, shown: Approval) -> bool:
        """Keep ``run`` for somebody to approve, unless :data:`MOST_WAITING` wait already; whether
        it is kept. No other run makes room for it: nobody is to lose sight of one by it."""
        node = {key: held.to_json() for key, held in self.waiting().items()}
        if node.get(run) == shown.to_json():
            return True
        node.pop(run, None)  # As it describes itself now it is the newest.
        if len(node) >= MOST_WAITING:
            return False
        self._write("waiting.json", {**node, run: shown.to_json()})
        return True

    def approved(self) -> dict[str, Approval]:
        """The runs that were approved, with what was shown."""
        node = self._read("approved.json") or {}
        return {run: Approval.from_json(shown) for run, shown in node.items()}

    def approves(self, run: str, described: Described) -> bool:
        """Whether ``run`` was approved as what it says it is now."""
        approval = self.approved().get(run)
        return approval is not None and described.within(approval.described)

    def approve(self, run: str) -> Approval:
        """Approve of ``run`` as it is described now; returns what it is, as it stands in
        ``approved.json``. Raises :class:`UserError` for one that does not wait."""
        waiting = self.waiting()
        if run not in waiting:
            raise UserError(f"no run {run!r} waits to be approved{suggest(run, waiting)}")
        at = datetime.now(UTC).isoformat(timespec="seconds")
        shown = Approval(waiting[run].described, waiting[run].leaves, at)
        node = self._read("approved.json") or {}
        self._write("approved.json", {**node, run: shown.to_json()})
        return shown

    def left(self) -> dict[str, bool]:
        """The runs that the site left, and whether their state was removed, too."""
        return self._read("left.json") or {}

    def leave(self, run: str, *, purge: bool = False) -> None:
        """Refuse ``run`` from now on; with ``purge`` remove what it kept here, too. The ledger
        stays, and so does whom it was trained on, for :meth:`forget`; what left cannot be called
        back. Raises :class:`UserError` for a run that never asked anything, and where the note
        cannot be written."""
        known = {one.run for one in self.runs()}
        if run not in known:
            raise UserError(f"no run {run!r} asked anything of this site{suggest(run, known)}")
        purged = purge or self.left().get(run, False)
        noted = {**self.left(), run: purged}
        try:
            self._write("left.json", noted)
        except UserError:
            if not purged:
                raise
            # On a full disk the room for the note is made by what it is about.
            self.run(run).remove()
            self._write("left.json", noted)
        if purged:
            self.run(run).remove()

    def forgotten(self) -> frozenset[str]:
        """The subjects that are left out of every run."""
        return frozenset(self._read("forgotten.json") or ())

    def forget(self, subject: str) -> Forgotten:
        """Leave ``subject`` out of all that is asked from now on; says which models had it.

        Prepared images stay in the cache (``data.cache``) until it is emptied. Raises
        :class:`UserError` for who is not in the site's table, since a name that is misspelt would
        be left out in silence."""
        node = self._read("site.json") or {}
        table = read_manifest(DataSettings.from_config(node["data"]))
        known = {image.subject for images in table.images.values() for image in images}
        if subject not in known:
            raise UserError(f"the site's table has no subject {subject!r}{suggest(subject, known)}")
        self._write("forgotten.json", sorted({*self.forgotten(), subject}))
        (code,) = self.pseudonyms.codes([subject])
        found = {run.name: RunFolder(run).trained(code) for run in self._folders()}
        return Forgotten(subject, {run: models for run, models in found.items() if models})

    # What it holds of runs

    def runs(self) -> list[RunStatus]:
        """Every run that ever asked something, by name, read from the files alone."""
        sent, refusals = Counter[str](), Counter[str]()
        last: dict[str, int] = {}
        for entry in ledger.entries(self.ledger):
            run = entry.get("run", "")
            sent[run] += entry["bytes"]
            refusals[run] += entry["purpose"] == Purpose.ERROR
            if entry["action"] == Action.FIT and entry["purpose"] != Purpose.ERROR:
                last[run] = max(last.get(run, 0), entry["round"])
        left, waiting = self.left(), self.waiting()
        folders = {path.name: RunFolder(path) for path in self._folders()}
        found = []
        for run in sorted({*sent, *waiting, *left, *folders} - {""}):
            state = "waiting" if run in waiting else "running"
            if run in left:
                state = "purged" if left[run] else "left"
            described = folders[run].described if run in folders else None
            if described is None:
                shown = waiting.get(run) or self.approved().get(run)
                described = Described() if shown is None else shown.described
            contact = folders[run].contact if run in folders else 0.0
            found.append(
                RunStatus(
                    run, state, described, last.get(run, 0), sent[run], refusals[run], contact
                )
            )
        return found

    def knows(self, run: str) -> bool:
        """Whether ``run`` was ever let in."""
        return self.run(run).path.exists() or run in self.left()

    @property
    def let_in(self) -> int:
        """How many runs were ever let in, those that were purged included."""
        return len({path.name for path in self._folders()} | self.left().keys())

    def _folders(self) -> list[Path]:
        folder = self.path / "runs"
        return sorted(folder.iterdir()) if folder.is_dir() else []

    def _read(self, name: str) -> Any:
        return read_json(self.path / name, lambda node: node)

    def _write(self, name: str, node: Any) -> None:
        with private():
            write_atomic(self.path / name, json.dumps(node, indent=1) + "\n")


class RunFolder:
    """What one run keeps at a site: ``run.json`` (how it describes itself, and the settings that it
    may not change), the state of each arm, ``questions.jsonl``, ``subjects.jsonl`` (whose images it
    was trained on, by code; a purge leaves it) and ``model_ROUND.safetensors``, the newest shared
    model sent here."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._last: dict[str, Any] = {}
        self._had: dict[str, list[str]] = {}

    @property
    def described(self) -> Described | None:
        """How the run describes itself; None before it was let in."""
        node = self._node()
        return None if node is None else Described.from_json(node["described"])

    @property
    def pinned(self) -> dict[str, Any] | None:
        """What the run fixed of the data with its first request that opens them; None before."""
        node = self._node()
        return None if node is None else node["pinned"]

    def _node(self) -> dict[str, Any] | None:
        return read_json(self.path / "run.json", lambda node: node)

    def describe(self, asked: Instruction, pinned: Mapping[str, Any] | None) -> None:
        """Keep what a request says of its run, if it is new; note the time."""
        node = {
            "described": Described.of(asked).to_json(),
            "method": dict(asked.method),
            "task": dict(asked.task),
            "pinned": None if pinned is None else dict(pinned),
        }
        path = self.path / "run.json"
        if self._last != node or not path.exists():
            write_atomic(path, json.dumps(node, indent=1) + "\n")
            self._last = node
        os.utime(path)

    @property
    def contact(self) -> float:
        """When the run last asked something that it was let in for; seconds since the epoch."""
        path = self.path / "run.json"
        return path.stat().st_mtime if path.exists() else 0.0

    def remove(self) -> None:
        """Remove all of it but the list of whom it was trained on (codes and rounds): models that
        left exist still, and :meth:`trained` must say so of a subject that is forgotten later."""
        if not self.path.exists():
            return
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name != _SUBJECTS:
                path.unlink(missing_ok=True)
        if not (self.path / _SUBJECTS).exists():
            self.path.rmdir()

    def note(self, arm: str, round: int, codes: Collection[str]) -> None:
        """Note that a model was trained on these subjects, on disk before this returns: a line
        where they are others than in the arm's round before, else its round alone."""
        path = self.path / _SUBJECTS
        line: dict[str, Any] = {"arm": arm, "round": round}
        fresh = sorted(codes)
        if self._had.get(arm) != fresh:
            line["subjects"] = fresh
        append_lines(path, [json.dumps(line)])
        self._had[arm] = fresh

    def trained(self, code: str) -> dict[str, list[int]]:
        """The rounds in which the subject of this code was trained on, by arm."""
        found: dict[str, set[int]] = {}
        had: dict[str, list[str]] = {}
        for line in read_json_lines(self.path / _SUBJECTS, lambda node: node):
            arm = line["arm"]
            had[arm] = line.get("subjects", had.get(arm, []))
            if code in had[arm]:
                found.setdefault(arm, set()).add(line["round"])
        return {arm: sorted(rounds) for arm, rounds in found.items()}

    def keep_model(self, record: ArrayRecord, round: int) -> None:
        """Keep the shared model as it is after ``round`` in the place of an older one."""
        path = self.path / f"model_{round:06d}.safetensors"
        held = self._models()
        if held and max(held) >= round:
            return
        write_tensors(path, unpack_arrays(record))
        for number in held:
            (self.path / f"model_{number:06d}.safetensors").unlink(missing_ok=True)

    def _models(self) -> list[int]:
        matches = (_MODEL.match(path.name) for path in self.path.glob("model_*"))
        return [int(match.group(1)) for match in matches if match]

    def export(self, out: Path) -> dict[str, Any]:
        """Write the newest shared model that was sent here to ``out/global.safetensors``, and the
        site's own, where it keeps one, to ``out/personal.safetensors``; ``out/model.json`` says of
        which round, method and task. Returns what that holds.

        Raises :class:`UserError` where none was sent, or it cannot be written."""
        held, node = self._models(), self._node()
        if not held or node is None:
            raise UserError(f"the run {self.path.name} has sent no model to this site yet")
        shared = read_tensors(self.path / f"model_{max(held):06d}.safetensors")
        write_tensors(out / "global.safetensors", shared)
        told = {"run": self.path.name, "round": max(held), "method": node["method"]}
        told |= {"task": node["task"], "described": node["described"]}
        own = SiteState(self.path, ARMS[0]).load(max(held))
        if own:
            write_tensors(out / "personal.safetensors", {**shared, **own})
        told["personal"] = sorted(own)
        write_atomic(out / "model.json", json.dumps(told, indent=1) + "\n")
        return told


def own_settings(data: Path | str, **more: Any) -> dict[str, Any]:
    """A site's own settings of ``data`` (:class:`~fedshift.sites.settings.DataSettings`): its table
    of images, or the folder that holds it as ``MANIFEST.tsv`` or ``.csv``, and ``more``, such as
    ``columns`` and ``cache``.

    Raises :class:`UserError` where there is no table, and for a setting that is a run's."""
    path = Path(data).expanduser()
    if path.is_dir():
        tables = [path / name for name in _TABLES if (path / name).is_file()]
        if not tables:
            raise UserError(
                f"{path} holds no MANIFEST.tsv; write one with `fedshift sites adopt {path} --out "
                f"{path / _TABLES[0]}`, or name the table itself"
            )
        path = tables[0]
    for key in more:
        if key in OF_A_RUN or key in ("sites", "planned"):
            raise UserError(f"data.{key} is set by each run and not by a site; leave it out")
    settings = {"manifest": str(path.absolute()), **more}
    DataSettings.from_config(settings)
    return settings


@contextmanager
def private() -> Iterator[None]:
    """Within it, new files and folders are readable by their owner alone, whatever the umask is."""
    before = os.umask(0o077)
    try:
        yield
    finally:
        os.umask(before)
