"""What a run's rounds are for, in a method that trains one thing after another."""

from __future__ import annotations

from collections.abc import Mapping

from fedshift import Tellable


class Phases:
    """So many rounds of each phase, in this order; the last one must be reached.

    ``rounds`` maps a phase's name to its number of rounds, the setting ``method.NAME_rounds``; None
    for the last one: all that are left.
    """

    def __init__(self, rounds: Mapping[str, int | None]) -> None:
        *first, (self._last, length) = rounds.items()
        self._first = {name: count or 0 for name, count in first}
        self.before = sum(self._first.values())
        """How many rounds lie before the last phase."""
        self._end = None if length is None else self.before + length

    def of(self, round: int) -> str:
        """The phase of ``round``, which counts from 1; empty when all are over."""
        for name, count in self._first.items():
            if round <= count:
                return name
            round -= count
        return self._last if self._end is None or round + self.before <= self._end else ""

    def bound(self, rounds: int) -> str:
        """As :meth:`~fedshift.client.contract.method.Method.bound_to_rounds`: in a run that is too
        short for the last phase nothing is trained."""
        return "" if rounds > self.before else "trains nothing in so short a run"

    def check(self, rounds: int) -> None:
        """Raise :class:`fedshift.UserError` when a run of so many ``rounds`` is too short."""
        if rounds <= self.before:
            settings = " + ".join(f"method.{name}_rounds" for name in self._first)
            wanted = self._end or f"more than {self.before}"
            raise Tellable(
                f"rounds={rounds} leaves none for the {self._last}, before which come "
                f"{self.before} ({settings}): set rounds to {wanted}"
            )
