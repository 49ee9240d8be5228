"""Whole runs: the run folder's contract on phantoms, and real images where they are at hand."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from fedshift.protocol.tables import SHIFT_COLUMNS

SITES = ("vendor_a", "vendor_b", "vendor_c", "vendor_d")
REAL = (
    "federation=manifest",
    "method.depth=3",
    "method.width=4",
    "rounds=1",
    "local_steps=2",
    "engine.devices=cpu",
    "engine.workers=1",
)

# Other programs read these.
CASE_COLUMNS = [
    "model",
    "trained_on",
    "site",
    "vendor",
    "split",
    "subject",
    "case",
    "structure",
    "dice",
    "hd95_mm",
    "assd_mm",
    "nsd",
    "volume_ml",
    "reference_volume_ml",
    "false_positive_ml",
    "false_positive_components",
    "failed",
]
CROSS_SITE_COLUMNS = [
    "model",
    "trained_on",
    "site",
    "vendor",
    "structure",
    "metric",
    "n",
    "n_failed",
    "mean",
    "std",
    "median",
    "ci_low",
    "ci_high",
]


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def table_tsv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_run_folder_holds_what_it_promises(reference: Path) -> None:
    assert {path.name for path in reference.iterdir()} == {
        "config.yaml",
        "run.json",
        "rounds.jsonl",
        "rounds.csv",
        "cases.csv",
        "cross_site.csv",
        "shift.csv",
        "egress.jsonl",
        "checkpoints",
        "figures",
        "report.html",
    }
    for name, columns in (
        ("cases.csv", CASE_COLUMNS),
        ("cross_site.csv", CROSS_SITE_COLUMNS),
        ("shift.csv", SHIFT_COLUMNS),
    ):
        header = (reference / name).read_text().splitlines()[0]
        assert header.split(",") == list(columns)
    names = {path.name for path in (reference / "checkpoints").iterdir()}
    assert {f"round_000{k}.{end}" for k in (1, 2) for end in ("json", "safetensors")} < names


def test_the_matrix_has_every_model_at_every_site(reference: Path) -> None:
    found = {
        (row["model"], row["trained_on"], row["site"]) for row in table(reference / "cases.csv")
    }
    models = [("global", "all"), ("pooled", "all"), *(("local", site) for site in SITES[:3])]
    assert found == {(*model, site) for model in models for site in SITES}


def test_fedbn_scores_personal_models_and_a_global_one(fedbn_reference: Path) -> None:
    found = {(row["model"], row["trained_on"]) for row in table(fedbn_reference / "cases.csv")}
    assert found == {("global", "all"), *(("personal", site) for site in SITES[:3])}
    shared = load_file(fedbn_reference / "checkpoints" / "round_0002.safetensors")
    own = load_file(
        fedbn_reference
        / "checkpoints"
        / "sites"
        / "vendor_a"
        / "federated"
        / "round_0002.safetensors"
    )
    assert shared and own
    assert not shared.keys() & own.keys()
    assert any(name.endswith("num_batches_tracked") for name in own)
    assert not any(name.endswith("running_mean") for name in shared)
    counters = [array for name, array in own.items() if name.endswith("num_batches_tracked")]
    assert {int(counter) for counter in counters} == {4}  # two rounds of two steps


def test_each_round_says_what_happened_at_each_site(reference: Path) -> None:
    rounds = lines(reference / "rounds.jsonl")
    assert [line["round"] for line in rounds] == [1, 2]
    for line in rounds:
        assert line["baselines"].keys() == {"local", "pooled"}
        assert line["sites"].keys() == set(SITES[:3])
        assert line["failed"] == line["rejected"] == {}
        assert line["skipped"] is None
        for key in ("bytes_up", "bytes_down"):
            assert line[key] == sum(site[key] for site in line["sites"].values()) > 0
        for metrics in line["sites"].values():
            assert math.isfinite(metrics["loss"])
            assert 0 <= metrics["val_dice"] <= 1
            assert metrics["examples"] == 8  # four of six subjects of two slices train
    weights = load_file(reference / "checkpoints" / "round_0001.safetensors")
    packed = sum(array.nbytes for array in weights.values())
    assert 3 * packed < rounds[0]["bytes_up"] < 3 * packed * 1.5


def test_the_egress_ledger_is_that_of_the_sites(reference: Path) -> None:
    egress = lines(reference / "egress.jsonl")
    assert {entry["site"] for entry in egress} == set(SITES)
    for site in SITES:
        own = lines(reference / "checkpoints" / "sites" / site / "egress.jsonl")
        assert [entry for entry in egress if entry["site"] == site] == own
    updates = [entry for entry in egress if entry["purpose"] == "model update"]
    weights = load_file(reference / "checkpoints" / "round_0001.safetensors")
    for number in (1, 2):
        sent = {
            entry["record"].removeprefix("arrays/"): tuple(entry["shape"])
            for entry in updates
            if entry["site"] == "vendor_a"
            and entry["round"] == number
            and entry["record"].startswith("arrays/")
        }
        assert sent == {name: array.shape for name, array in weights.items()}
    assert not [entry for entry in updates if entry["site"] == "vendor_d"]


def test_two_runs_of_one_config_are_the_same(
    reference: Path,
    simulate: Callable[..., Path],
    contents: Callable[..., dict[str, Any]],
    tmp_path: Path,
) -> None:
    """And another seed gives another model."""
    other = simulate(tmp_path / "other", "seed=1", "baselines=[]")
    again = simulate(tmp_path / "again", "strategy=fedavg")
    expected, found = contents(reference), contents(again)
    assert found.keys() == expected.keys()
    for name, content in expected.items():
        if name != "figures/curves.png":
            assert found[name] == content, name
    name = "checkpoints/round_0002.safetensors"
    assert (other / name).read_bytes() != expected[name]


def test_sampling_and_batch_normalisation_together(
    simulate: Callable[..., Path], tmp_path: Path
) -> None:
    """The counters of batch normalisation travel, are averaged and stay whole numbers."""
    out = simulate(tmp_path / "run", "method.norm=batch", "strategy.fraction=0.5", "baselines=[]")
    rounds = lines(out / "rounds.jsonl")
    trained = [
        {site for site, metrics in line["sites"].items() if "loss" in metrics} for line in rounds
    ]
    assert [len(names) for names in trained] == [2, 2]
    assert all(line["rejected"] == {} for line in rounds)
    weights = load_file(out / "checkpoints" / "round_0002.safetensors")
    counters = [array for name, array in weights.items() if name.endswith("num_batches_tracked")]
    assert {(int(array), array.shape, array.dtype) for array in counters} == {
        (4, (), np.dtype(np.int64))
    }


def run_real(simulate_options: tuple[str, ...], out: Path) -> Path:
    from fedshift.cli.simulate import simulate

    simulate([*REAL, *simulate_options, f"out={out}"])
    return out


def test_spinal_cord_from_six_sites(data_root: Path, tmp_path: Path) -> None:
    manifest = data_root / "spinal_cord_mri" / "MANIFEST.tsv"
    out = run_real(
        (
            f"data.manifest={manifest}",
            "data.spacing_mm=1.0",
            "data.size=48",
            "strategy=fedbn",
            "baselines=[]",
            "evaluated=[global]",
        ),
        tmp_path / "run",
    )
    rows = table(out / "cases.csv")
    sites = {row["site"] for row in table_tsv(manifest)}
    assert {row["site"] for row in rows if row["split"] == "test"} == sites
    assert len(sites) == 6
    assert len({row["structure"] for row in rows}) == 2
    truth = {
        (row["site"], row["case"], row["structure"]): float(row["reference_volume_ml"])
        for row in rows
    }
    assert min(truth.values()) > 0
    assert max(truth.values()) < 50  # millilitres: a cord, not a head
    assert {row["model"] for row in rows} == {"global"}


def test_one_cardiac_set_cut_into_sites_by_a_pattern(data_root: Path, tmp_path: Path) -> None:
    manifest = data_root / "cardiac_cine_mri" / "MANIFEST.tsv"
    out = run_real(
        (
            f"data.manifest={manifest}",
            "data.site_pattern='SC-(HF-NI|HF-I|HYP|N)-'",
            "data.size=32",
            "data.spacing_mm=4.0",
            "strategy=fedavg",
            "baselines=[]",
        ),
        tmp_path / "run",
    )
    rows = table(out / "cases.csv")
    assert {row["site"] for row in rows} == {"HF-I", "HF-NI", "HYP", "N"}
    splits: dict[tuple[str, str], set[str]] = {}
    for row in rows:
        splits.setdefault((row["site"], row["subject"]), set()).add(row["split"])
    assert {len(found) for found in splits.values()} == {1}  # no subject in two splits
