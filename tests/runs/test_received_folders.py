"""A run folder that was received is data: nothing in it reaches out of it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fedshift import UserError
from fedshift.client.methods.supervised import Supervised
from fedshift.protocol.storage import check_links, read_yaml, write_yaml
from fedshift.runs.config import as_made, load, outside
from fedshift.runs.simulate import run as go_on
from fedshift.runs.stored import stored_run
from fedshift.server import checkpoint


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


OUTSIDE = {
    "data.manifest": "/secret/table.tsv",
    "data.label_table": "/secret/points.tsv",
    "data.cache": "/secret/cache",
    "policy.hash_key": "/secret/key",
    "method.extractor_file": "/secret/vgg.pth",
}


@pytest.mark.parametrize("key", OUTSIDE)
def test_what_a_received_configuration_names_outside_is_not_opened(
    key: str,
    reference: Path,
    tmp_path: Path,
    command: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tmp_path / "received"
    shutil.copytree(reference, run)
    config = read_yaml(run / "config.yaml")
    group, name = key.split(".")
    if group == "method":
        monkeypatch.setattr(Supervised, "own", frozenset({name}))
    if group == "policy":
        config["policy"]["release"].append("image hashes")
    config[group][name] = OUTSIDE[key]
    write_yaml(run / "config.yaml", config)
    for path in (run / "checkpoints").glob("round_*.json"):  # Whoever made it made it fit.
        told = json.loads(path.read_text()) | {"run": checkpoint.lineage(config)}
        path.write_text(json.dumps(told))
    ended = command("evaluate", str(run))
    assert ended.code == 2
    assert f"names what lies outside of that folder ({key}={OUTSIDE[key]})" in ended.err
    assert "add --trusted if the run is your own" in ended.err
    assert ("--manifest" in ended.err) is (group == "data")
    if group != "data":
        assert command("evaluate", str(run), "--manifest", "/nowhere.tsv").err == ended.err


def test_going_on_takes_what_lies_outside_from_the_user_alone() -> None:
    config = load(["policy.release=[]", "method=style_transfer"])
    received = load(["policy.release=[]", "method=style_transfer", "local_steps=3"])
    for key, path in OUTSIDE.items():
        group, name = key.split(".")
        received[group][name] = path
    found = as_made(config, received)
    assert found["local_steps"] == 3
    assert set(outside(found).values()) == {None}
    assert {f"{group}.{name}" for group, name in outside(received)} == OUTSIDE.keys()
