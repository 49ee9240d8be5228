"""Run folders made by hand, and their page as a reader sees it."""

from __future__ import annotations

import io
import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
from kit.measured import SEGMENTATION, write_method
from rich.console import Console

from fedshift.protocol.tables import SUMMARY_COLUMNS, SUMMARY_KEYS
from fedshift.server.report import summary
from fedshift.server.tables.files import write_cross_site, write_shift


def write_run(
    folder: Path,
    train: list[str],
    unseen: tuple[str, ...] = (),
    structures: tuple[str, ...] = ("cavity", "wall"),
    rounds: int = 4,
    metrics: tuple[str, ...] = ("dice", "hd95_mm", "volume_error_ml"),
    scores_only: bool = False,
) -> Path:
    """Write a whole run folder with plausible numbers; with ``scores_only`` without training,
    shift and ledger, whose figures take time to draw."""
    rng = np.random.default_rng(0)
    sites = [*train, *unseen]
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "federation:\n  name: cardiac_phantom\nmethod:\n  name: supervised\n"
        f"strategy:\n  name: fedavg\nrounds: {rounds}\nseed: 7\n",
        encoding="utf-8",
    )
    place = {site: rng.uniform(0, 1) for site in sites}
    arms = [("local", site) for site in train] + [("personal", site) for site in train]
    arms += [("global", "all"), ("pooled", "all")]
    rows = []
    for model, trained_on in arms:
        for site in sites:
            if model == "personal" and site != trained_on:
                continue
            away = abs(place.get(trained_on, place[site]) - place[site])
            dice = {"global": 0.84, "pooled": 0.88}.get(model, 0.87 - 0.7 * away)
            for structure in structures:
                value = float(dice - 0.03 * structures.index(structure) + rng.normal(0, 0.01))
                for metric in metrics:
                    scale = {"dice": value, "nsd": value, "volume_error_ml": value - 0.8}
                    mean = scale.get(metric, 30 * (1 - value) if metric.endswith("mm") else value)
                    rows.append(
                        cross_site_row(
                            model,
                            trained_on,
                            site,
                            structure,
                            metric,
                            mean,
                            n_failed=2 if away > 0.5 else 0,
                        )
                    )
    write_method(folder)
    write_cross_site(folder / "cross_site.csv", rows, SEGMENTATION)
    write_shift(
        folder / "shift.csv",
        [
            {"site_a": a, "site_b": b, "metric": metric, "value": size * noise}
            for i, a in enumerate(sites)
            for b in sites[i + 1 :]
            for size in [abs(place[a] - place[b])]
            for metric, noise in (
                ("intensity_wasserstein", 1.0),
                ("spectrum_distance", rng.uniform(0.5, 2)),
                ("feature_frechet", rng.uniform(0.8, 1.2)),
                ("label_tv", rng.uniform(0, 2)),
                ("mmd_p", 0.01),
            )
        ],
    )
    with (folder / "rounds.jsonl").open("w", encoding="utf-8") as file:
        for number in range(1, rounds + 1):
            rise = 1 - 0.6**number
            found = {
                site: {
                    "examples": 40,
                    "seconds": 1.0,
                    "loss": 1.2 - rise,
                    "val_dice": 0.8 * rise + 0.1 * place[site],
                }
                for site in train
            }
            alone = {
                site: {**item, "val_dice": item["val_dice"] + 0.03} for site, item in found.items()
            }
            line = {
                "round": number,
                "seconds": 3.25,
                "bytes_down": 1_000_000,
                "bytes_up": 2_000_000,
                "sites": found,
                "failed": {train[-1]: "out of memory"} if number in (2, 3) else {},
                "rejected": {train[0]: "non-finite update"} if number == 2 else {},
                "skipped": None,
                "baselines": {
                    "local": {"seconds": 1.0, "sites": alone, "failed": {}},
                    "pooled": {
                        "seconds": 1.0,
                        "sites": {"all": {**found[train[0]], "val_dice": 0.85 * rise}},
                        "failed": {},
                    },
                },
            }
            file.write(json.dumps(line) + "\n")
    with (folder / "egress.jsonl").open("w", encoding="utf-8") as file:
        for site in [*sites, "all"]:
            for number in range(1, rounds + 1):
                for record, size, purpose in (
                    ("arrays/segmenter.stem.weight", 5_000, "model update"),
                    ("arrays/segmenter.head.weight", 2_500, "model update"),
                    ("metrics/val_dice", 8, "validation metrics"),
                    ("metrics/dice", 8, "case metrics"),
                ):
                    line = {
                        "site": site,
                        "round": number,
                        "record": record,
                        "shape": [size // 4],
                        "dtype": "float32",
                        "bytes": size,
                        "purpose": purpose,
                    }
                    if purpose != "model update" or site not in unseen:
                        file.write(json.dumps(line) + "\n")
    cards = [
        {
            "name": site,
            "role": "unseen" if site in unseen else "train",
            "vendors": [site.replace("vendor_", "Vendor ")],
            "splits": {
                "train": {"subjects": 8, "cases": 8, "slices": 96, "labelled": 90},
                "val": {"subjects": 2, "cases": 2, "slices": 24, "labelled": 24},
                "test": {"subjects": 4, "cases": 4, "slices": 48, "labelled": 48},
            },
            "parts": list(structures),
            "spacing_mm": [[8.0, 1.5, 1.5]],
            "notes": ["single subject split by blocks of slices"] if site == train[-1] else [],
        }
        for site in sites
    ]
    cards.append({**cards[0], "name": "all", "role": "train", "notes": ["in one place"]})
    (folder / "checkpoints" / "sites.json").write_text(json.dumps(cards), encoding="utf-8")
    if scores_only:
        for name in ("rounds.jsonl", "shift.csv", "egress.jsonl"):
            (folder / name).unlink()
    return folder


def cross_site_row(
    model: str,
    trained_on: str,
    site: str,
    structure: str,
    metric: str,
    mean: float,
    n_failed: int = 0,
    vendor: str | None = None,
) -> dict[str, Any]:
    values = (
        model, trained_on, site, site if vendor is None else vendor, structure, metric,
        12, n_failed, mean, 0.05, mean, mean - 0.02, mean + 0.02,
    )  # fmt: skip
    keys = (*SUMMARY_KEYS, "part", *SUMMARY_COLUMNS)
    return dict(zip(keys, values, strict=True))


class Page(HTMLParser):
    """Collects what a browser would fetch, run or show."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.cells: dict[str, list[list[str]]] = {}
        self.text = ""
        self._table = ""
        self._hidden = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        values = dict(attrs)
        self.links += [values[name] or "" for name in ("src", "href", "action") if name in values]
        if "data-table" in values:
            self._table = values["data-table"] or ""
        if tag == "tr":
            self.cells.setdefault(self._table, []).append([])
        if tag in ("td", "th"):
            self.cells[self._table][-1].append("")
        self._hidden = tag in ("style", "script")

    def handle_endtag(self, tag: str) -> None:
        if tag == "table":
            self._table = ""

    def handle_data(self, data: str) -> None:
        if self._hidden:
            return
        self.text += data
        rows = self.cells.get(self._table)
        if rows and rows[-1]:
            rows[-1][-1] += data


def shown(run: Path, width: int = 240) -> str:
    """What the terminal prints, without colours."""
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(summary(run))
    return console.file.getvalue()  # type: ignore[attr-defined]
