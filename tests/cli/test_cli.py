"""The commands: quick help, explain, sites, evaluate, report, and the other ways to run."""

from __future__ import annotations

import ast
import csv
import io
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import yaml
from kit.repository import ROOT

from fedshift import UserError

Command = Callable[..., Any]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['fedshift', '--help']\n"
        "from fedshift.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'flwr', 'hydra', 'numpy', 'scipy', 'matplotlib', 'nibabel'}\n"
        "print('heavy:', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "heavy: []" in done.stdout
    for name in ("demo", "simulate", "evaluate", "report", "explain", "sites"):
        assert name in done.stdout


def test_looking_at_sites_does_not_wait_for_torch() -> None:
    code = "import sys, fedshift.cli.sites; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_new_folder_and_config_are_installed_without_an_edit(tmp_path: Path) -> None:
    root = ROOT
    code = tmp_path / "checkout"
    skipped = shutil.ignore_patterns(".*", "build", "tests", "docs", "*.egg-info", "__pycache__")
    shutil.copytree(root, code, ignore=skipped)
    new = (
        "client/methods/new_method/__init__.py",
        "client/methods/new_method/atlas.npz",
        "client/methods/new_method/parts/network.py",
        "client/methods/new_method/parts/deep/means.json",
        "strategies/new_strategy/__init__.py",
        "strategies/new_strategy/table.csv",
        "configs/method/new_method.yaml",
    )
    cache = "client/methods/new_method/parts/__pycache__/network.cpython-311.pyc"
    for name in (*new, cache):
        (code / name).parent.mkdir(parents=True, exist_ok=True)
        (code / name).touch()
    build = [sys.executable, "setup.py", "-q", "build_py", "-d", str(tmp_path / "built")]
    subprocess.run(build, cwd=code, check=True, capture_output=True)
    installed = tmp_path / "built" / "fedshift"
    found = {path.relative_to(installed).as_posix() for path in installed.rglob("*.*")}
    assert {*new, "py.typed", "server/report/page.css", "cli/__init__.py"} <= found
    assert cache not in found
    left_out = {"tests", "benchmarks", "docs", "setup.py"}
    assert not {name.partition("/")[0] for name in found} & left_out


@pytest.mark.parametrize("room", ["runs", "papers", "server/engines", "strategies", "client"])
def test_only_the_command_line_prints(room: str) -> None:
    root = ROOT
    for path in (root / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert ast.unparse(node.func) != "print", path
            if isinstance(node, ast.Import | ast.ImportFrom):
                named = getattr(node, "module", None) or ""
                names = [named, *(alias.name for alias in node.names)]
                assert not {name.partition(".")[0] for name in names} & {"rich", "typer"}, path


def test_a_finding_is_coloured_by_its_severity() -> None:
    from fedshift.cli.console import PlainConsole

    file = io.StringIO()
    console = PlainConsole(file=file, force_terminal=True, color_system="standard", width=20)
    console.tell("error twin: [red] is a name, in a sentence longer than the screen")
    console.tell("no error")
    told = "\x1b[31merror\x1b[0m twin: [red] is a name, in a sentence longer than the screen\n"
    assert file.getvalue() == f"{told}no error\n"


def test_version_and_unknown_commands(command: Command) -> None:
    from fedshift import __version__

    assert command("--version").out.strip() == __version__
    assert command("simulat").code == 2
    assert command("sites", "chek").code == 2


# explain


def test_explain_counts_what_is_kept(command: Command) -> None:
    from torch import nn

    from fedshift.client.networks.lv_unet import LVUNet

    net = LVUNet(1, 4, width=4, depth=3, blocks=1, norm="batch")
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    scale = sum(p.numel() for module in norms for p in module.parameters())
    running = sum(b.numel() for module in norms for b in module.buffers())
    rest = sum(p.numel() for p in net.parameters()) - scale
    out = command(
        "explain", "strategy=fedbn", "method.norm=batch", "method.width=4", "method.depth=3"
    ).out
    rows = {
        line.split("│")[3].strip(): line
        for line in out.replace("┃", "│").splitlines()
        if line.count("│") > 4
    }
    assert f"{rest:,}" in rows["weights and biases"]
    assert "averaged" in rows["weights and biases"]
    assert f"{scale:,}" in rows["scale and shift of normalising layers"]
    assert "kept at the site" in rows["scale and shift of normalising layers"]
    assert f"{running:,}" in rows["running statistics of normalising layers"]
    assert f"{4 * rest / 1e6:.2f} MB" in out


@pytest.mark.parametrize(
    ("overrides", "warning"),
    [
        (("strategy=fedbn", "method.norm=none"), "fedbn would be the same as fedavg"),
        (("strategy=fedavg", "method.norm=none"), "fedavg would be the same as fedbn"),
        (("strategy=fedprox", "strategy.mu=0"), "fedprox would be the same as fedavg"),
        (("federation.unseen=[vendor_b,vendor_c,vendor_d]",), "is local training"),
        (("strategy=fedavg",), None),
        (("strategy=fedbn",), None),
        (("strategy=fedprox",), None),
    ],
)
def test_explain_warns_of_strategies_that_are_the_same(
    command: Command, overrides: tuple[str, ...], warning: str | None
) -> None:
    outcome = command("explain", *overrides)
    assert outcome.code == 0
    if warning is None:
        assert "Warning" not in outcome.out
    else:
        assert "Warning: " in outcome.out
        assert warning in " ".join(outcome.out.split())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ("strategy=fedbuff",),
            "fedbuff decides by the simulated clock, and there is none",
        ),
        (("strategy=bulyan", "strategy.byzantine=3"), "add sites"),
        (("strategy=fedrep", "local_steps=1"), "set local_steps to at least 2"),
        (("strategy.min_sites=9",), "strategy.min_sites is 9 and the federation has"),
        (("method=unet_gan",), "adapts to sites without labels and every training site has some"),
        (("method=supervised", "clock=lan", "clock.sites={a: {}}"), "clock.sites.a is no site of"),
    ],
)
def test_explain_refuses_what_a_run_would(
    command: Command, overrides: tuple[str, ...], words: str
) -> None:
    outcome = command("explain", *overrides)
    assert outcome.code == 2
    assert words in outcome.err


# sites


def test_sites_list_and_inspect_name_every_site(command: Command, tiny: tuple[str, ...]) -> None:
    data = [option for option in tiny if option.startswith("federation")]
    listed = command("sites", "list", *data)
    inspected = command("sites", "inspect", *data)
    for name in ("vendor_a", "vendor_b", "vendor_c", "vendor_d"):
        assert name in listed.out
        assert name in inspected.out
    assert listed.code == inspected.code == 0
    assert "unseen" in listed.out


def save_set(folder: Path, structures: dict[str, int]) -> Path:
    """One site of two volumes: a disc (``core``) within a ring (``rim``), and its table."""
    folder.mkdir()
    rows, columns = np.mgrid[:32, :32]
    lines = ["path\tlabel_path\tsite\tsubject\tvendor\tlabel_values"]
    for number in range(2):
        distance = (rows - 9) ** 2 + (columns - 14 - number) ** 2
        ring, disc = distance < 36, distance < 12
        label = np.zeros((32, 32, 3), np.uint8)
        label[ring] = structures["rim"]
        label[disc] = structures["core"]
        noise = np.random.default_rng(number).normal(0, 2, label.shape)
        image = 50.0 * ring[..., None] + 50 * disc[..., None] + noise
        for name, array in ((f"s{number}", image.astype(np.float32)), (f"s{number}_l", label)):
            nib.save(nib.Nifti1Image(array, np.diag([1, 1, 5, 1])), folder / f"{name}.nii.gz")
        values = ";".join(f"{value}={name}" for name, value in structures.items())
        lines.append(f"s{number}.nii.gz\ts{number}_l.nii.gz\there\tsub{number}\tX\t{values}")
    (folder / "MANIFEST.tsv").write_text("\n".join(lines) + "\n")
    return folder / "MANIFEST.tsv"


def test_sites_check_tells_a_sound_set_from_a_broken_one(command: Command, tmp_path: Path) -> None:
    sound = save_set(tmp_path / "sound", {"core": 1, "rim": 2})
    common = ("federation=manifest", "data.size=32")
    good = command("sites", "check", *common, f"data.manifest={sound}")
    assert good.code == 0, good.out + good.err
    (tmp_path / "sound" / "s1.nii.gz").write_bytes(b"nothing")
    bad = command("sites", "check", *common, f"data.manifest={sound}")
    assert bad.code == 2
    assert "s1.nii.gz" in bad.out + bad.err


# evaluate and report


@pytest.fixture
def finished(reference: Path, tmp_path: Path) -> Path:
    """A copy of the reference run that may be written to."""
    shutil.copytree(reference, tmp_path / "finished")
    return tmp_path / "finished"


def test_evaluating_the_runs_own_data_gives_its_test_rows(
    command: Command, finished: Path, contents: Callable[..., dict[str, Any]]
) -> None:
    before = contents(finished)
    outside = command("evaluate", str(finished), "--name", "../../again")
    assert outside.code == 2
    assert "no name of one folder" in outside.err
    outcome = command("evaluate", str(finished), "--name", "again")
    assert outcome.code == 0, outcome.err
    folder = finished / "evaluations" / "again"
    own = [row for row in table(finished / "cases.csv") if row["split"] == "test"]
    assert own
    assert table(folder / "cases.csv") == own
    assert (folder / "cross_site.csv").read_bytes() == (finished / "cross_site.csv").read_bytes()
    after = contents(finished)
    for name, content in before.items():
        assert after[name] == content, name


def test_evaluating_other_data_matches_structures_by_name(command: Command, tmp_path: Path) -> None:
    """The same images with the label values in another order score the same."""
    first = save_set(tmp_path / "first", {"core": 1, "rim": 2})
    second = save_set(tmp_path / "second", {"rim": 1, "core": 7})
    options = (
        "simulate",
        "federation=manifest",
        f"data.manifest={first}",
        "data.size=32",
        "method.depth=2",
        "method.width=4",
        "rounds=1",
        "local_steps=12",
        "baselines=[]",
        "engine.devices=cpu",
        "engine.workers=1",
        f"out={tmp_path / 'run'}",
    )
    assert command(*options).code == 0
    scores = {}
    for manifest in (first, second):
        outcome = command("evaluate", str(tmp_path / "run"), "--manifest", str(manifest))
        assert outcome.code == 0, outcome.err
        rows = table(tmp_path / "run" / "evaluations" / manifest.parent.name / "cases.csv")
        assert {row["structure"] for row in rows} == {"core", "rim"}
        assert {row["split"] for row in rows} == {"test"}
        assert {row["subject"] for row in rows} == {"sub0", "sub1"}
        scores[manifest] = {
            (row["subject"], row["structure"]): (row["dice"], row["reference_volume_ml"])
            for row in rows
        }
    assert scores[first] == scores[second]
    volumes = {structure: float(ml) for (_, structure), (_, ml) in scores[first].items()}
    assert volumes["core"] < volumes["rim"]


def test_evaluating_data_with_no_structure_in_common_is_refused(
    command: Command, finished: Path, tmp_path: Path
) -> None:
    manifest = save_set(tmp_path / "other", {"core": 1, "rim": 2})
    outcome = command("evaluate", str(finished), "--manifest", str(manifest))
    assert outcome.code == 2
    assert "none in common" in outcome.err
    assert not (finished / "evaluations").exists()


def test_reports_are_the_same_each_time(command: Command, finished: Path) -> None:
    pages = []
    for _ in range(2):
        assert command("report", str(finished)).code == 0
        figures = {path.name: path.read_bytes() for path in (finished / "figures").iterdir()}
        pages.append(((finished / "report.html").read_bytes(), figures))
    assert pages[0] == pages[1]
    page = pages[0][0].decode()
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page.replace("https://www.w3.org", "")


# Other ways to run.


def test_a_site_without_labels_is_scored_but_trains_nothing(
    simulate: Callable[..., Path], tmp_path: Path
) -> None:
    out = simulate(tmp_path / "run", "data.unlabelled_sites=[vendor_b]", "rounds=1", "baselines=[]")
    cases = table(out / "cases.csv")
    tested = {row["site"] for row in cases if row["split"] == "test"}
    assert tested == {"vendor_a", "vendor_b", "vendor_c", "vendor_d"}
    assert "vendor_b" not in {row["site"] for row in cases if row["split"] == "val"}
    line = yaml.safe_load((out / "rounds.jsonl").read_text())
    assert set(line["sites"]) == {"vendor_a", "vendor_c"}


def test_leaving_one_site_out_scores_each_site_with_models_that_never_saw_it(
    simulate: Callable[..., Path], tmp_path: Path
) -> None:
    out = simulate(
        tmp_path / "run",
        "protocol=leave_one_site_out",
        "rounds=1",
        "local_steps=1",
        "baselines=[local]",
    )
    cases = table(out / "cases.csv")
    assert {row["site"] for row in cases} == {"vendor_a", "vendor_b", "vendor_c"}
    assert all(row["trained_on"] != row["site"] for row in cases)
    for name in ("vendor_a", "vendor_b", "vendor_c"):
        fold = out / "folds" / name
        line = yaml.safe_load((fold / "rounds.jsonl").read_text())
        assert name not in line["sites"]
        assert len(line["sites"]) == 2
        of_fold = [row for row in table(fold / "cases.csv") if row["site"] == name]
        assert [row for row in cases if row["site"] == name] == of_fold
    assert (out / "report.html").exists()
    assert table(out / "cross_site.csv")


def test_fedprox_without_a_penalty_is_fedavg_to_the_bit_and_else_is_not(
    simulate: Callable[..., Path], reference: Path, tmp_path: Path
) -> None:
    def model(mu: str) -> bytes:
        out = simulate(tmp_path / mu, "strategy=fedprox", f"strategy.mu={mu}", "baselines=[]")
        return (out / "checkpoints" / "round_0002.safetensors").read_bytes()

    averaged = (reference / "checkpoints" / "round_0002.safetensors").read_bytes()
    assert model("0") == averaged
    assert model("5") != averaged


def test_a_deadline_nobody_meets_leaves_the_model_and_names_every_site(
    simulate: Callable[..., Path], tmp_path: Path
) -> None:
    from safetensors.numpy import load_file

    from fedshift.client.model import initial_arrays

    out = tmp_path / "run"
    with pytest.raises(UserError, match="no site trained in any round: site vendor_a: no reply"):
        simulate(out, "rounds=1", "baselines=[]", "local_steps=60", "deadline_s=0.15")
    line = yaml.safe_load((out / "rounds.jsonl").read_text())
    assert set(line["failed"]) == {"vendor_a", "vendor_b", "vendor_c"}
    assert "deadline_s" in line["failed"]["vendor_a"]
    assert "usable updates" in line["skipped"]
    config = yaml.safe_load((out / "config.yaml").read_text())
    start = initial_arrays(
        config["method"],
        {"name": "segmentation", "parts": ["LV cavity", "myocardium", "RV cavity"]},
        0,
    )
    kept = load_file(out / "checkpoints" / "round_0001.safetensors")
    assert kept.keys() == start.keys()
    for name, array in start.items():
        assert kept[name].tobytes() == array.tobytes()
