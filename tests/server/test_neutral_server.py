"""The server knows of tasks their cards alone: its source names no measure, part, form or task."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import fedshift
from fedshift.client.tasks import TASKS
from fedshift.sites.labels import FORMS

SERVER = Path(fedshift.__file__).parent / "server"
PLAIN_WORDS = {"none"}
"""Names that mean something else in any program."""


def declared() -> set[str]:
    """What tasks and forms are called, their measures, and what they call a part."""
    found = set(FORMS) | set(TASKS.names())
    for name in TASKS.names():
        card = TASKS.named(name)(("left", "right")).card(name)
        found |= {card.part, *(measure.name for measure in card.measures)}
    return found - PLAIN_WORDS - {""}


def spoken(path: Path) -> Iterator[tuple[int, str]]:
    """Every identifier and every whole string constant of a module, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        for field, value in ast.iter_fields(node):
            if isinstance(value, str) and field in {"id", "attr", "arg", "name", "asname", "value"}:
                yield getattr(node, "lineno", 0), value


def test_what_is_declared_is_found_where_it_stands(tmp_path: Path) -> None:
    assert {"dice", "structure", "mask", "radial_error_mm", "landmarks"} <= declared()
    path = tmp_path / "module.py"
    path.write_text("from x import dice as y\ndef f(structure): return g(mask=1).hd95_mm + 'f1'\n")
    assert {"dice", "structure", "mask", "hd95_mm", "f1"} <= {name for _, name in spoken(path)}


@pytest.mark.parametrize("path", sorted(SERVER.rglob("*.py")), ids=lambda path: path.name)
def test_the_server_names_no_measure_and_no_form(path: Path) -> None:
    names = declared()
    assert [(line, name) for line, name in spoken(path) if name in names] == []
