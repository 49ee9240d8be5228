"""What the values of a label file mean: by value, and by what the file itself calls its values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fedshift.sites.names import fold


@dataclass(frozen=True)
class Legend:
    """The classes of values, and of names as :func:`.names.fold` has them; 0 is the background.

    In files of annotation tools numbers are given as structures are drawn, so that only a name says
    what one is. A file without names has nothing but its values.
    """

    values: Mapping[int, int]
    names: Mapping[str, int] = field(default_factory=dict)

    def classes(self, named: Mapping[int, str]) -> dict[int, int]:
        """Value -> class in a file that calls its values ``named``; a name decides before a number.

        What is neither known by name nor by value is in no structure and left out. Value 0 is
        always the background.
        """
        known = {value: fold(name) for value, name in named.items()}
        own = {value: self.names[name] for value, name in known.items() if name in self.names}
        return {**self.values, **own, 0: 0}
