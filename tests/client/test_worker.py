"""The site's guard: policy, ledger, errors, state, and that no image ever leaves."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from kit.asking import (
    METHOD,
    arrays_of,
    ask,
    entries_of,
    initial,
    instruction,
    ledger,
    local_federation,
    metrics_of,
)
from kit.cases import mask

from fedshift import UserError
from fedshift.client.contract.method import Scene
from fedshift.client.methods import METHODS
from fedshift.client.methods.supervised import Supervised
from fedshift.client.model import Model
from fedshift.client.policy import Policy
from fedshift.client.simulation import LocalSites, OpenSites
from fedshift.client.tasks.segmentation import Segmentation
from fedshift.protocol.cards import SiteCard
from fedshift.protocol.flower import ArrayRecord, Message, RecordDict
from fedshift.protocol.messages import (
    EXAMPLES,
    STATISTICS,
    Action,
    details,
)
from fedshift.server import shift

CPU = torch.device("cpu")


@pytest.fixture
def local_sites(tiny: tuple[str, ...], tmp_path: Path) -> Callable[..., LocalSites]:
    return partial(local_federation, tiny, tmp_path / "sites")


@pytest.fixture
def sites(local_sites: Callable[..., LocalSites]) -> LocalSites:
    return local_sites()


# Policy.


def test_a_method_that_the_policy_does_not_list_does_not_train(
    local_sites: Callable[..., LocalSites], monkeypatch: pytest.MonkeyPatch
) -> None:
    sites = local_sites(Policy(methods=("unet_gan",)))
    monkeypatch.setattr(Supervised, "fit", lambda *_: pytest.fail("it trained"))
    worker = sites.worker("vendor_a", CPU)
    reply = ask(worker, instruction(sites, Action.FIT, round=1), initial(sites))
    assert reply.has_error()
    assert "'supervised' (policy.methods)" in (reply.error.reason or "")
    assert [entry["purpose"] for entry in ledger(worker)] == ["error"]


@pytest.mark.parametrize(
    ("policy", "key"),
    [
        (Policy(release=("site card",)), "policy.release"),
        (Policy(max_message_mb=0.01), "policy.max_message_mb"),
    ],
)
def test_what_the_policy_forbids_to_leave_stays_and_is_not_in_the_ledger(
    local_sites: Callable[..., LocalSites], policy: Policy, key: str
) -> None:
    sites = local_sites(policy)
    worker = sites.worker("vendor_a", CPU)
    reply = ask(worker, instruction(sites, Action.FIT, round=1), initial(sites))
    assert reply.has_error()
    reason = reply.error.reason or ""
    assert key in reason
    (entry,) = ledger(worker)
    assert (entry["purpose"], entry["bytes"]) == ("error", len("reason") + len(reason))
    assert not ask(worker, instruction(sites, Action.CARD)).has_error()
    assert {entry["purpose"] for entry in ledger(worker)} == {"error", "site card"}


def test_a_policy_with_an_unknown_purpose_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"policy\.release holds 'images'"):
        Policy.from_config({"release": ["images"]})
    with pytest.raises(UserError, match=r"policy\.max_mb is not a setting"):
        Policy.from_config({"max_mb": 3})


# Ledger.


def every_answer(sites: LocalSites, name: str) -> list[tuple[Action, Message]]:
    """What a site answers to every action a coordinator has, in a run's order."""
    worker = OpenSites(sites, CPU)[name]
    weights = initial(sites)
    answers = [
        (action, ask(worker, instruction(sites, action)))
        for action in (Action.NAME, Action.CARD, Action.INITIAL)
    ]
    kept = tuple(weights)[:1]
    shared = {key: array for key, array in weights.items() if key not in kept}
    changes: dict[str, Any] = {"round": 1, "kept": kept}
    answers += [
        (action, ask(worker, instruction(sites, action, **changes), shared))
        for action in (Action.FIT, Action.VALIDATE)
    ]
    answers.append((Action.MODEL, ask(worker, instruction(sites, Action.MODEL, **changes))))
    scored = instruction(sites, Action.SCORE, splits=("val", "test"))
    answers.append((Action.SCORE, ask(worker, scored, weights)))
    asked = instruction(sites, Action.STATISTICS)
    answers.append((Action.STATISTICS, ask(worker, asked, weights)))
    statistics = {
        other: arrays_of(ask(sites.worker(other, CPU), asked, weights), STATISTICS)
        for other in ("vendor_a", "vendor_b")
    }
    question = shift.questions(statistics, 0)["vendor_a"]
    answered = ask(worker, instruction(sites, Action.SHIFT_ANSWER), weights, question)
    answers.append((Action.SHIFT_ANSWER, answered))
    for action, message in answers:
        assert not message.has_error(), f"{action}: {message.error.reason}"
    return answers


def test_the_ledger_lists_every_tensor_and_number_of_every_answer(sites: LocalSites) -> None:
    answers = every_answer(sites, "vendor_a")
    entries = ledger(sites.worker("vendor_a", CPU))
    expected: list[tuple[str, list[int], int]] = []
    for action, message in answers:
        # Statistics were asked for twice: for the question about shift, too.
        expected += entries_of(message) * (2 if action == Action.STATISTICS else 1)
    found = [(entry["record"], entry["shape"], entry["bytes"]) for entry in entries]
    assert found == expected
    assert {entry["site"] for entry in entries} == {"vendor_a"}
    assert all(
        entry.keys() == {"site", "round", "action", "record", "shape", "dtype", "bytes", "purpose"}
        for entry in entries
    )


def test_what_cannot_be_written_down_does_not_leave(
    sites: LocalSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = sites.worker("vendor_a", CPU)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(worker._ledger, "record", full)
    reply = ask(worker, instruction(sites, Action.CARD))
    assert reply.has_error()
    assert "No space left" in (reply.error.reason or "")


def most_alike(array: np.ndarray, slices: np.ndarray) -> float:
    """The largest correlation of any stretch of ``array`` with a slice, (n, pixels); else 0."""
    size = slices.shape[1]
    flat = array.ravel().astype(np.float64)
    if flat.size < size:
        return 0.0
    parts = np.lib.stride_tricks.sliding_window_view(flat, size)
    both = [part - part.mean(axis=1, keepdims=True) for part in (parts, slices)]
    parts, slices = (part / (np.linalg.norm(part, axis=1, keepdims=True) + 1e-12) for part in both)
    return float(np.abs(parts @ slices.T).max())


def test_no_answer_holds_an_image(sites: LocalSites) -> None:
    data = sites.open("vendor_a")
    cases = [case for members in data.splits.values() for case in members]
    slices = np.concatenate([case.image.reshape(len(case.image), -1) for case in cases])
    slices = slices.astype(np.float64)
    planted = np.concatenate([np.ones(77), 5 - 3 * slices[2], np.zeros(9)])
    assert most_alike(planted, slices) > 0.99
    large = 0
    for _, message in every_answer(sites, "vendor_a"):
        for record in message.content.values():
            value: Any
            for value in record.values():
                assert not isinstance(value, bytes)
                if isinstance(record, ArrayRecord):
                    array = value.numpy()
                else:
                    array = np.asarray(value if isinstance(value, list) else [])
                large += array.size >= slices.shape[1]
                assert most_alike(array, slices) < 0.5
    assert large


# Errors.


def test_a_failing_method_becomes_an_error_answer(
    sites: LocalSites, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError("no gradient")

    monkeypatch.setattr(Supervised, "fit", fail)
    worker = sites.worker("vendor_a", CPU)
    reply = ask(worker, instruction(sites, Action.FIT, round=1), initial(sites))
    assert reply.error.reason == "ZeroDivisionError: no gradient"
    assert [entry["purpose"] for entry in ledger(worker)] == ["error"]
    assert not ask(worker, instruction(sites, Action.CARD)).has_error()


@pytest.mark.parametrize("fault", ["missing", "misshapen", "no instruction"])
def test_a_wrong_request_becomes_an_error_answer(sites: LocalSites, fault: str) -> None:
    worker = sites.worker("vendor_a", CPU)
    arrays = initial(sites)
    name = next(iter(arrays))
    if fault == "missing":
        del arrays[name]
    if fault == "misshapen":
        arrays[name] = np.zeros(3, np.float32)
    if fault == "no instruction":
        reply = worker.handle(Message(RecordDict(), dst_node_id=5, message_type="train"))
    else:
        reply = ask(worker, instruction(sites, Action.FIT, round=1), arrays)
        assert name in (reply.error.reason or "")
    assert reply.has_error()


def test_a_model_that_was_never_trained_here_is_an_error_answer(sites: LocalSites) -> None:
    asked = instruction(sites, Action.MODEL, arm="local", round=3)
    reply = ask(sites.worker("vendor_a", CPU), asked)
    assert reply.error.reason == "no local model was ever trained here"


# State.


def fit_local(sites: LocalSites, number: int) -> Message:
    arrays = initial(sites)
    asked = instruction(sites, Action.FIT, arm="local", round=number, kept=tuple(arrays))
    return ask(sites.worker("vendor_a", CPU), asked, {})


def test_repeating_a_round_starts_from_the_round_before_and_gives_the_same_bits(
    sites: LocalSites,
) -> None:
    for number in (1, 2):
        assert not fit_local(sites, number).has_error()
    folder = sites.folder / "vendor_a" / "local"
    first, second = (folder / f"round_{number:04d}.safetensors" for number in (1, 2))
    before = first.read_bytes(), second.read_bytes()
    assert before[0] != before[1]
    assert not fit_local(sites, 2).has_error()
    assert (first.read_bytes(), second.read_bytes()) == before


def test_a_site_keeps_only_the_states_that_a_resume_can_need(sites: LocalSites) -> None:
    for number in (1, 2, 4):
        fit_local(sites, number)
    kept = sorted(path.name for path in (sites.folder / "vendor_a" / "local").iterdir())
    assert kept == ["round_0002.safetensors", "round_0004.safetensors"]


def test_a_kept_model_is_what_training_left_and_a_shared_one_is_not_stored(
    sites: LocalSites,
) -> None:
    reply = fit_local(sites, 1)
    assert arrays_of(reply) == {}
    asked = instruction(sites, Action.MODEL, arm="local", round=1)
    kept = arrays_of(ask(sites.worker("vendor_a", CPU), asked))
    shared = arrays_of(
        ask(sites.worker("vendor_a", CPU), instruction(sites, Action.FIT, round=1), initial(sites))
    )
    assert kept.keys() == shared.keys() == initial(sites).keys()
    assert not (sites.folder / "vendor_a" / "federated").exists()


def test_training_repeats_to_the_bit_and_differs_by_round(sites: LocalSites) -> None:
    def fit(number: int) -> bytes:
        asked = instruction(sites, Action.FIT, round=number)
        reply = ask(sites.worker("vendor_b", CPU), asked, initial(sites))
        return b"".join(array.tobytes() for array in arrays_of(reply).values())

    assert fit(1) == fit(1)
    assert fit(1) != fit(2)


# Sites without labels, cards, the model.


def test_a_site_without_labels_trains_nothing_and_breaks_nothing(
    local_sites: Callable[..., LocalSites],
) -> None:
    sites = local_sites(unlabelled_sites=("vendor_b",))
    worker = sites.worker("vendor_b", CPU)
    card = SiteCard.from_json(details(ask(worker, instruction(sites, Action.CARD)).content))
    assert card.splits["train"]["slices"] > 0
    assert card.splits["train"]["labelled"] == 0
    assert card.labelled == ()
    assert card.trains and not card.has_labels
    asked = instruction(sites, Action.FIT, round=1, arm="local", kept=tuple(initial(sites)))
    reply = ask(worker, asked, {})
    assert metrics_of(reply)[EXAMPLES] == 0
    assert arrays_of(reply) == {}
    assert not (worker.folder / "local").exists()
    validated = ask(worker, instruction(sites, Action.VALIDATE, round=1), initial(sites))
    assert metrics_of(validated) == {EXAMPLES: 0}


def test_a_card_counts_what_the_site_holds(sites: LocalSites) -> None:
    worker = sites.worker("vendor_c", CPU)
    card = SiteCard.from_json(details(ask(worker, instruction(sites, Action.CARD)).content))
    data = sites.open("vendor_c")
    for split, cases in data.splits.items():
        assert card.splits[split]["slices"] == sum(len(case.image) for case in cases)
        assert card.splits[split]["subjects"] == len({case.subject for case in cases})
    assert sum(counts["slices"] for counts in card.splits.values()) == 12
    assert card.vendors == ("vendor_c",)
    assert card.size == (32, 32)
    assert card.trains and card.has_labels
    assert SiteCard.from_json(json.loads(json.dumps(card.to_json()))) == card


def test_validation_dice_is_that_of_the_networks_own_grid(sites: LocalSites) -> None:
    arrays = initial(sites)
    reply = ask(sites.worker("vendor_a", CPU), instruction(sites, Action.VALIDATE, round=1), arrays)
    asked = instruction(sites, Action.VALIDATE)
    model = Model(asked.method, asked.task, CPU, 0)
    cases = sites.open("vendor_a").splits["val"]
    means = []
    for case in cases:
        scene = Scene(model.task, "vendor_a", CPU)
        predicted = model.method.predict(model.nets, case.image, scene).argmax(axis=1)
        label = mask(case)
        means.append(
            np.mean(
                [
                    2
                    * ((label == k) & (predicted == k)).sum()
                    / max(1, (label == k).sum() + (predicted == k).sum())
                    for k in range(1, model.task.outputs)
                ]
            )
        )
    assert metrics_of(reply)["val_dice"] == pytest.approx(np.mean(means))
    assert metrics_of(reply)[EXAMPLES] == len(cases)


def test_tensor_roles_tell_normalising_layers_from_the_rest() -> None:
    task = {"name": "segmentation", "parts": ["x"]}
    infos = Model({**METHOD, "norm": "batch"}, task, CPU, 0).infos()
    roles = {
        role: {n for n, i in infos.items() if i.role == role} for role in ("norm", "norm_buffer")
    }
    assert {name.rsplit(".", 1)[1] for name in roles["norm"]} == {"weight", "bias"}
    assert {name.rsplit(".", 1)[1] for name in roles["norm_buffer"]} == {
        "running_mean",
        "running_var",
        "num_batches_tracked",
    }
    counters = [info for name, info in infos.items() if name.endswith("num_batches_tracked")]
    assert {(info.shape, info.dtype) for info in counters} == {((), "int64")}
    plain = Model({**METHOD, "norm": "none"}, task, CPU, 0).infos()
    assert {info.role for info in plain.values()} == {"weight"}


def test_building_a_model_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = Model(METHOD, {"name": "segmentation", "parts": ["x"]}, CPU, seed=1).read()
    assert torch.equal(torch.rand(3), expected)
    again = Model(METHOD, {"name": "segmentation", "parts": ["x"]}, CPU, seed=1).read()
    other = Model(METHOD, {"name": "segmentation", "parts": ["x"]}, CPU, seed=2).read()
    name = max(first, key=lambda key: first[key].size)
    assert first[name].tobytes() == again[name].tobytes()
    assert first[name].tobytes() != other[name].tobytes()


def test_only_a_few_sites_stay_open_in_a_process(sites: LocalSites) -> None:
    image = sites.federation.sites[0]
    many = tuple(replace(image, name=f"s{number:02d}") for number in range(40))
    open_sites = OpenSites(replace(sites, federation=replace(sites.federation, sites=many)), CPU)
    workers = [open_sites[site.name] for site in many]
    assert open_sites["s39"] is workers[39]
    assert open_sites["s00"] is not workers[0]


STEPS = """
import resource, torch
from fedshift.client.simulation import OpenSites

OpenSites(None, torch.device("cpu"))
for step in range(4):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    activations = [torch.ones(2**20) for _ in range(12)]
    while activations:  # as a backward pass does, the last one first
        activations.pop()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc has the setting")
def test_a_worker_process_keeps_the_memory_of_a_step_for_the_next() -> None:
    """Taken anew from the system, the 12 tensors of 4 MiB would be 12,288 pages."""
    found = subprocess.run([sys.executable, "-c", STEPS], check=True, capture_output=True)
    assert int(found.stdout) < 1000


def test_every_listed_method_can_be_built() -> None:
    for name in METHODS.names():
        method = METHODS.build({"name": name})
        task = Segmentation(("x",), unlabelled=("t",))
        assert method.sharing(task).keys() == method.networks(task).keys()


# A method whose names do not fit its networks.


class Misspelt(Supervised):
    """Says what ``told`` has in the place of what is right."""

    told: ClassVar[dict[str, Any]] = {}

    def sharing(self, task: Any) -> Any:
        return self.told.get("sharing", super().sharing(task))

    def predict(self, *given: Any) -> Any:
        return self.told.get("predict", np.asarray)(super().predict(*given))

    def features(self, *given: Any) -> Any:
        return self.told.get("features", torch.as_tensor)(super().features(*given))

    def fit(self, *given: Any) -> Any:
        report = super().fit(*given)
        report.trained = self.told.get("trained", report.trained)
        return self.told.get("report", report)


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ({"trained": {"segmentor": 8}}, "FitReport.trained names segmentor, which is none of its"),
        ({"report": {"segmenter": 8}}, "method=misspelt: fit returns dict; return a FitReport of"),
        ({"sharing": {"net": "x"}}, "method=misspelt: sharing names net, which is none of its"),
        ({"sharing": {}}, "sharing does not say how the sub-network segmenter travels; add it"),
        ({"stepped": ("body",)}, "stepped names body, which is none of its networks; choose from"),
        ({}, None),
    ],
)
def test_a_method_that_names_no_network_of_its_own_is_refused(
    sites: LocalSites, monkeypatch: pytest.MonkeyPatch, told: dict[str, Any], words: str | None
) -> None:
    monkeypatch.setattr(Misspelt, "told", told)
    monkeypatch.setattr(Misspelt, "stepped", told.get("stepped", Supervised.stepped))
    monkeypatch.setitem(METHODS.registered, "misspelt", Misspelt)
    # A setting of its own each: models are kept by their settings.
    method = {**METHOD, "name": "misspelt", "lr": 0.01 + len(str(told)) / 1e4}
    asked = instruction(sites, Action.FIT, round=1, method=method)
    reply = ask(sites.worker("vendor_a", CPU), asked, initial(sites))
    assert reply.has_error() == (words is not None)
    assert words is None or words in (reply.error.reason or "")


@pytest.mark.parametrize(
    ("told", "action", "words"),
    [
        ({"predict": lambda found: found[:1]}, Action.VALIDATE, "method=misspelt: predict returns"),
        ({"predict": lambda found: found[:, :1]}, Action.SCORE, "and not an array of shape ("),
        ({"predict": lambda found: found.argmax(1)}, Action.VALIDATE, "images ndarray of shape ("),
        ({"predict": torch.from_numpy}, Action.VALIDATE, "images Tensor of shape ("),
        (
            {"features": lambda found: found[:, :, None]},
            Action.STATISTICS,
            "return (B, D), such as",
        ),
        ({"features": lambda found: found.mean(0)}, Action.STATISTICS, "return (B, D), such as"),
        ({}, Action.SCORE, None),
        ({}, Action.STATISTICS, None),
    ],
)
def test_predictions_and_features_of_another_shape_are_refused(
    sites: LocalSites,
    monkeypatch: pytest.MonkeyPatch,
    told: dict[str, Any],
    action: Action,
    words: str | None,
) -> None:
    monkeypatch.setattr(Misspelt, "told", told)
    monkeypatch.setitem(METHODS.registered, "misspelt", Misspelt)
    splits = ("val",) if action is Action.SCORE else ()
    method = {**METHOD, "name": "misspelt"}
    asked = instruction(sites, action, round=1, method=method, splits=splits)
    reply = ask(sites.worker("vendor_a", CPU), asked, initial(sites))
    assert reply.has_error() == (words is not None)
    assert words is None or words in (reply.error.reason or "")
