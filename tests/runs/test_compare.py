"""``fedshift compare``: the grid, the packing, and that nothing finished is ever run again."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from fedshift import UserError
from fedshift.cli.board import Board
from fedshift.protocol.storage import folder_name
from fedshift.runs.compare import Schedule
from fedshift.runs.config import load
from fedshift.runs.pool import Event, Pool, places
from fedshift.runs.simulate import run
from fedshift.runs.stored import read_config
from fedshift.runs.sweep import Sweep, prepare, target_for
from fedshift.server.comparison.cells import Cell
from fedshift.server.record import read_rounds, untrained

Command = Callable[..., Any]
Contents = Callable[..., dict[str, Any]]
RESULTS = ("cases.csv", "cross_site.csv", "shift.csv", "egress.jsonl", "rounds.jsonl")


# The grid.


def test_hydras_sweeps_become_axes_in_the_order_typed() -> None:
    grid = Sweep.parse(
        [
            "out=here",
            "strategy=fedbn,fedavg",
            "rounds=3",
            "method=choice(supervised,drai)",
            "seed=range(0,3)",
            "data.unlabelled_sites=[a],[b,c]",
            "data.site_pattern='x,(y)'",
        ]
    )
    assert grid.fixed == {"rounds": "3", "data.site_pattern": "'x,(y)'"}
    assert list(grid.axes.items()) == [
        ("strategy", ("fedbn", "fedavg")),
        ("method", ("supervised", "drai")),
        ("seed", ("0", "1", "2")),
        ("data.unlabelled_sites", ("[a]", "[b,c]")),
    ]
    cells = grid.cells()
    assert len(cells) == 2 * 2 * 3 * 2
    assert cells[0].folder == Path(
        "here/cells/strategy=fedbn,method=supervised,seed=0,data.unlabelled_sites=[a]"
    )
    assert cells[0].entrant == "strategy=fedbn method=supervised data.unlabelled_sites=[a]"
    assert [cell.seed for cell in cells[:6]] == ["0", "0", "1", "1", "2", "2"]


def test_a_glob_stands_for_a_groups_choices() -> None:
    axes = Sweep.parse(["strategy=glob(*median)"]).axes
    assert axes == {"strategy": ("geometric_median", "median")}


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["seed"], "not KEY=VALUE"),
        (["seed=0,1,0"], "names a value twice"),
        (["seed=0", "seed=1,2"], "seed is given twice"),
        (["strategy.mu=interval(0,1)"], "strategy.mu=interval.* no fixed list"),
        (["seed=shuffle(0,1)"], "no fixed list"),
        (["strategy=glob(x*)"], "matches no choice of strategy"),
        (["baselines=[local]"], "local and pooled are strategies"),
        (["resume=true"], "always goes on"),
        (["federation.shift=0,1"], "federation.shift=0,1: .* need the same images"),
        (["federation=cardiac_phantom,ct_phantom"], "a comparison for each value of federation"),
        (["data.split={train: 1},{train: 2}"], "a comparison for each value of data.split"),
        (["protocol=together,leave_one_site_out"], "a comparison for each value of protocol"),
    ],
)
def test_what_is_no_grid_is_refused(overrides: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        Sweep.parse(overrides)


def test_a_comparison_needs_a_folder() -> None:
    with pytest.raises(UserError, match="out=DIR"):
        Sweep.parse(["seed=0,1"]).cells()


def test_a_folders_name_is_safe_and_its_own() -> None:
    assert folder_name("strategy=fedavg,seed=0") == "strategy=fedavg,seed=0"
    texts = ["a/b", "a:b", "a_b", "..", "", ".x", "x" * 300, "x" * 301, "GE MEDICAL", "é" * 100]
    names = [folder_name(text) for text in texts]
    assert len(set(names)) == len(texts)
    for name in names:
        assert 0 < len(name.encode()) <= 120
        assert not re.search(r"[/\\:\0]", name)
        assert not name.startswith(".")
    assert names[8] == "GE MEDICAL"


@pytest.mark.parametrize(
    ("axes", "asked", "expected"),
    [
        (["strategy=local,fedavg", "seed=0,1"], None, "strategy=fedavg"),
        (["strategy=local,fedbn"], None, "strategy=local"),
        (["strategy=fedavg,fedbn", "method=a,b"], None, "strategy=fedavg method=a"),
        (["method=a,b", "strategy=fedbn,fedavg"], "method=b", "method=b strategy=fedbn"),
        (["strategy=fedavg,fedbn", "seed=0,1"], "strategy=fedbn", "strategy=fedbn"),
        (["m='x y',z"], "m='x y'", "m='x y'"),
    ],
)
def test_the_baseline_is_the_first_entrant_meant(
    axes: list[str], asked: str | None, expected: str
) -> None:
    grid = Sweep.parse(["out=x", *axes, *([f"baseline={asked}"] if asked else [])])
    assert grid.baseline(grid.cells()) == expected


def test_a_baseline_that_is_no_entrant_is_refused() -> None:
    grid = Sweep.parse(["out=x", "strategy=fedavg,fedbn", "baseline=strategy=krum"])
    with pytest.raises(UserError, match=r"baseline=strategy=krum .* 'strategy=fedbn'"):
        grid.baseline(grid.cells())


# What every cell is, before any runs.


def without(options: tuple[str, ...], *keys: str) -> tuple[str, ...]:
    """The options whose key does not begin with one of ``keys``."""
    return tuple(option for option in options if not option.startswith(keys))


def parse(tiny: tuple[str, ...], out: Path, *overrides: str) -> Sweep:
    return Sweep.parse([*tiny, f"out={out}", *overrides])


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (("strategy=fedavg,fedprx",), "strategy=fedprx: .*did you mean fedprox"),
        (("strategy=fedprox,fedavg", "strategy.mu=1"), "strategy=fedavg: strategy.mu is not a key"),
        (("seed=0,-1",), "seed=-1: seed must be at least 0"),
        (("strategy=fedprox", "strategy.mu=0,-1"), "strategy.mu=-1: .* at least 0"),
        (("data.size=32,4",), "data.size=4: .* from 8 to"),
        (("federation.unseen=[vendor_x]", "seed=0,1"), "vendor_x"),
        (("seed=0,1", "hours=2"), "hours=2 ranks by the simulated clock, and there is none"),
        (("seed=0,1", "clock=lan", "hours=-1"), "hours=-1 is no number of hours"),
        (("method=supervised,drai", "method.norm=other", "rounds=3"), "method=supervised: method"),
        (("engine=inline,ray",), "engine=ray: .*leave engine out"),
        (("seed=0,1", "clock=lan", "clock.sites={vendor_x: {up_mbps: 1}}"), "vendor_x is no site"),
        (("budget=bytes", "seed=0,1"), "budget=bytes needs budget_limit"),
        (("budget=steps,bytes", "budget_limit=1e6"), "budget=steps: budget_limit limits"),
        (
            ("protocol=leave_one_site_out", "data.sites=[vendor_a,vendor_d]", "seed=0,1"),
            "without vendor_a no site could train",
        ),
    ],
)
def test_a_wrong_option_in_any_cell_is_found_before_anything_runs(
    command: Command, tiny: tuple[str, ...], tmp_path: Path, overrides: tuple[str, ...], words: str
) -> None:
    given = {override.partition("=")[0] for override in overrides}
    common = without(tiny, *given) if given else tiny
    outcome = command("compare", *common, f"out={tmp_path / 'out'}", *overrides)
    assert outcome.code == 2
    assert re.search(words, outcome.err), outcome.err
    assert not (tmp_path / "out").exists()


def test_cells_take_equal_steps_unless_that_is_what_is_compared(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    common = without(tiny, "local_steps", "method")
    sweep = "method=supervised,drai"
    with pytest.raises(UserError, match=r"method=supervised 60 and method=drai 120\)"):
        prepare(parse(common, tmp_path, sweep))
    assert len(prepare(parse(common, tmp_path, sweep, "local_steps=5"))) == 2
    assert len(prepare(parse(common, tmp_path, "local_steps=5,7"))) == 2


ADAPTING = "method=supervised,unet_gan"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((ADAPTING,), "vendor_c"),
        ((ADAPTING, "federation.unseen=[]"), "vendor_d"),
        ((ADAPTING, "data.unlabelled_sites=[]"), None),
        ((ADAPTING, "data.unlabelled_sites=[vendor_a],[vendor_b]"), None),
        ((ADAPTING, "protocol=leave_one_site_out"), None),
        (("method=supervised,style_transfer",), None),
    ],
)
def test_a_target_is_chosen_on_phantoms_where_a_method_needs_one(
    overrides: tuple[str, ...], expected: str | None, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    common = without(tiny, "method", "rounds", "local_steps")
    grid = parse(common, tmp_path, "rounds=12", "local_steps=4", *overrides)
    assert target_for(grid, prepare(grid)) == expected


def test_the_targets_labels_are_hidden_in_every_cell(
    command: Command, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    grid = (*tiny, ADAPTING, f"out={tmp_path}")
    outcome = command("compare", *grid)
    assert outcome.code == 0, outcome.err
    assert "those of vendor_c are hidden in every cell" in outcome.out
    for name in ("supervised", "unet_gan"):
        config = read_config(tmp_path / "cells" / f"method={name}" / "config.yaml")
        assert config["data"]["unlabelled_sites"] == ["vendor_c"]
    (row,) = [row for row in standings(tmp_path) if row["place"] != "0"]
    assert row["entrant"] == "method=supervised"  # two rounds are too few for the other
    assert "vendor_c trains without labels" in (tmp_path / "comparison.html").read_text()
    assert command("compare", *grid, "data.unlabelled_sites=[vendor_c]").code == 0
    other = command("compare", *grid, "data.unlabelled_sites=[vendor_b]")
    assert "with other options (data.unlabelled_sites)" in other.err


def test_a_cell_is_what_simulate_would_run_without_references(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    (one,) = prepare(parse(tiny, tmp_path, "strategy=fedprox", "strategy.mu=0.3"))
    assert one.config["baselines"] == []
    assert one.config["strategy"]["mu"] == 0.3


# Which cell is next.


def timed(cell: Cell, seconds: float) -> None:
    cell.folder.mkdir(parents=True)
    line = {
        "round": 1,
        "sites": {},
        "failed": {},
        "rejected": {},
        "seconds": seconds,
        "bytes_down": 0,
        "bytes_up": 0,
    }
    (cell.folder / "rounds.jsonl").write_text(json.dumps(line) + "\n")


def test_entrants_take_turns_then_the_longest_come_first(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    prepared = prepare(parse(tiny, tmp_path, "strategy=fedavg,fedbn,krum", "seed=0,1,2"))
    schedule = Schedule(prepared)
    assert [schedule.next() for _ in range(3)] == [0, 3, 6]
    for number, seconds in ((0, 4.0), (3, 9.0), (6, 5.0)):
        timed(prepared[number].cell, seconds)
        schedule.learn(number)
    assert schedule.expected(1) == 4.0
    assert [schedule.next() for _ in range(7)] == [4, 5, 7, 8, 1, 2, None]


def test_an_entrant_not_measured_yet_is_judged_by_its_steps(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    prepared = prepare(parse(without(tiny, "local_steps"), tmp_path, "local_steps=2,8,4"))
    schedule = Schedule(prepared)
    assert schedule.next() == 1  # the most steps
    timed(prepared[1].cell, 16.0)
    schedule.learn(1)
    assert schedule.expected(0) == 4.0
    assert schedule.expected(2) == 8.0


def test_workers_fill_the_cores_or_take_a_gpu_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    assert places("cpu", None, threads=1, tasks=30) == ["cpu"] * 8
    assert places("cpu", None, threads=3, tasks=30) == ["cpu"] * 2
    assert places("cpu", None, threads=1, tasks=5) == ["cpu"] * 5
    assert places("cpu", 3, threads=1, tasks=30) == ["cpu"] * 3
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert places("auto", None, threads=1, tasks=30) == ["cuda:0", "cuda:1"]
    assert places("cuda:1", None, threads=1, tasks=30) == ["cuda:1"]
    assert places("auto", 3, threads=1, tasks=30) == ["cuda:0", "cuda:1", "cuda:0"]
    with pytest.raises(UserError, match="cuda:2"):
        places("cuda:2", None, threads=1, tasks=30)


# The pool.


@dataclass(frozen=True)
class Play:
    """A task that does what it is called."""

    name: str

    def __call__(self, device: str, tell: Callable[[float, str], None]) -> None:
        if self.name == "refuses":
            raise UserError("no, because")
        if self.name == "breaks":
            raise KeyError("nobody expected this")
        if self.name == "dies":
            os._exit(7)
        if self.name == "hangs":
            time.sleep(60)
        tell(0.5, f"{self.name} on {device}")


def test_one_bad_task_costs_nothing_but_itself() -> None:
    tasks = iter([Play(name) for name in ("dies", "one", "refuses", "breaks", "two")])
    events: dict[str, list[Event[Play]]] = {}
    with Pool(["cpu"]) as pool:
        for event in pool.run(lambda: next(tasks, None)):
            events.setdefault(event.task.name, []).append(event)
    kinds = {name: [event.kind for event in found] for name, found in events.items()}
    assert kinds == {
        "dies": ["began", "failed"],
        "one": ["began", "progress", "done"],
        "refuses": ["began", "failed"],
        "breaks": ["began", "failed"],
        "two": ["began", "progress", "done"],
    }
    assert events["one"][1].text == "one on cpu"
    assert "code 7" in events["dies"][1].text
    assert events["refuses"][1].text == "no, because"
    assert events["refuses"][1].trace == ""
    assert events["breaks"][1].text == "KeyError: 'nobody expected this'"
    assert "in __call__" in events["breaks"][1].trace


def test_leaving_the_pool_stops_what_runs() -> None:
    start = time.monotonic()
    tasks = iter([Play("hangs"), Play("hangs")])
    with Pool(["cpu", "cpu"]) as pool:
        processes = [worker.process for worker in pool._workers]
        events = pool.run(lambda: next(tasks, None))
        assert [next(events).kind for _ in range(2)] == ["began", "began"]
    assert not any(process.is_alive() for process in processes)
    assert time.monotonic() - start < 50


# Runs.


@pytest.fixture(scope="module")
def compared(tiny: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of two strategies over two seeds. Not to be written to."""
    from fedshift.cli.compare import compare

    out = tmp_path_factory.mktemp("compared") / "out"
    compare([*tiny, "strategy=local,fedavg", "seed=0,1", f"out={out}"])
    return out


def standings(out: Path) -> list[dict[str, str]]:
    """The rows of a comparison's table."""
    with (out / "comparison.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def cell(out: Path, name: str) -> Path:
    return out / "cells" / name


def tables(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("comparison*"))}


def test_each_cell_has_the_bytes_of_its_simulation(
    compared: Path, tiny: tuple[str, ...], contents: Contents, tmp_path: Path
) -> None:
    for strategy in ("local", "fedavg"):
        config = load([*tiny, f"strategy={strategy}", "seed=1", "baselines=[]"])
        run(tmp_path / strategy, config, drawn=False)
        expected = contents(tmp_path / strategy)
        found = contents(cell(compared, f"strategy={strategy},seed=1"))
        assert set(RESULTS) < found.keys()
        assert "checkpoints/round_0002.safetensors" in found
        assert found == expected


def test_the_folder_says_what_was_asked(compared: Path) -> None:
    grid = json.loads((compared / "comparison.json").read_text())
    assert grid["axes"] == {"strategy": ["local", "fedavg"], "seed": ["0", "1"]}
    assert grid["fixed"]["rounds"] == "2"
    assert grid["baseline"] == "strategy=fedavg"
    assert list(grid["cells"]) == sorted(
        (path.name for path in (compared / "cells").iterdir()),
        key=lambda name: ("local" not in name, name),
    )


def test_the_same_command_again_runs_nothing_and_gives_the_same_tables(
    command: Command, compared: Path, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    before = {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*")}
    outcome = command("compare", *tiny, "strategy=local,fedavg", "seed=0,1", f"out={out}")
    assert outcome.code == 0, outcome.err
    assert {path: path.stat().st_mtime_ns for path in (out / "cells").rglob("*")} == before
    assert tables(out) == tables(compared)


def test_entrants_are_ranked_at_the_hour_asked_for(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """The same command with another hour runs nothing; at an hour before the first round is over
    nobody has a score."""
    from fedshift.cli.compare import compare

    grid = (*tiny, "strategy=local,fedavg", "clock=lan", f"out={tmp_path}")
    compare([*grid])
    ends = [
        [line["clock_s"] / 3600 for line in read_rounds(folder)]
        for folder in sorted((tmp_path / "cells").iterdir())
    ]
    assert float(standings(tmp_path)[0]["hours"]) == min(end[-1] for end in ends)
    finished = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cells/*/cases.csv")}
    for hours, known in ((min(map(min, ends)) / 2, False), (max(map(max, ends)), True)):
        compare([*grid, f"hours={hours}"])
        rows = standings(tmp_path)
        assert [float(row["hours"]) for row in rows] == [hours, hours]
        assert all((row["dice_at_hours"] != "") is known for row in rows)
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in finished.items())


def test_a_changed_grid_keeps_the_finished_cells_that_are_in_it(
    command: Command, compared: Path, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """Another axis gives the cells other names; a value less leaves its runs in the folder."""
    out = tmp_path / "out"
    shutil.copytree(compared, out)
    stamps = {
        seed: (cell(out, f"strategy=fedavg,seed={seed}") / "cases.csv").stat().st_mtime_ns
        for seed in (0, 1)
    }
    grid = ("strategy=fedavg", "local_steps=2,3", "seed=0")
    fixed = without(tiny, "local_steps")
    outcome = command("compare", *fixed, *grid, f"out={out}")
    assert outcome.code == 0, outcome.err
    kept = cell(out, "local_steps=2") / "cases.csv"
    assert kept.stat().st_mtime_ns == stamps[0]
    assert (cell(out, "local_steps=3") / "cross_site.csv").exists()
    assert cell(out, "strategy=fedavg,seed=1").exists()
    grid = ("strategy=fedavg", "local_steps=2", "seed=0,1")
    outcome = command("compare", *fixed, *grid, f"out={out}")
    assert outcome.code == 0, outcome.err
    for seed in (0, 1):
        path = cell(out, f"seed={seed}") / "cases.csv"
        assert path.stat().st_mtime_ns == stamps[seed]


def test_other_fixed_options_are_refused_by_name(
    command: Command, compared: Path, tiny: tuple[str, ...]
) -> None:
    before = tables(compared)
    other = [option.replace("rounds=2", "rounds=3") for option in tiny]
    outcome = command("compare", *other, "seed=0,1", "data.split_gap=2", f"out={compared}")
    assert outcome.code == 2
    assert "other options (data.split_gap, rounds)" in outcome.err
    assert tables(compared) == before


def test_a_folder_that_holds_something_else_is_left_as_it_is(
    command: Command, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    outcome = command("compare", *tiny, "seed=0,1", f"out={tmp_path}")
    assert outcome.code == 2
    assert "holds no comparison" in outcome.err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_failed_cells_are_shown_and_tried_again_and_stop_no_other(
    command: Command, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """One is refused by design; in the other no site can train so few rounds."""
    out = tmp_path / "out"
    options = (
        *tiny,
        "strategy=local,fedavg",
        "method=supervised,unet_gan",
        "data.unlabelled_sites=[vendor_c]",
        f"out={out}",
    )
    outcome = command("compare", *options)
    assert outcome.code == 0, outcome.err
    refused = "trains between sites, which local training keeps apart"
    idle = "no site trained in any round: site vendor_a: rounds=2 leaves none"
    told = f"with strategy=fedavg: {idle}"
    for reason in (refused, told):
        assert f"1 cell failed: method=unet_gan {reason}" in outcome.out
    assert refused in (cell(out, "strategy=local,method=unet_gan") / "failed.txt").read_text()
    failed = cell(out, "strategy=fedavg,method=unet_gan")
    assert idle in (failed / "failed.txt").read_text()
    assert (cell(out, "strategy=fedavg,method=supervised") / "cross_site.csv").exists()
    assert not (failed / "cross_site.csv").exists()
    stamp = (failed / "rounds.jsonl").stat().st_mtime_ns
    again = command("compare", *options)
    assert again.code == 0
    assert (failed / "rounds.jsonl").stat().st_mtime_ns > stamp
    assert refused in again.out


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ({"sites": {"a": {"examples": 8.0}}, "rejected": {}}, ""),
        ({"sites": {"a": {"examples": 8.0}}, "rejected": {"a": "is nan"}}, "site a: is nan"),
        ({"sites": {"a": {"val_dice": 0.5}}, "rejected": {}}, "0 usable updates"),
        ({"sites": {"a": {"examples": 0.0}}, "rejected": {}}, "0 usable updates"),
    ],
)
def test_a_cell_is_untrained_when_no_update_counted(
    tmp_path: Path, second: dict[str, Any], reason: str
) -> None:
    cost = {"seconds": 0.0, "bytes_down": 0, "bytes_up": 0}
    skipped = {"failed": {}, "rejected": {}, "sites": {}, "skipped": "0 usable updates", **cost}
    told = [{"round": 1, **skipped}, {"round": 2, **skipped, **second}]
    (tmp_path / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in told))
    assert untrained(tmp_path) == (reason and f"no site trained in any round: {reason}")


def test_a_grid_without_a_finished_cell_is_an_error(
    command: Command, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    outcome = command(
        "compare", *tiny, "method=unet_gan", "strategy=local,pooled", f"out={tmp_path / 'out'}"
    )
    assert outcome.code == 2
    assert "no cell could be run; the first failed: method=unet_gan trains between" in outcome.err
    assert not (tmp_path / "out" / "comparison.csv").exists()


def test_sites_that_several_cells_share_are_prepared_once(
    tiny: tuple[str, ...], tmp_path: Path
) -> None:
    from fedshift.runs.compare import _sites

    prepared = prepare(parse(tiny, tmp_path, "strategy=fedavg,fedbn", "seed=0,1"))
    assert len(prepared) == 4
    assert len(_sites(prepared)) == 2 * 4  # phantoms of two seeds, four sites each


# Stopping and going on.

LONG = ("strategy=local,fedavg", "seed=0,1", "rounds=4", "local_steps=6")


def launch(tiny: tuple[str, ...], out: Path) -> subprocess.Popen[bytes]:
    options = without(tiny, "rounds", "local_steps")
    # Tests that a shell runs in the background ignore Ctrl-C, and their children inherit that.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from fedshift.cli import main; main()"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, "compare", *options, *LONG, f"out={out}"],
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def wait_for(process: subprocess.Popen[bytes], ready: Callable[[], bool]) -> None:
    end = time.monotonic() + 100
    while not ready():
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < end
        time.sleep(0.01)


def alive(session: int) -> list[int]:
    """The processes of a session that are still there."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(folder.name))
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_interrupted_and_killed_it_goes_on_to_the_same_tables(
    command: Command, contents: Contents, tiny: tuple[str, ...], tmp_path: Path
) -> None:
    """Ctrl-C in the first cell, then SIGKILL of the parent alone in the second."""
    out = tmp_path / "out"
    first = launch(tiny, out)
    wait_for(first, lambda: any(out.glob("cells/*/checkpoints/round_0002.json")))
    first.send_signal(signal.SIGINT)
    printed, error = first.communicate(timeout=60)
    assert first.returncode == 130
    assert re.search(rb"stopped: \d of 4 cells done, 1 running, \d waiting", printed)
    assert b"the same command goes on" in error
    assert not alive(first.pid)

    second = launch(tiny, out)
    wait_for(second, lambda: any(out.glob("cells/*/cross_site.csv")))
    second.kill()
    second.communicate(timeout=60)
    end = time.monotonic() + 30
    while alive(second.pid):
        assert time.monotonic() < end, "a worker outlived the one who started it"
        time.sleep(0.05)
    done = {path: path.stat().st_mtime_ns for path in out.glob("cells/*/cross_site.csv")}

    options = without(tiny, "rounds", "local_steps")
    assert command("compare", *options, *LONG, f"out={out}").code == 0
    assert all(path.stat().st_mtime_ns == stamp for path, stamp in done.items())
    whole = tmp_path / "whole"
    assert command("compare", *options, *LONG, f"out={whole}").code == 0
    expected, found = tables(whole), tables(out)
    assert "comparison.csv" in expected
    for name in ("comparison.json", "comparison_sites.csv"):  # the others show seconds, too
        assert found[name] == expected[name], name
    for name in (path.name for path in (whole / "cells").iterdir()):
        ran, again = contents(cell(whole, name)), contents(cell(out, name))
        assert ran.keys() == again.keys()
        for path, content in ran.items():
            assert again[path] == content, (name, path)


# The screen.


def test_the_live_table_shows_every_cell(tmp_path: Path) -> None:
    cells = [
        Cell({"strategy": strategy, "seed": seed}, tmp_path / strategy / seed)
        for strategy in ("fedavg", "krum")
        for seed in ("0", "1")
    ]
    cells[0] = replace(cells[0], status="done")
    console = Console(width=100, height=40, force_terminal=True, record=True, color_system=None)
    board = Board(console, cells, weight=lambda number: 1.0)

    def task(device: str, tell: Any) -> None: ...

    board.show(1, Event(task, "began"))
    board.show(1, Event(task, "progress", 0.37, "round 4/10: trained vendor_a (federated)"))
    board.show(2, Event(task, "began"))
    board.show(2, Event(task, "failed", text="too few sites"))
    console.print(board._table())
    shown = console.export_text()
    rows = [line.split() for line in shown.splitlines() if line.strip()]
    assert rows[0][:7] == ["2/4", "strategy=krum", "seed=0:", "failed:", "too", "few", "sites;"]
    assert ["strategy", "seed", "0", "seed", "1"] in rows
    assert ["fedavg", "done", "37%"] in rows
    assert ["krum", "failed", "waiting"] in rows
    assert "strategy=fedavg seed=1: round 4/10" in shown
    assert "1 of 4 cells done, 1 running, 1 failed, 1 waiting" in shown
