"""What a site tells before a run, of itself and of the method: counts and names, never an image."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fedshift.protocol.measures import TaskCard
from fedshift.protocol.messages import TensorInfo


@dataclass(frozen=True)
class SiteCard:
    """A site's self-description.

    ``role`` is ``train`` or ``unseen``. ``splits`` maps ``train``, ``val``, ``test`` to counts of
    subjects, cases, slices and labelled slices; ``parts`` names what its labels tell (structures,
    landmarks, classes), and ``labelled`` are those that some training slice shows. ``teaches`` maps
    each part to the number of labelled training slices whose label tells of it, and ``complete``
    says whether all of them tell of every part and pixel.
    ``spacing_mm`` lists the image grids' distinct (slice, row, column) spacings; ``size`` is the
    network grid's rows and columns, and ``channels`` are the images'.
    """

    name: str
    role: str
    vendors: tuple[str, ...]
    parts: tuple[str, ...]
    labelled: tuple[str, ...]
    teaches: Mapping[str, int]
    complete: bool
    splits: Mapping[str, Mapping[str, int]]
    spacing_mm: tuple[tuple[float, float, float], ...]
    size: tuple[int, int]
    notes: tuple[str, ...]
    channels: int = 1

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> SiteCard:
        """Undo :meth:`to_json`, also of an older fedshift, whose labels told of all parts."""
        parts = tuple(fields["parts"] if "parts" in fields else fields["structures"])
        of_all = dict.fromkeys(parts, fields["splits"]["train"]["labelled"])
        return cls(
            name=fields["name"],
            role=fields["role"],
            vendors=tuple(fields["vendors"]),
            parts=parts,
            labelled=tuple(fields["labelled"]),
            teaches=fields.get("teaches", of_all),
            complete=fields.get("complete", True),
            splits=fields["splits"],
            spacing_mm=tuple(tuple(spacing) for spacing in fields["spacing_mm"]),
            size=tuple(fields["size"]),
            notes=tuple(fields["notes"]),
            channels=fields.get("channels", 1),
        )

    @property
    def trains(self) -> bool:
        """Whether the site may train: it is not held out and has training slices."""
        return self.role != "unseen" and self.splits["train"]["slices"] > 0

    @property
    def has_labels(self) -> bool:
        """Whether some training slice is labelled."""
        return self.splits["train"]["labelled"] > 0


@dataclass(frozen=True)
class MethodCard:
    """What a site says of the run's method and task.

    ``tensors`` are its networks', ``participation`` says at which sites it trains (``labelled``,
    ``all`` or ``both``), and ``stages`` are scored beside the finished model. ``task`` is what it
    is trained for, ``offers`` what strategies that reach into training may ask for, and
    ``complete_labels`` whether it needs labels that tell of everything. ``adapts`` says whether the
    method does something about sites whose images differ, and ``augments`` whether it takes the
    config's augmentation.
    """

    tensors: dict[str, TensorInfo]
    participation: str
    stages: tuple[str, ...]
    task: TaskCard
    offers: tuple[str, ...]
    complete_labels: bool
    adapts: bool = False
    augments: bool = True

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {
            "tensors": {name: info.to_json() for name, info in self.tensors.items()},
            "participation": self.participation,
            "stages": self.stages,
            "task": self.task.to_json(),
            "offers": self.offers,
            "complete_labels": self.complete_labels,
            "adapts": self.adapts,
            "augments": self.augments,
        }

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> MethodCard:
        """Undo :meth:`to_json`."""
        return cls(
            tensors={name: TensorInfo.from_json(info) for name, info in fields["tensors"].items()},
            participation=fields["participation"],
            stages=tuple(fields["stages"]),
            task=TaskCard.from_json(fields["task"]),
            offers=tuple(fields["offers"]),
            complete_labels=fields.get("complete_labels", False),  # An older run had complete ones.
            # Of an older run's methods those adapt that do not just train where labels are.
            adapts=fields.get(
                "adapts", fields["participation"] != "labelled" or bool(fields["stages"])
            ),
            augments=fields.get("augments", True),  # An older run does not say.
        )
