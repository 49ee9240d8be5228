"""Peak memory of a local step of the adversarial methods against what it must hold at once.

Run with ``python benchmarks/gan_memory.py``. For each method one site of the phantom federation
takes one adversarial step (of a round after which all its networks exist), batch and sizes as in
the method's config. Counted are the tensors that PyTorch allocates, from its own profiler, so the
figures are the same in every run; the networks are there from the beginning.

The reference is the sum of the networks (parameters and buffers), of the two moments that Adam
holds for each network the step trains, and of the activations: all tensors that autograd saved for
the backward passes of the step, each counted once. Images and labels are not counted in it.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from common import print_table, verdict
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from fedshift.client.contract.method import Budget
from fedshift.client.model import Model
from fedshift.runs.config import load
from fedshift.sites import DataSettings, load_federation, open_site

TARGET = 2.0
SITE = "vendor_a"
METHODS = {
    "unet_gan": ("method.form=stale", "data.unlabelled_sites=[vendor_b]"),
    "online_rendering": (),
    "style_transfer": (),
    "drai": (),
}


def sizes(tensors: Iterable[torch.Tensor]) -> int:
    """The bytes of ``tensors``, which share no memory."""
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def measure(method: str, overrides: tuple[str, ...], cache: Path) -> tuple[int, int]:
    """The peak of one step and its reference, in bytes."""
    config = load([f"method={method}", f"data.cache={cache}", *overrides])
    data = DataSettings.from_config(config["data"])
    federation = load_federation(config["federation"], data, config["seed"])
    site = open_site(federation.site(SITE), federation.parts, data, config["seed"])
    task = {
        "name": "segmentation",
        "parts": list(federation.parts),
        "size": list(site.size),
        "unlabelled": config["data"]["unlabelled_sites"],
    }
    model = Model(config["method"], task, torch.device("cpu"), seed=0)
    networks = sizes(model.tensors().values())
    own = {tensor.untyped_storage().data_ptr() for tensor in model.tensors().values()}
    budget = Budget(
        model.task,
        steps=1,
        seed=0,
        device=torch.device("cpu"),
        round=adversarial_round(config["method"]),
        rounds=config["rounds"],
    )
    saved: dict[tuple[int, int], int] = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr(), tensor._version] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        report = model.method.fit(site, model.nets, {}, budget)
    trained = sum(sizes(model.nets[name].parameters()) for name in report.trained)
    model.forget_gradients()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model.method.fit(site, model.nets, {}, budget)
    assert profiler.profiler is not None
    results = profiler.profiler.kineto_results
    assert results is not None
    held = peak = networks
    events = [event for event in results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak, networks + 2 * trained + sum(saved.values())


def adversarial_round(method: dict[str, int]) -> int:
    """The first round after those in which a method prepares its networks."""
    earlier = ("segmenter_rounds", "warmup_rounds", "pretraining_rounds")
    return 1 + sum(method.get(name, 0) for name in earlier)


def main() -> int:
    torch.set_num_threads(1)
    rows, worst = [], 0.0
    with tempfile.TemporaryDirectory() as scratch:
        for method, overrides in METHODS.items():
            peak, reference = measure(method, overrides, Path(scratch))
            worst = max(worst, peak / reference)
            sized = [f"{value / 2**20:.1f} MiB" for value in (peak, reference)]
            rows.append([method, *sized, f"{peak / reference:.2f}x"])
    print_table(["method", "peak", "held at once", "ratio"], rows)
    return 0 if verdict("the largest ratio", worst, TARGET) else 1


if __name__ == "__main__":
    sys.exit(main())
