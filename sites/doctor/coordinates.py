"""Tables of points and boxes whose numbers look wrong."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from fedshift.sites.doctor.image import Image
from fedshift.sites.findings import Finding
from fedshift.sites.labels import Form
from fedshift.sites.labels.placed import Placed
from fedshift.sites.settings import DataSettings


def check_coordinates(images: Sequence[Image], form: Form, data: DataSettings) -> Iterable[Finding]:
    """Coordinates of a site that may be shares of its images' size, and rows that say one thing
    twice."""
    if not isinstance(form, Placed):
        return
    numbers: dict[str, list[float]] = defaultdict(list)
    for image in images:
        if not image.facts.has_labels:
            continue
        rows = form.coordinates_of(image.source)
        numbers[image.site] += [value for _, _, values in rows for value in values]
        twice = [one for one, number in Counter(row[1:] for row in rows).items() if number > 1]
        if twice:
            lines = [line for line, *own in rows if tuple(own) == twice[0]]
            yield image.finding(
                "warning",
                "placed-twice",
                f"has the same of its {form.marks} on the lines {lines[0]} and {lines[1]} of "
                f"{image.source.label_path}"
                + (f", and {len(twice) - 1} more twice" if len(twice) > 1 else ""),
                "keep one row of each",
            )
    if data.points_in != "pixel":
        return
    for site, found in numbers.items():
        if found and all(0 <= value <= 1 for value in found):
            yield Finding(
                "warning",
                "coordinates-small",
                site,
                "",
                f"all coordinates of its {form.marks} lie from 0 to 1, in the first pixel of each "
                "image: they may be shares of its size",
                "if so multiply x by its columns and y by its rows",
            )
