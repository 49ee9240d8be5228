"""A config from a file: a run's own, or a few settings, with what the command line says on top."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fedshift import UserError
from fedshift.protocol.storage import write_yaml
from fedshift.runs.config import from_file, load


@pytest.fixture
def file(tmp_path: Path) -> Any:
    def written(**node: Any) -> Path:
        write_yaml(tmp_path / "config.yaml", node)
        return tmp_path / "config.yaml"

    return written


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["strategy=scaffold", "rounds=7", "seed=3", "baselines=[local]"],
        ["method=unet_gan", "augmentation=usual", "strategy=fedprox", "strategy.mu=0.3"],
        [
            "federation=manifest",
            "data.manifest='/data/a b,c.tsv'",
            "data.labels={a: 1, 'b c': 2}",
        ],
        ['data.sites=["it\'s",x]', "clock=hospitals", "policy=deployed", "deadline_s=60"],
    ],
)
def test_a_runs_own_config_composes_to_itself(file: Any, overrides: list[str]) -> None:
    config = load(overrides)
    assert from_file(file(**config), []) == config


def test_what_a_run_planned_is_taken_as_it_stands(file: Any) -> None:
    config = load(["out=x", "resume=true"])
    config["data"] |= {"spacing_mm": 1.5, "planned": {"spacing_mm": "the median"}}
    found = from_file(file(**config), [])
    assert found["data"]["spacing_mm"] == 1.5 and found["data"]["planned"] == {}
    assert found["out"] is None and found["resume"] is False


def test_the_config_of_a_federation_that_is_called_as_its_manifest(file: Any) -> None:
    for kind in ("manifest", "sites"):
        config = load(["federation=manifest"])
        config["federation"] |= {"name": "hearts", "kind": kind}
        assert from_file(file(**config), []) == config


def test_a_few_settings_are_enough_and_the_command_line_comes_after(file: Any) -> None:
    path = file(strategy="fedprox", rounds=3, method={"depth": 3})
    found = from_file(path, ["rounds=4"])
    assert found["strategy"]["name"] == "fedprox"
    assert found["rounds"] == 4 and found["method"]["depth"] == 3


def test_values_are_taken_as_yaml_has_them(file: Any) -> None:
    labels = {"LV cavity": 1, "a:b, {c}": [2, 3], "4": 4}
    found = from_file(file(data={"labels": labels, "sites": ["it's", "${x}"]}), ["rounds=2"])
    assert found["data"]["labels"] == labels and found["data"]["sites"] == ["it's", "${x}"]


def test_another_choice_leaves_the_files_settings_of_that_group(file: Any) -> None:
    path = file(strategy={"name": "fedprox", "mu": 0.3}, rounds=3)
    assert from_file(path, ["strategy=fedbn"])["strategy"]["name"] == "fedbn"


def test_a_wrong_key_is_named(file: Any) -> None:
    with pytest.raises(UserError, match="rouns is not a key of the configuration; did you mean"):
        from_file(file(rouns=3), [])
    with pytest.raises(UserError, match="strategy=fedavgg is unknown"):
        from_file(file(strategy="fedavgg"), [])
