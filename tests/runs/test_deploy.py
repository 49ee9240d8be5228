"""A deployed run has the bits of the simulated one: real sites, each with its own folder of images
and its own state, behind a grid without a network."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
from kit.sites import LocalGrid, open_sites

from fedshift import UserError
from fedshift.client.agent.folder import StateFolder
from fedshift.client.agent.site import Site
from fedshift.client.policy import Policy
from fedshift.protocol.flower import Message
from fedshift.protocol.messages import CONFIG, Action, Instruction, Purpose
from fedshift.protocol.storage import read_tensors
from fedshift.runs.config import Config, load
from fedshift.runs.deploy import deploy
from fedshift.runs.simulate import run
from fedshift.sites.example import labels, write_example

LABELS = "data.labels={" + ", ".join(f"{name}: {value}" for name, value in labels().items()) + "}"
SMALL = (
    "federation=manifest",
    LABELS,
    "method.depth=3",
    "method.width=4",
    "rounds=2",
    "local_steps=2",
    "engine.devices=cpu",
    "engine.workers=1",
)
GAN = (
    "baselines=[]",
    "data.unlabelled_sites=[hospital-2]",
    "method.segmenter_rounds=1",
    "rounds=3",
)
"""The least that its phases take."""


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of four sites, by name; beside them lies the table of all."""
    return write_example(tmp_path_factory.mktemp("example"), sites=4, subjects=5, slices=2, size=32)


@pytest.fixture(scope="module")
def simulated(
    example: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Simulate the example in one place, with further overrides."""

    def call(*overrides: str) -> Path:
        out = tmp_path_factory.mktemp("simulated") / "run"
        run(out, config(example, *overrides), drawn=False)
        return out

    return call


def config(example: dict[str, Path], *overrides: str) -> Config:
    """A simulation's config."""
    table = next(iter(example.values())).parent / "MANIFEST.tsv"
    return load([*SMALL, f"data.manifest={table}", "baselines=[local]", *overrides])


def same(deployed: Path, simulated: Path) -> None:
    """Assert that two runs have the same models and the same tables."""
    names = sorted(path.name for path in (simulated / "checkpoints").glob("round_*.safetensors"))
    assert names
    for name in names:
        a, b = (read_tensors(run / "checkpoints" / name) for run in (deployed, simulated))
        assert a.keys() == b.keys()
        assert all(a[key].tobytes() == b[key].tobytes() for key in a), name
    for name in ("cases.csv", "cross_site.csv", "shift.csv"):
        assert (deployed / name).read_bytes() == (simulated / name).read_bytes(), name


@pytest.mark.parametrize(
    "overrides",
    [
        ("strategy=fedavg",),
        ("strategy=fedbn", "method.norm=batch"),
        ("strategy=scaffold",),
        ("method=unet_gan", *GAN),
    ],
    ids=["fedavg", "fedbn", "scaffold", "unet_gan"],
)
def test_a_deployed_run_has_the_bits_of_the_simulated_one(
    example: dict[str, Path],
    simulated: Callable[..., Path],
    tmp_path: Path,
    overrides: tuple[str, ...],
) -> None:
    more = (*overrides, "data.unseen_sites=[hospital-4]")
    sites = open_sites(example, tmp_path / "sites")
    told: list[str] = []
    deploy(
        tmp_path / "run",
        config(example, *more),
        LocalGrid(sites),
        told.append,
        wait_s=0,
        drawn=False,
    )
    same(tmp_path / "run", simulated(*more))
    assert any("each site's own" in sentence and "data.manifest" in sentence for sentence in told)


def test_the_real_spinal_cord_at_six_sites_has_the_bits_of_one_place(
    data_root: Path, tmp_path: Path
) -> None:
    """Each site with its own images and table; what is open is planned from what the six tell."""
    source = data_root / "spinal_cord_mri"
    table = source / "MANIFEST.tsv"
    header, *rows = csv.reader(table.open(encoding="utf-8"), delimiter="\t")
    folders = {}
    for site in sorted({row[header.index("site")] for row in rows}):
        folders[site] = tmp_path / site
        own = [row for row in rows if row[header.index("site")] == site]
        for row in own:
            for column in ("path", "label_path"):
                file = folders[site] / row[header.index(column)]
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes((source / row[header.index(column)]).read_bytes())
        text = "".join("\t".join(row) + "\n" for row in (header, *own))
        (folders[site] / "MANIFEST.tsv").write_text(text, encoding="utf-8")
    asked = (
        "federation=manifest",
        f"data.manifest={table}",
        "data.labels={white matter: 1, grey matter: 2}",
        "strategy=fedbn",
        "method.norm=batch",
        "method.width=4",
        "method.depth=3",
        "rounds=2",
        "local_steps=2",
        "baselines=[]",
        "data.unseen_sites=[UCL]",
        "data.unlabelled_sites=[NWU]",
        "engine.devices=cpu",
        "engine.workers=1",
    )
    run(tmp_path / "simulated", load(asked), drawn=False)
    sites = open_sites(folders, tmp_path / "sites")
    deploy(tmp_path / "run", load(asked), LocalGrid(sites), wait_s=0, drawn=False)
    same(tmp_path / "run", tmp_path / "simulated")


PLAIN = ("baselines=[]", "data.unseen_sites=[hospital-4]")


def asked_for(message: Message) -> Instruction:
    """The instruction of a request."""
    return Instruction.from_record(message.content[CONFIG])


class Killed(Exception):
    """In the place of a signal."""


@pytest.mark.parametrize("strategy", ["fedbn", "scaffold", "feddyn"])
def test_a_run_goes_on_with_new_processes_at_both_ends(
    example: dict[str, Path],
    simulated: Callable[..., Path],
    tmp_path: Path,
    strategy: str,
) -> None:
    asked = (*PLAIN, f"strategy={strategy}", "method.norm=batch")
    runs: set[str] = set()

    def until_validation(site: Site, message: Message) -> Message:
        asked = asked_for(message)
        runs.add(asked.run)
        if asked.action is Action.VALIDATE and asked.round == 2 and site.name == "hospital-3":
            raise Killed
        return site.handle(message)

    grid = LocalGrid(open_sites(example, tmp_path / "sites"), until_validation)
    with pytest.raises(Killed):
        deploy(tmp_path / "run", config(example, *asked), grid, wait_s=0, drawn=False)

    def noted(site: Site, message: Message) -> Message:
        runs.add(asked_for(message).run)
        return site.handle(message)

    # New sites on the same folders, as after a restart.
    grid = LocalGrid(open_sites(example, tmp_path / "sites"), noted)
    deploy(tmp_path / "run", config(example, *asked, "resume=true"), grid, wait_s=0, drawn=False)
    same(tmp_path / "run", simulated(*asked))
    (run,) = runs
    assert run.startswith("run-")


def test_a_site_that_is_away_is_named_and_takes_part_again(
    example: dict[str, Path], tmp_path: Path
) -> None:
    """With a strategy that remembers something of each site, by its place."""
    asked = (*PLAIN, "strategy=afl", "rounds=4")
    sites = open_sites(example, tmp_path / "sites")

    def killed(site: Site, message: Message) -> Message:
        if asked_for(message).round == 2:
            raise Killed
        return site.handle(message)

    with pytest.raises(Killed):
        deploy(
            tmp_path / "run",
            config(example, *asked),
            LocalGrid(sites, killed),
            wait_s=0,
            drawn=False,
        )

    def comes_back(site: Site, message: Message) -> Message:
        if asked_for(message).round == 3:
            grid.sites["hospital-1"] = sites["hospital-1"]
        return site.handle(message)

    grid = LocalGrid(sites, comes_back)
    del grid.sites["hospital-1"]
    deploy(tmp_path / "run", config(example, *asked, "resume=true"), grid, wait_s=0, drawn=False)
    lines = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").open()]
    assert [list(line["failed"]) for line in lines[:2]] == [[], ["hospital-1"]]
    assert "hospital-1" in lines[3]["sites"]
    assert not lines[3]["failed"]
    problems = json.loads((tmp_path / "run/checkpoints/evaluation.json").read_text())["problems"]
    assert "hospital-1 is away: it takes part again once it is back" in problems


def test_a_site_that_never_came_is_told_before_anything_is_begun(
    example: dict[str, Path], tmp_path: Path
) -> None:
    grid = LocalGrid(open_sites(example, tmp_path / "sites"))
    del grid.sites["hospital-1"]
    with pytest.raises(UserError, match=r"hospital-1 did not come within 0 s; start the agent"):
        deploy(
            tmp_path / "run", config(example, *PLAIN), grid, sites=[*example], wait_s=0, drawn=False
        )
    assert not (tmp_path / "run" / "rounds.jsonl").exists()


def test_other_sites_than_those_named_have_no_part_in_a_run(
    example: dict[str, Path], tmp_path: Path
) -> None:
    asked: set[str] = set()

    def noted(site: Site, message: Message) -> Message:
        asked.add(site.name)
        return site.handle(message)

    grid = LocalGrid(open_sites(example, tmp_path / "sites"), noted)
    named = ["hospital-1", "hospital-2"]
    deploy(
        tmp_path / "run", config(example, "baselines=[]"), grid, sites=named, wait_s=0, drawn=False
    )
    assert sorted(asked) == named


def test_a_site_is_what_its_key_is_enrolled_as(example: dict[str, Path], tmp_path: Path) -> None:
    sites = open_sites(example, tmp_path / "sites")
    grid = LocalGrid(sites)
    grid.enrolled = {**grid.enrolled, 12: "hospital-9"}
    deploy(tmp_path / "run", config(example, *PLAIN), grid, wait_s=0, drawn=False)
    (told, *_) = json.loads((tmp_path / "run/checkpoints/evaluation.json").read_text())["problems"]
    assert told == (
        "hospital-9, left out: calls itself 'hospital-2', which is not the name its key is "
        "enrolled for"
    )
    lines = [json.loads(line) for line in (tmp_path / "run" / "rounds.jsonl").open()]
    assert [sorted(line["sites"]) for line in lines] == [["hospital-1", "hospital-3"]] * 2


def test_a_run_waits_until_it_is_approved(example: dict[str, Path], tmp_path: Path) -> None:
    sites = open_sites(example, tmp_path / "sites", Policy(ask=True))
    told: list[str] = []

    def approving(sentence: str) -> None:
        told.append(sentence)
        if "waiting for approval" in sentence:
            run = sentence.rpartition(" ")[2]
            for name in example:
                folder = StateFolder.opened(tmp_path / "sites" / name)
                shown = folder.waiting()[run]
                assert (shown.described.purpose, shown.described.asked_by) == ("a trial", "Dr. A")
                assert shown.described.rounds == 2
                assert Purpose.UPDATE in shown.leaves
                assert folder.approve(run).described == shown.described
                assert not folder.waiting()
                left = (tmp_path / "sites" / name / "egress.jsonl").read_text().splitlines()
                purposes = {json.loads(line)["purpose"] for line in left}
                assert purposes <= {Purpose.NAME, Purpose.ERROR}

    deploy(
        tmp_path / "run",
        config(example, *PLAIN),
        LocalGrid(sites),
        approving,
        purpose="a trial",
        asked_by="Dr. A",
    )
    page = (tmp_path / "run" / "report.html").read_text()
    assert "they could be drawn at the sites alone" in page
    # Nothing of a simulation is said of real sites.
    assert "in a ledger of its own" in page and "The ledger is empty" not in page
    assert "simulated" not in page
    assert sum("waiting for approval" in sentence for sentence in told) == 1
    assert (tmp_path / "run" / "cross_site.csv").exists()


def test_the_hours_of_a_site_are_waited_for_and_named(
    example: dict[str, Path], tmp_path: Path
) -> None:
    noon, night = datetime(2026, 7, 1, 12), datetime(2026, 7, 1, 23)
    clock = [noon]
    sites = open_sites(example, tmp_path / "sites")
    sites["hospital-2"] = replace(
        sites["hospital-2"], policy=Policy(hours="20:00-06:00"), now=lambda: clock[0]
    )
    rule = r"hospital-2: the site works from 20:00 to 06:00 \(policy.hours\)"
    with pytest.raises(UserError, match=f"not let in within 0 s at {rule}; wait longer"):
        deploy(tmp_path / "none", config(example, *PLAIN), LocalGrid(sites), wait_s=0, drawn=False)

    class Paused(LocalGrid):
        """Has the night come while a run pauses."""

        def pause(self, seconds: float) -> None:
            clock[0] = night

    told: list[str] = []
    deploy(
        tmp_path / "run",
        config(example, *PLAIN),
        Paused(sites),
        told.append,
        wait_s=60,
        drawn=False,
    )
    assert any(re.search(f"waiting for the hours of {rule}", sentence) for sentence in told)
    assert (tmp_path / "run" / "cross_site.csv").exists()


def test_sites_are_left_out_in_turn(
    example: dict[str, Path], simulated: Callable[..., Path], tmp_path: Path
) -> None:
    asked = (
        "baselines=[]",
        "protocol=leave_one_site_out",
        "rounds=1",
        "data.sites=[hospital-1, hospital-2]",
    )
    grid = LocalGrid(open_sites(example, tmp_path / "sites"))
    deploy(tmp_path / "run", config(example, *asked), grid, wait_s=0, drawn=False)
    expected = simulated(*asked)
    for name in ("cases.csv", "cross_site.csv"):
        assert (tmp_path / "run" / name).read_bytes() == (expected / name).read_bytes()
    names = [run.run for run in StateFolder.opened(tmp_path / "sites" / "hospital-1").runs()]
    assert len(names) == 3
    assert sum(name.startswith("run-hospital-1-") for name in names) == 1


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.labels=null", r"data\.labels is not set, and a coordinator has no table"),
        ("baselines=[pooled]", "pooled trains on the images of all sites in one place"),
        ("strategy=pooled", "pooled trains on the images of all sites in one place"),
        ("protocol=leave_one_vendor_out", "protocol=leave_one_vendor_out is of simulations"),
    ],
)
def test_what_no_real_federation_can_do_is_one_sentence(
    override: str, sentence: str, example: dict[str, Path], tmp_path: Path
) -> None:
    grid = LocalGrid(open_sites(example, tmp_path / "sites"))
    with pytest.raises(UserError, match=sentence):
        deploy(tmp_path / "run", config(example, override), grid, wait_s=0, drawn=False)


def test_a_site_that_withholds_its_summary_is_named_and_what_is_open_set_by_hand(
    example: dict[str, Path], tmp_path: Path
) -> None:
    sites = open_sites(example, tmp_path / "sites")
    release = tuple(one for one in Policy().release if one != Purpose.SUMMARY)
    sites["hospital-2"] = replace(sites["hospital-2"], policy=Policy(release=release))
    told: list[str] = []
    with pytest.raises(UserError, match="nothing is known of the images of hospital-2"):
        deploy(
            tmp_path / "run",
            config(example, *PLAIN),
            LocalGrid(sites),
            told.append,
            wait_s=0,
            drawn=False,
        )
    assert any("hospital-2 tells nothing" in one and "policy.release" in one for one in told)
    by_hand = ("data.spacing_mm=5", "data.size=32", "data.slice_axis=2", "data.normalise=zscore")
    deploy(
        tmp_path / "run", config(example, *PLAIN, *by_hand), LocalGrid(sites), wait_s=0, drawn=False
    )
    assert (tmp_path / "run" / "cross_site.csv").exists()


def test_the_folder_of_a_simulation_is_not_deployed_into(
    example: dict[str, Path], simulated: Callable[..., Path], tmp_path: Path
) -> None:
    out = simulated(*PLAIN, "rounds=1")
    grid = LocalGrid(open_sites(example, tmp_path / "sites"))
    with pytest.raises(UserError, match="was never deployed"):
        deploy(out, config(example, *PLAIN, "rounds=1", "resume=true"), grid, wait_s=0, drawn=False)
