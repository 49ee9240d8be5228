"""Tables as hospitals save them: read where the meaning is plain, else one true sentence."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedshift import UserError
from fedshift.sites import DataSettings, load_federation
from fedshift.sites.manifest import parse_spacing, read_manifest
from fedshift.sites.types import ImageSource

HEADER = ("path", "label_path", "site", "subject", "spacing_mm")
ROWS = [(f"{s}.png", f"{s}_m.png", s[0].upper(), s, "0.5") for s in ("a0", "a1", "b0", "b1")]
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def call(
        rows: Sequence[Sequence[str]] = ROWS,
        header: Sequence[str] = HEADER,
        mark: str = "\t",
        name: str = "t.tsv",
        before: str = "",
        encoding: str = "utf-8",
        end: str = "\n",
    ) -> Path:
        lines = [mark.join(row) for row in (header, *rows)]
        text = before + end.join(lines) + end
        (tmp_path / name).write_bytes(text.encode(encoding))
        return tmp_path / name

    return call


def read(path: Path, **config: Any) -> dict[str, tuple[ImageSource, ...]]:
    return dict(read_manifest(DataSettings.from_config({"manifest": str(path), **config})).images)


def cells(images: dict[str, tuple[ImageSource, ...]]) -> list[tuple[Any, ...]]:
    return [
        (Path(i.path).name, Path(i.label_path).name, site, i.subject, i.spacing_mm)
        for site, those in images.items()
        for i in those
    ]


EXPECTED = [(p, m, site, subject, (0.5,)) for p, m, site, subject, _ in ROWS]


@pytest.mark.parametrize(
    "how",
    [
        {"mark": ";", "name": "t.csv"},
        {"mark": "\t", "name": "t.csv"},
        {"mark": ",", "name": "t.tsv"},
        {"mark": ";", "name": "t.tsv"},
        {"mark": ";", "name": "t.csv", "before": "sep=;\r\n", "end": "\r\n"},
        {"mark": "|", "name": "t.csv", "before": '"sep=|"\n'},
        {"mark": ",", "name": "t.csv", "before": ",,,,\n \n"},
        {"encoding": "utf-8-sig"},
        {"encoding": "utf-16"},
        {"encoding": "utf-32"},
        {"end": "\r"},
        {"rows": [*ROWS[:2], ("", " ", "", "", ""), ("",), *ROWS[2:]]},
        {"header": [*HEADER, "", ""], "rows": [(*row, "", "") for row in ROWS]},
        {"rows": [[f'"{cell}"' for cell in row] for row in ROWS]},
        {"header": [f" {name}\N{NO-BREAK SPACE}" for name in HEADER]},
    ],
)
def test_a_table_is_read_however_it_was_saved(write: Write, how: dict[str, Any]) -> None:
    assert cells(read(write(**how))) == EXPECTED


def test_a_big_endian_table_with_its_mark_is_read(write: Write) -> None:
    path = write()
    path.write_bytes(codecs.BOM_UTF16_BE + path.read_text().encode("utf-16-be"))
    assert cells(read(path)) == EXPECTED


def test_lines_are_counted_as_an_editor_counts_them(write: Write) -> None:
    assert [image.row for those in read(write()).values() for image in those] == [2, 3, 4, 5]
    with pytest.raises(UserError, match=r"line 8: the column 'site' is empty"):
        read(write(before="sep=\t\n\n", rows=[*ROWS, ("x.png", "", "", "x", "")]))


@pytest.mark.parametrize(
    ("how", "match"),
    [
        (
            {"mark": ",", "name": "t.csv", "rows": [("a.png", "m.png", "A", "a", "0,5")]},
            r"t\.csv, line 2 has 6 cells, the header 5",
        ),
        # One cell too many is no trailing delimiter: the row may be shifted.
        ({"rows": [(*ROWS[0], "")]}, r"t\.tsv, line 2 has 6 cells, the header 5"),
        ({"header": (*HEADER, ""), "rows": [(*ROWS[0], "x")]}, "line 2: cell 6 is filled"),
        ({"header": ("path", "path", *HEADER[2:])}, "has 2 columns called 'path'"),
        ({"rows": [('"a.png', *ROWS[0][1:]), *ROWS[1:]]}, r"line \d+: .*quotation marks"),
        (
            {"rows": [("a.png", "", "Universität", "a", "")], "encoding": "latin-1"},
            r"t\.tsv cannot be read \(line 2 is not UTF-8\); save it as UTF-8",
        ),
        ({"encoding": "utf-16-le"}, r"t\.tsv cannot be read"),
        ({"name": "t.xlsx"}, r"t\.xlsx must be a \.tsv or \.csv"),
        ({"rows": [("a.png", "", "UCL", "a"), ("b.png", "", "ucl", "b")]}, "'UCL' on line 2 and"),
        ({"rows": [("a.png", "", "St  M", "a"), ("b.png", "", "St M", "b")]}, "'St  M' on line 2"),
        (
            {"rows": [("a.png", "", "UCL", "P1"), ("b.png", "", "UCL", "p1")]},
            "the subject of UCL is 'P1' on line 2 and 'p1' on line 3",
        ),
        ({"rows": [("a.png", "", "A", "a"), ("./a.png", "", "A", "a")]}, "already on line 2"),
        (
            {"rows": [("a.png", "", "A", "a", "1,5,3")]},
            r"line 2: the commas of the spacing '1,5,3'",
        ),
        ({"rows": [("a.png", "", "A", "a", "half")]}, "line 2: the spacing 'half' is not one to"),
    ],
)
def test_what_may_mean_two_things_is_asked_in_one_sentence(
    write: Write, how: dict[str, Any], match: str
) -> None:
    with pytest.raises(UserError, match=match) as caught:
        read(write(**how))
    assert "\n" not in str(caught.value)


def test_names_that_look_alike_are_one(write: Write) -> None:
    composed, apart = (unicodedata.normalize(form, "Übersee 1") for form in ("NFC", "NFD"))
    spaced = composed.replace(" ", "\N{NO-BREAK SPACE}")
    rows = [
        (f"{k}.png", "", site, "é" if k else "e\N{COMBINING ACUTE ACCENT}", "", maker)
        for k, (site, maker) in enumerate(
            [(composed, "Siemens"), (apart, "SIEMENS"), (spaced, "siemens ")]
        )
    ]
    path = write(rows=rows, header=(*HEADER, "vendor"))
    images = read(path)
    assert list(images) == [composed]
    assert {(i.subject, i.domain.vendor) for i in images[composed]} == {("é", "Siemens")}
    data = DataSettings.from_config(
        {"manifest": str(path), "labels": {"x": 1}, "sites": [apart], "unseen_sites": []}
    )
    assert load_federation({"kind": "manifest"}, data, 0).sites[0].name == composed


def test_hyphens_that_look_alike_are_one(write: Write) -> None:
    written = ("St-Mary", "St\N{HYPHEN}Mary", "St\N{NON-BREAKING HYPHEN}Ma\N{SOFT HYPHEN}ry")
    images = read(write(rows=[(f"{k}.png", "", name, f"0{k}") for k, name in enumerate(written)]))
    assert list(images) == ["St-Mary"] and len(images["St-Mary"]) == 3


def test_one_label_file_has_one_meaning(write: Write) -> None:
    rows = [(f"{k}.png", "mask.png", "A", "p", "", text) for k, text in enumerate(("1=x", "1=y"))]
    with pytest.raises(UserError, match=r"line 3: mask.png has the label_values '1=y', .* '1=x'"):
        read(write(rows=rows, header=(*HEADER, "label_values")))
    same = [(*row[:5], "1=x") for row in rows]
    assert len(read(write(rows=same, header=(*HEADER, "label_values")))["A"]) == 2


def test_a_name_with_two_spaces_can_be_asked_for_with_one(write: Write) -> None:
    path = write(rows=[(f"{k}.png", "", "St  Mary", f"0{k}") for k in range(2)])
    images = read(path)
    assert list(images) == ["St Mary"] and [i.subject for i in images["St Mary"]] == ["00", "01"]
    data = DataSettings.from_config(
        {"manifest": str(path), "labels": {"x": 1}, "sites": ["St  Mary"]}
    )
    assert len(load_federation({"kind": "manifest"}, data, 0).sites) == 1


def test_columns_are_found_in_any_spelling(write: Write) -> None:
    apart = unicodedata.normalize("NFD", "Gerät")
    path = write(header=("path", "label_path", "site", "subject", apart), mark=";", name="t.csv")
    for spelt in (apart, unicodedata.normalize("NFC", apart)):
        assert list(read(path, site_column=spelt)) == ["0.5"]
        assert list(read(path, columns={"site": spelt})) == ["0.5"]


def test_files_are_found_as_people_write_their_paths(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = unicodedata.normalize("NFD", "Köpfe")
    files = {
        r"images\x.png": "images/x.png",
        f"images/{unicodedata.normalize('NFC', folder)}/é.png": f"images/{folder}/é.png",
        "~/y.png": "home/y.png",
        "~nobody-has-this-name/z.png": "~nobody-has-this-name/z.png",
        "a\N{NO-BREAK SPACE}b.png": "a b.png",
        r"odd\name.png": r"odd\name.png",
        str(tmp_path / "absolute.png"): "absolute.png",
    }
    for name in files.values():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    rows = [(text, "", "A", f"{k}") for k, text in enumerate(files)]
    images = read(write(rows=rows))["A"]
    assert [i.path for i in images] == [str(tmp_path / name) for name in files.values()]
    assert images[0].case == "x"
    by_slash = read(write(rows=rows[:1]), site_pattern="^(images)/x")
    by_backslash = read(write(rows=rows[:1]), site_pattern=r"^(images)\\x")
    assert list(by_slash) == list(by_backslash) == ["images"]


def test_a_file_that_is_nowhere_keeps_its_written_path(write: Write, tmp_path: Path) -> None:
    (image,) = read(write(rows=[("no/where.png", "", "A", "a")]))["A"]
    assert image.path == str(tmp_path / "no/where.png")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.06914", (0.06914,)),
        ("0.5x0.5x3", (0.5, 0.5, 3.0)),
        ("0.5 x 0.4 mm", (0.5, 0.4)),
        ("1,5", (1.5,)),
        ("0,5", (0.5,)),
        ("0,75x0,75", (0.75, 0.75)),
        ("0,75 × 0,75 x 3 mm", (0.75, 0.75, 3.0)),
        ("0,75mm x 0,75mm", (0.75, 0.75)),
        ("0,5;0,5;3", (0.5, 0.5, 3.0)),
        ("0,5, 0,5", (0.5, 0.5)),
        (r"0.5\0.5", (0.5, 0.5)),
        ("0.5,0.5,3", (0.5, 0.5, 3.0)),
        ("[0.5, 0.5, 3.0]", (0.5, 0.5, 3.0)),
        ("(1 x 1 x 3)", (1.0, 1.0, 3.0)),
        ("1.5,3", (1.5, 3.0)),
        ("1, 1, 3", (1.0, 1.0, 3.0)),
        ("5e-1", (0.5,)),
        ("1\N{NO-BREAK SPACE}1", (1.0, 1.0)),
        ("", None),
        ("n/a", None),
        ("n/a (PNG; ~1.25-1.4 in plane, 8mm slice per dataset page)", None),
        ("NA", None),
        ("NaN", None),
        ("unknown", None),
        ("?", None),
        ("-", None),
        ("0", None),
        ("0x0", None),
    ],
)
def test_a_spacing_is_read_where_it_is_plain(text: str, expected: tuple[float, ...] | None) -> None:
    assert parse_spacing(text, "t, line 2") == expected


@pytest.mark.parametrize(
    "text",
    [
        *("1.000,5", "1,1", "1,5,3", "1,1,3", "0,5,0,5", "1, 5", "1,1, 3", "1 ,5", ",5"),
        *("0.5 cm", "-1", "0.5x0", "1x1x1x1", "1e999", "01. Mai", "1.500,00", "0,5x0.5", "1,000.5"),
        *("(n/a)", "~0.5", "0.5x", "isotropic"),
    ],
)
def test_a_spacing_that_is_not_plain_is_asked_for(text: str) -> None:
    with pytest.raises(UserError, match=r"^t\.tsv, line 2: the (commas of the )?spacing"):
        parse_spacing(text, "t.tsv, line 2")


def test_missing_labels_are_called_missing_not_empty(write: Write, tmp_path: Path) -> None:
    def structures() -> tuple[str, ...]:
        data = DataSettings.from_config({"manifest": str(write())})
        return load_federation({"kind": "manifest"}, data, 0).parts

    for row in ROWS:
        Image.fromarray(np.eye(4, dtype=np.uint8)).save(tmp_path / row[0])
    missing = r"of 4 label files and their images 4 do not exist; the first: .*a0_m\.png"
    with pytest.raises(UserError, match=missing):
        structures()
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "a0_m.png")
    with pytest.raises(UserError, match="3 do not exist, and the others hold no value above 0"):
        structures()
    (tmp_path / "a1_m.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="3 are unusable, and the others"):
        structures()
    for row in ROWS:
        Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / row[1])
    with pytest.raises(UserError, match="no label file holds a value above 0"):
        structures()
    Image.fromarray(np.full((4, 4), 3, np.uint8)).save(tmp_path / "b0_m.png")
    assert structures() == ("label 3",)
