"""``fedshift sites``: what a federation's sites hold, and what is wrong with it."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from fedshift.cli.config import Config, load
from fedshift.cli.console import PlainConsole
from fedshift.sites import DataSettings, check, fingerprint, load_federation, open_site
from fedshift.sites.types import SPLITS, Federation


def _federation(overrides: Sequence[str]) -> tuple[Config, DataSettings, Federation]:
    config = load(overrides)
    data = DataSettings.from_config(config["data"])
    return config, data, load_federation(config["federation"], data, config["seed"])


def list_sites(overrides: Sequence[str]) -> None:
    """Print a line a site; no image is read."""
    _, _, federation = _federation(overrides)
    table = _table(f"{federation.name}: {', '.join(federation.structures)}")
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


def inspect_sites(overrides: Sequence[str]) -> None:
    """Print each site's fingerprint, from its prepared images."""
    config, data, federation = _federation(overrides)
    console = PlainConsole()
    for site in federation.sites:
        found = fingerprint(open_site(site, federation.structures, data, config["seed"]))
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
        for name, volume in found["volume_ml"].items():
            table.add_row(name, "no label" if volume is None else f"{volume:.3g} mL a case")
        for note in found["notes"]:
            table.add_row("note", note)
        console.print(table)


def check_sites(overrides: Sequence[str]) -> None:
    """Print what the doctor finds; exit with 2 when results would be wrong."""
    config, data, federation = _federation(overrides)
    findings = check(federation, data, config["seed"])
    console = PlainConsole()
    for finding in findings:
        color = "red" if finding.severity == "error" else "yellow"
        where = ": ".join(part for part in (finding.site, finding.file) if part)
        console.print(
            Text.assemble(
                (finding.severity, color),
                f" {where or federation.name}: {finding.problem}; {finding.way_out}",
            ),
            soft_wrap=True,
        )
    images = sum(len(site.images) for site in federation.sites)
    errors = sum(finding.severity == "error" for finding in findings)
    console.print(
        f"{images} images of {len(federation.sites)} sites checked: {errors} errors, "
        f"{len(findings) - errors} warnings",
    )
    if errors:
        raise typer.Exit(2)


def adopt_folder(
    folder: Path, out: Path, layout: str, said: Mapping[str, str | None], force: bool
) -> None:
    """Write a manifest of ``folder``; print where each column came from and what was left out."""
    from fedshift.sites import adopt

    out = out.expanduser()
    adopt.check_out(out, force=force)
    key_path, key = adopt.key_for(out)
    options = adopt.Options.of(**said, key=key)
    found = adopt.adopt(folder, layout, options)
    adopt.write(found, out, options, force=force)
    rows, console = found.rows, PlainConsole()
    labelled = sum(row.label is not None for row in rows)
    _say(console, f"{out}: {len(rows)} images, {labelled} with a label ({found.layout})")
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
                _say(console, said_of + adopt.counted(reason, names))
    for note in found.notes:
        _say(console, f"note: {note}")
    if found.keyed:
        _say(console, f"{key_path} holds the key of the pseudonyms; keep it where the images are.")
    given = shlex.quote(f"data.manifest={_hydra(str(out))}")
    _say(console, "Next:")
    _say(console, f"  fedshift sites check federation=manifest {given}")
    _say(console, f"  fedshift simulate federation=manifest {given} out=runs/mine")


def _hydra(text: str) -> str:
    """``text`` as the value of an override: quoted where its characters mean something there."""
    if re.fullmatch(r"[\w./:~@ -]*\w", text):
        return text
    escaped = re.sub(r"(\\*)'", r"\1\1\\'", text)
    return f"'{escaped}'"


def _say(console: PlainConsole, text: str) -> None:
    console.print(text, soft_wrap=True)


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold")
