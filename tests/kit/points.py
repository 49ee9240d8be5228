"""Images with points, and the tables that hold them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fedshift import UserError
from fedshift.sites import DataSettings, check, load_federation, open_site
from fedshift.sites.types import Case, Federation, SiteData

KIND = {"kind": "manifest"}


class Tables:
    """A folder with images, a manifest of them and tables of their labels."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, str]] = []

    def png(self, name: str, shape: tuple[int, int] = (30, 40), **cells: str) -> None:
        """An image of noise (rows, columns), whose subject is its name."""
        values = np.random.default_rng(len(self.rows)).integers(0, 255, shape).astype(np.uint8)
        Image.fromarray(values).save(self.folder / f"{name}.png")
        self.row(f"{name}.png", **cells)

    def row(self, path: str, **cells: str) -> None:
        subject = path.partition(".")[0]
        self.rows.append({"path": path, "site": "A", "subject": subject} | cells)

    def write(self, name: str, header: str, *lines: str) -> str:
        """A table of labels; cells are parted by spaces."""
        text = "\n".join("\t".join(line.split(" ")) for line in (header, *lines))
        (self.folder / name).write_text(text + "\n")
        return name

    def settings(self, form: str, **data: Any) -> DataSettings:
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        lines = [columns, *([row.get(key, "") for key in columns] for row in self.rows)]
        manifest = self.folder / "M.tsv"
        manifest.write_text("\n".join("\t".join(line) for line in lines) + "\n")
        fixed = {"manifest": str(manifest), "cache": str(self.folder / "cache"), "size": 48}
        if "label_table" in data:
            data["label_table"] = str(self.folder / data["label_table"])
        return DataSettings.from_config({**fixed, **data}, form)

    def federation(self, form: str, **data: Any) -> Federation:
        return load_federation(KIND, self.settings(form, **data), 0)

    def open(self, form: str, site: str = "A", **data: Any) -> SiteData:
        settings = self.settings(form, **data)
        federation = load_federation(KIND, settings, 0)
        return open_site(federation.site(site), federation.parts, settings, 0)

    def cases(self, form: str, **data: Any) -> dict[str, Case]:
        opened = self.open(form, **data)
        return {case.id: case for cases in opened.splits.values() for case in cases}

    def codes(self, form: str, **data: Any) -> list[str]:
        settings = self.settings(form, **data)
        findings = check(load_federation(KIND, settings, 0), settings, 0)
        return [f.code for f in findings if f.code not in ("spacing-unknown", "near-duplicate")]

    def faults(self, form: str, **data: Any) -> str:
        """What stands in the way, in sentences; how a run would tell it."""
        try:
            settings = self.settings(form, **data)
            federation = load_federation(KIND, settings, 0)
        except UserError as error:
            return str(error)
        return "\n".join(f.told() for f in check(federation, settings, 0) if f.severity == "error")


def three(tables: Tables, **cells: str) -> None:
    """Three images of three subjects: one for each split."""
    for name in ("p", "q", "r"):
        tables.png(name, **cells)


def bright(volume: np.ndarray, voxel: np.ndarray, width: float = 1.5) -> np.ndarray:
    """A volume in which a blob lies at ``voxel``."""
    places = np.indices(volume.shape).astype(float)
    away = sum((axis - at) ** 2 for axis, at in zip(places, voxel, strict=True))
    return np.exp(-np.asarray(away) / (2 * width**2)).astype(np.float32)
