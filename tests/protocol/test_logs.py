"""A log is JSON, its owner's alone, and no reason to stop."""

from __future__ import annotations

import json
import logging
import stat
from pathlib import Path

import pytest

from fedshift.protocol.logs import logged_to


def test_lines_are_json_and_the_owners_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with logged_to(path):
        logging.getLogger("fedshift.x").info("told %s", "\x1b[2J\n")
        logging.getLogger("other").info("too much")
        logging.getLogger("other").warning("wrong")
    logging.getLogger("fedshift.x").info("after it was closed")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["from"] for line in lines] == ["fedshift.x", "other"]
    assert "\x1b" not in lines[0]["told"] and lines[1]["level"] == "warning"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_full_disk_costs_a_line_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with logged_to(Path("/dev/full")):
        logging.getLogger("fedshift.x").info("lost")
    assert not capsys.readouterr().err


def test_files_turn_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fedshift.protocol.logs._BYTES", 1000)
    path = tmp_path / "a.log"
    with logged_to(path):
        for _ in range(200):
            logging.getLogger("fedshift.x").info("a line")
    found = sorted(each.name for each in tmp_path.iterdir())
    assert found == ["a.log", "a.log.1", "a.log.2", "a.log.3", "a.log.4"]
    assert all(each.stat().st_size <= 1000 for each in tmp_path.iterdir())
