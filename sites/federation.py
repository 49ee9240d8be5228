"""From the config to the list of sites; a pixel is read only where label files may bring names, or
must be asked for structures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from fedshift import LONGEST_SITE_NAME, UserError, unusable_site_name
from fedshift.sites.labels import form_of
from fedshift.sites.labels.annotation import annotated
from fedshift.sites.manifest import read_manifest
from fedshift.sites.names import tidy
from fedshift.sites.settings import DataSettings, nearest
from fedshift.sites.survey import survey
from fedshift.sites.types import Domain, Federation, ImageSource, SiteSpec, Table

PHANTOM_KEYS = (
    "name",
    "kind",
    "anatomy",
    "shift",
    "sites",
    "unseen",
    "sites_per_vendor",
    "subjects",
    "slices",
    "size",
    "structure_shift",
    "faulty_sites",
)


def load_federation(federation: Mapping[str, Any], data: DataSettings, seed: int) -> Federation:
    """List the sites of the config nodes ``federation`` and ``data``.

    ``federation["kind"]`` is ``phantom`` or ``manifest``; a manifest's federation without a name of
    its own is called after the table. ``data.sites`` selects sites and
    ``data.unseen_sites`` adds to those that train nothing. Sites come sorted by name.

    Raises:
        UserError: an unknown key, kind or site name, a name that cannot be a folder's, an unusable
            manifest, or no site that trains.
    """
    kind = federation.get("kind")
    form = form_of(data)
    if kind == "phantom":
        _check_tableless(data)
        sites, parts = _phantom_sites(federation, seed, data.form)
        label_values: Mapping[str, str] = {}
    elif kind == "manifest":
        table = read_manifest(data)
        sites = [SiteSpec(name, images) for name, images in table.images.items()]
        if (
            form.needed
            and data.labels is None
            and not any(image.labelled for site in sites for image in site.images)
        ):
            raise UserError(_unlabelled(table, data))
        parts = form.parts(table, data, survey)
        label_values = table.label_values
    else:
        raise UserError(f"federation.kind must be phantom or manifest, not {kind!r}.")
    names = [site.name for site in sites]
    for name in names:
        _check_name(name)
    for key in ("sites", "unseen_sites", "unlabelled_sites", "annotates"):
        for name in getattr(data, key):
            if name not in names:
                raise UserError(
                    f"data.{key}: no site {name!r}; {nearest('nearest:', name, names)}."
                )
    chosen = [
        replace(
            site,
            role="unseen" if site.name in data.unseen_sites else site.role,
            images=tuple(
                replace(
                    image,
                    annotates=annotated(
                        image,
                        site.name,
                        form,
                        parts,
                        data,
                        label_values.get(image.label_path, ""),
                        own,
                    ),
                )
                for image, own in zip(site.images, form.own(site, data, survey), strict=True)
            ),
        )
        for site in sites
        if not data.sites or site.name in data.sites
    ]
    if all(site.role == "unseen" for site in chosen):
        raise UserError("no site trains: data.sites and data.unseen_sites leave only unseen sites.")
    name = str(federation.get("name", kind))
    if data.manifest is not None and name == kind == "manifest":
        name = _table_name(Path(data.manifest))
    chosen.sort(key=lambda site: site.name)
    return Federation(name, tuple(chosen), parts)


def _unlabelled(table: Table, data: DataSettings) -> str:
    """The sentence for a manifest none of whose images has a label of the form that is read."""
    form = form_of(data)
    if data.label_table is not None:
        return (
            f"{data.label_table} has no label for any image of {data.manifest}; mend the column by "
            "which they are joined: path, relative to the table itself, or of pairs pair_id."
        )
    more = ""
    if table.forms:
        more = (
            f", or take a task that learns from {' or '.join(table.forms)}, of which it has labels "
            "(`fedshift tasks` lists them)"
        )
    return (
        f"{data.manifest}: no image has a label of the form {form.name}; "
        f"{form.filled(data.columns)}{more}."
    )


def _check_tableless(data: DataSettings) -> None:
    """Raise :class:`UserError` for a setting of a table, which would be ignored in silence."""
    named = {name: column for name, column in data.columns.items() if name != column}
    for key, value in (
        ("manifest", data.manifest),
        *((f"columns.{name}", column) for name, column in named.items()),
        ("site_column", data.site_column),
        ("site_pattern", data.site_pattern),
        ("labels", data.labels),
        ("empty_masks", None if data.empty_masks == "unknown" else data.empty_masks),
        ("label_table", data.label_table),
        ("points_in", None if data.points_in == "pixel" else data.points_in),
        ("default_spacing_mm", data.default_spacing_mm),
    ):
        if value is not None:
            raise UserError(
                f"data.{key} is about a table of images, and phantoms have none; add "
                f"federation=manifest or take data.{key} out."
            )


def _check_name(name: str) -> None:
    """Raise :class:`UserError` for what no site can be called: ``all`` stands for every site."""
    fault = "stands for all sites" if name == "all" else unusable_site_name(name)
    if fault:
        shown = repr(name) if len(name) <= 60 else f"{name[:30]!r}..."
        raise UserError(
            f"the site name {shown} {fault}; rename the site, in at most {LONGEST_SITE_NAME} bytes "
            "and without slashes, backslashes and '::'."
        )


def _table_name(manifest: Path) -> str:
    """What to call the federation of a table: after the file, or its folder if that says no more
    than MANIFEST."""
    stem = manifest.stem
    return manifest.resolve().parent.name if stem.lower() == "manifest" else stem


def _phantom_sites(
    federation: Mapping[str, Any], seed: int, form: str
) -> tuple[list[SiteSpec], tuple[str, ...]]:
    from fedshift.sites import phantoms

    for key in federation:
        if key not in PHANTOM_KEYS:
            raise UserError(
                f"federation.{key} is not a setting; {nearest('did you mean', key, PHANTOM_KEYS)}."
            )
    optional = {"name", "unseen", "sites_per_vendor", "structure_shift", "faulty_sites"}
    for key in set(PHANTOM_KEYS) - optional:
        if key not in federation:
            raise UserError(f"federation.{key} is missing; a phantom federation needs it.")
    counts = {
        key: _count(key, federation.get(key, 1)) for key in ("sites_per_vendor", "slices", "size")
    }
    shift = _grade("shift", federation["shift"])
    structure_shift = _grade("structure_shift", federation.get("structure_shift", 0.0))
    given = federation["sites"]
    if not isinstance(given, Mapping) or not given:
        raise UserError(
            "federation.sites must map each site's name to the vendors of its scanners."
        )
    given = {tidy(str(name)): vendors for name, vendors in given.items()}
    anatomy = str(federation["anatomy"])
    parts, known = phantoms.parts(anatomy, form), phantoms.vendors(anatomy)
    if structure_shift:
        phantoms.check_outline(anatomy, form)
    unseen = [tidy(str(name)) for name in federation.get("unseen") or ()]
    for name in unseen:
        if name not in given:
            raise UserError(
                f"federation.unseen: no site {name!r}; {nearest('nearest:', name, given)}."
            )
    subjects = _subjects(federation["subjects"], given)
    faults = _faults(federation.get("faulty_sites") or {})
    sites = []
    for place, (site, named) in enumerate(given.items()):
        # Each site's convention, evenly from the innermost outlines to the outermost.
        outline = structure_shift * (2 * place / (len(given) - 1) - 1) if len(given) > 1 else 0.0
        vendors = [named] if isinstance(named, str) else list(named)
        for vendor in vendors:
            if vendor not in known:
                raise UserError(
                    f"federation.sites.{site}: no vendor {vendor!r}; "
                    f"{nearest('nearest:', vendor, known)}."
                )
        if not vendors:
            raise UserError(f"federation.sites.{site} must name at least one vendor.")
        copies = 1 if site in unseen else counts["sites_per_vendor"]
        for copy in range(copies):
            name = str(site) if copies == 1 else f"{site}_{copy + 1:03d}"
            images = []
            for number in range(subjects[site]):
                # A site with several scanners uses them in turn.
                vendor = vendors[number % len(vendors)]
                subject = f"{name}-{number + 1:03d}"
                recipe = {
                    "anatomy": anatomy,
                    "vendor": vendor,
                    "subject": subject,
                    "seed": seed,
                    "shift": shift,
                    "size": counts["size"],
                    "slices": counts["slices"],
                    "outline": outline,
                    "fault": faults.get(name, ""),
                }
                images.append(ImageSource(subject, subject, Domain(vendor), phantom=recipe))
            sites.append(SiteSpec(name, tuple(images), "unseen" if site in unseen else "train"))
    names = [site.name for site in sites]
    for name in faults:
        if name not in names:
            raise UserError(
                f"federation.faulty_sites: no site {name!r}; {nearest('nearest:', name, names)}."
            )
    return sites, parts


def _grade(key: str, value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise UserError(f"federation.{key} must be a number from 0 to 1, not {value!r}.")
    return float(value)


def _subjects(value: Any, sites: Mapping[str, Any]) -> dict[str, int]:
    """The number of subjects of each of ``sites``: one number for all, or a mapping."""
    if not isinstance(value, Mapping):
        return dict.fromkeys(sites, _count("subjects", value))
    value = {tidy(str(name)): number for name, number in value.items()}
    for name in value:
        if name not in sites:
            raise UserError(
                f"federation.subjects: no site {name!r}; {nearest('nearest:', name, sites)}."
            )
    for name in sites:
        if name not in value:
            raise UserError(
                f"federation.subjects has no number for the site {name}; add it or give one "
                "number for all."
            )
    return {name: _count(f"subjects.{name}", number) for name, number in value.items()}


def _faults(value: Any) -> dict[str, str]:
    from fedshift.sites import phantoms

    if not isinstance(value, Mapping):
        raise UserError(
            f"federation.faulty_sites must map a site's name to its fault, not {value!r}."
        )
    for name, fault in value.items():
        if fault not in phantoms.FAULTS:
            raise UserError(
                f"federation.faulty_sites.{name} must be {' or '.join(phantoms.FAULTS)}, "
                f"not {fault!r}."
            )
    return {tidy(str(name)): str(fault) for name, fault in value.items()}


def _count(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise UserError(f"federation.{key} must be a whole number of at least 1, not {value!r}.")
    return value
