"""What a site tells of itself before a run: counts and names, never an image or a label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class SiteCard:
    """A site's self-description.

    ``role`` is ``train`` or ``unseen``. ``splits`` maps ``train``, ``val``, ``test`` to counts of
    subjects, cases, slices and labelled slices; ``labelled`` are the structures that some training
    slice shows. ``teaches`` maps each structure to the number of labelled training slices whose
    label tells of it, and ``complete`` says whether all of them tell of every structure and pixel.
    ``spacing_mm`` lists the image grids' distinct (slice, row, column) spacings.
    """

    name: str
    role: str
    vendors: tuple[str, ...]
    structures: tuple[str, ...]
    labelled: tuple[str, ...]
    teaches: Mapping[str, int]
    complete: bool
    splits: Mapping[str, Mapping[str, int]]
    spacing_mm: tuple[tuple[float, float, float], ...]
    size: tuple[int, int]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> SiteCard:
        """Undo :meth:`to_json`, also of an older fedshift, whose labels told of all structures."""
        of_all = dict.fromkeys(fields["structures"], fields["splits"]["train"]["labelled"])
        return cls(
            name=fields["name"],
            role=fields["role"],
            vendors=tuple(fields["vendors"]),
            structures=tuple(fields["structures"]),
            labelled=tuple(fields["labelled"]),
            teaches=fields.get("teaches", of_all),
            complete=fields.get("complete", True),
            splits=fields["splits"],
            spacing_mm=tuple(tuple(spacing) for spacing in fields["spacing_mm"]),
            size=tuple(fields["size"]),
            notes=tuple(fields["notes"]),
        )

    @property
    def trains(self) -> bool:
        """Whether the site may train: it is not held out and has training slices."""
        return self.role != "unseen" and self.splits["train"]["slices"] > 0

    @property
    def has_labels(self) -> bool:
        """Whether some training slice is labelled."""
        return self.splits["train"]["labelled"] > 0
