"""``fedshift sites``: what a federation's sites hold, and what is wrong with it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer
from rich.table import Table

from fedshift import UserError
from fedshift.cli.console import PlainConsole
from fedshift.protocol.storage import write_yaml
from fedshift.protocol.words import count
from fedshift.runs.checking import UNPLANNED, Checked, examine, sentences, settle
from fedshift.runs.config import load
from fedshift.runs.federation import open_federation, task_settings
from fedshift.runs.plugins import method_settings
from fedshift.sites import fingerprint, open_site
from fedshift.sites.example import labels, write_example
from fedshift.sites.plan import PLANES, written
from fedshift.sites.settings import PLANNED
from fedshift.sites.types import SPLITS


def list_sites(overrides: Sequence[str], config_dir: Path | None = None) -> None:
    """Print a line a site; no image is read."""
    federation, _ = open_federation(load(overrides, config_dir))
    parts = f": {', '.join(federation.parts)}" if federation.parts else ""
    table = _table(f"{federation.name}{parts}")
    for column in ("site", "role", "vendors", "scanners", "subjects", "images"):
        table.add_column(column, justify="right" if column in ("subjects", "images") else "left")
    for site in federation.sites:
        table.add_row(
            site.name,
            site.role,
            ", ".join(vendor or "?" for vendor in site.vendors),
            ", ".join(sorted({image.domain.scanner for image in site.images} - {""})),
            str(len({image.subject for image in site.images})),
            str(len(site.images)),
        )
    PlainConsole().print(table)


def inspect_sites(
    overrides: Sequence[str], pictures: Path | None = None, config_dir: Path | None = None
) -> None:
    """Print each site's fingerprint, from its prepared images, and draw some of them with their
    labels into the folder ``pictures``."""
    console = PlainConsole()
    config = settle(load(overrides, config_dir), console.tell)
    federation, data = open_federation(config)
    for site in federation.sites:
        opened = open_site(site, federation.parts, data, config["seed"])
        found = fingerprint(opened)
        table = _table(f"{site.name} ({site.role})")
        table.add_column(style="dim")
        table.add_column()
        table.show_header = False
        vendors = [f"{vendor or 'unknown'} ({n} cases)" for vendor, n in found["vendors"].items()]
        table.add_row("vendors", ", ".join(vendors))
        table.add_row("scanners", ", ".join(found["scanners"]) or "not given")
        for split in SPLITS:
            counts = found["splits"][split]
            table.add_row(
                split,
                f"{counts['subjects']} subjects, {counts['cases']} cases, {counts['slices']} "
                f"slices, {counts['labelled']} labelled",
            )
        spacing = found["spacing_mm"]
        table.add_row(
            "spacing",
            " x ".join(f"{value:.3g}" for value in spacing["median"])
            + " mm (slice, row, column; median)",
        )
        table.add_row(
            "intensity",
            ", ".join(f"{name} {value:.3g}" for name, value in found["intensity"].items()),
        )
        for name, held in found["parts"].items():
            told = "no label" if held is None else f"{held[0]:.3g} {held[1]}".strip() + " a case"
            table.add_row(name, told)
        for note in found["notes"]:
            table.add_row("note", note)
        if pictures is not None:
            from fedshift.sites.pictures import draw_site

            pictures.mkdir(parents=True, exist_ok=True)
            path = pictures / f"{site.name}.png"
            path.write_bytes(draw_site(opened))
            table.add_row("pictures", str(path))
        console.print(table)


def write_example_sites(folder: Path, sites: int) -> None:
    """Write phantom images as so many hospitals have them, and a config to run at them."""
    folders = write_example(folder, sites=sites)
    write_yaml(
        folder / "run.yaml",
        {
            "federation": "manifest",
            "data": {"manifest": str(folder.resolve() / "MANIFEST.tsv"), "labels": labels()},
            "method": {"depth": 3, "width": 8},
            "rounds": 5,
            "local_steps": 10,
        },
    )
    PlainConsole().tell(
        f"{folder} holds {', '.join(folders)}, each with its images and their table, a table of "
        "all, and run.yaml"
    )


def check_sites(overrides: Sequence[str], config_dir: Path | None = None) -> None:
    """Print what the doctor finds; exit with 2 when a run would stop at it."""
    found = examine(load(overrides, config_dir))
    console = PlainConsole()
    for sentence in sentences(found):
        console.tell(sentence)
    images = sum(len(site.images) for site in found.federation.sites)
    errors = sum(finding.severity == "error" for finding in found.findings)
    warnings = len(found.findings) - errors
    sites = count(len(found.federation.sites), "site")
    console.print(
        f"{count(images, 'image')} of {sites} checked: {count(errors, 'error')}, "
        f"{count(warnings, 'warning')}",
        soft_wrap=True,
    )
    if found.stopping:
        raise typer.Exit(2)


def adopt_folder(
    folder: Path,
    out: Path,
    layout: str,
    said: Mapping[str, str | None],
    *,
    links: bool = False,
    force: bool,
) -> None:
    """Write a manifest of ``folder``; print where each column came from and what was left out."""
    from fedshift.sites import adopt

    out = out.expanduser()
    adopt.check_out(out, force=force)
    key_path, key = adopt.key_for(out)
    beside = out.parent.resolve() / f"{out.stem}_series" if links else None
    options = adopt.Options.of(**said, key=key, links=beside)
    found = adopt.adopt(folder, layout, options)
    adopt.write(found, out, options, force=force)
    rows, console = found.rows, PlainConsole()
    labelled = sum(row.label is not None for row in rows)
    console.print(
        f"{out}: {len(rows)} images, {labelled} with a label ({found.layout})", soft_wrap=True
    )
    table = Table()
    for column in ("column", "taken from", "filled", "values"):
        table.add_column(column, justify="right" if column == "filled" else "left")
    for name, origin in found.origin.items():
        cells = adopt.filled(rows, name)
        if cells:
            values = sorted(set(cells))
            told = adopt.three(values) if len(values) <= 8 else f"{len(values)} values"
            table.add_row(name, origin, f"{len(cells)} of {len(rows)}", told)
    console.print(table)
    bare = {"without a label": [str(row.image) for row in rows if row.label is None]}
    for said_of, reasons in (
        ("", bare),
        ("guessed, ", found.guesses),
        ("left out, ", found.left_out),
    ):
        for reason, names in reasons.items():
            if names:
                console.print(said_of + adopt.counted(reason, names), soft_wrap=True)
    for note in found.notes:
        console.print(f"note: {note}", soft_wrap=True)
    if found.keyed:
        console.print(
            f"{key_path} holds the key of the pseudonyms; keep it where the images are.",
            soft_wrap=True,
        )
    given = shlex.quote(f"data.manifest={_hydra(str(out))}")
    console.print("Next:", soft_wrap=True)
    console.print(f"  fedshift sites check federation=manifest {given}", soft_wrap=True)
    console.print(f"  fedshift simulate federation=manifest {given} out=runs/mine", soft_wrap=True)


def _hydra(text: str) -> str:
    """``text`` as the value of an override: quoted where its characters mean something there."""
    if re.fullmatch(r"[\w./:~@ -]*\w", text):
        return text
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return f"'{escaped}'"


def plan_sites(overrides: Sequence[str], config_dir: Path | None = None) -> None:
    """Print what a run would set where ``data`` says auto, why, and what a training step costs."""
    from fedshift.client.memory import step_cost  # torch, which the other commands here do without

    config = load(overrides, config_dir)
    found = examine(config)
    console = PlainConsole()
    if config["federation"]["kind"] == "phantom":
        console.print(
            "A phantom is drawn on the network's grid: nothing is to be planned.", soft_wrap=True
        )
        return
    if found.data.auto:
        problem = next(finding for finding in found.findings if finding.code == UNPLANNED)
        raise UserError(f"{problem.problem}; {problem.way_out}.")
    _tell_summaries(console, found)
    for decision in found.decisions:
        console.print(decision.told(), soft_wrap=True)
    given = [key for key in PLANNED if key not in {d.key for d in found.decisions}]
    if given := [key for key in given if getattr(found.data, key) is not None]:
        told = " ".join(f"data.{key}={written(getattr(found.data, key))}" for key in given)
        console.print(f"by hand: {told}", soft_wrap=True)
    cost = step_cost(
        method_settings(config),
        task_settings(config, found.federation.parts),
        config["rounds"],
        found.data.size,
    )
    console.print(
        f"a training step of method={config['method']['name']} at {found.data.size} x "
        f"{found.data.size} takes {cost.seconds:.2g} s and {cost.megabytes:,.0f} MB on one core",
        soft_wrap=True,
    )
    if errors := len(found.stopping):
        console.print(
            f"{count(errors, 'error')} would stop a run: fedshift sites check", soft_wrap=True
        )


def _tell_summaries(console: PlainConsole, found: Checked) -> None:
    """A line a site: what it lets go, and the settings are chosen from."""
    table = _table("what the sites tell")
    for column in ("site", "images", "thick slices", "spacing (mm)", "matrix", "labels reach"):
        table.add_column(column)
    for name, summary in found.summaries.items():
        if summary is None:
            continue
        axes = ", ".join(f"{PLANES[k]} {n}" for k, n in enumerate(summary.axes) if n)
        # A single slice has no thickness.
        dims = 2 if summary.shape[2] == 1 else 3
        spacing = (summary.spacing_mm or ())[:dims]
        across = found.data.slice_axis or 0
        reach, pixels = summary.reach_mm[across], summary.reach_px[across]
        table.add_row(
            name,
            str(summary.images),
            axes or ("single" if min(summary.shape) == 1 else "none"),
            " x ".join(f"{mm:.3g}" for mm in spacing) if spacing else "unknown",
            " x ".join(map(str, summary.shape[:dims])),
            f"{reach:g} mm" if reach else f"{pixels:g} pixels" if pixels else "no labels",
        )
    console.print(table)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold")
