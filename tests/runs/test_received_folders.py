"""A run folder that was received is data: nothing in it reaches out of it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedshift import UserError
from fedshift.protocol.storage import check_links, read_yaml
from fedshift.runs.config import load
from fedshift.runs.simulate import run as go_on
from fedshift.runs.stored import stored_run


@pytest.fixture(params=["config.yaml", "checkpoints/sites.json", "figures", "folds/a/cases.csv"])
def received(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder one of whose files is a link to a file of the user's, or to their folder."""
    private = tmp_path / "home" / "private.txt"
    private.parent.mkdir()
    private.write_text("a secret\n")
    run = tmp_path / "received"
    link = run / request.param
    link.parent.mkdir(parents=True)
    link.symlink_to(private.parent if request.param == "figures" else private)
    return run


@pytest.mark.parametrize("asked", ["report", "evaluate", "advise"])
def test_no_command_follows_a_link_out_of_a_received_folder(
    asked: str, received: Path, command: Callable[..., Any]
) -> None:
    ended = command(asked, str(received))
    assert ended.code == 2
    assert "is a link that leads out of the folder; put the file itself" in ended.err
    assert "secret" not in ended.err + ended.out
    assert sorted(path.name for path in (received.parent / "home").iterdir()) == ["private.txt"]


def test_no_run_goes_on_through_a_link(received: Path, tiny: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="leads out of the folder"):
        go_on(received, load([*tiny, f"out={received}", "resume=true"]))
    with pytest.raises(UserError, match="leads out of the folder"), stored_run(received):
        pass


def test_links_within_a_folder_are_followed_and_what_is_no_file_is_refused(tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "a.csv").write_text("x")
    (run / "b.csv").symlink_to("a.csv")
    (tmp_path / "linked").symlink_to(run)
    check_links(tmp_path / "linked")
    os.mkfifo(run / "config.yaml")
    with pytest.raises(UserError, match=r"config\.yaml is no file"):
        check_links(run)
    (run / "config.yaml").unlink()
    (run / "config.yaml").symlink_to("config.yaml")
    check_links(run)  # In a circle: whoever reads it is told so.


def test_nothing_in_a_received_configuration_is_looked_up_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOKEN", "a secret")
    path = tmp_path / "config.yaml"
    path.write_text("note: ${oc.env:TOKEN}\n")
    assert read_yaml(path) == {"note": "${oc.env:TOKEN}"}
    path.write_text("a: &a [x, x]\nb: [*a, *a]\n")
    with pytest.raises(UserError, match="it holds an alias"):
        read_yaml(path)
    path.write_text("note: !!python/object/apply:os.getenv [TOKEN]\n")
    with pytest.raises(UserError, match="cannot be read"):
        read_yaml(path)
