"""Domain shift from summaries: every distance against an independent computation."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable

import numpy as np
import pytest
import torch
from kit.cases import mask, mask_case, segmentation
from scipy.linalg import sqrtm
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import jensenshannon
from scipy.stats import wasserstein_distance
from torch import nn

from fedshift import UserError
from fedshift.client import summaries
from fedshift.protocol import statistics as names
from fedshift.server import shift
from fedshift.sites.types import SiteData

SEED = 7
MIN = 5
CPU = torch.device("cpu")
TASK = segmentation("disc")
SPACING = (8.0, 1.0, 1.5)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


class Encoder(nn.Module):
    """A small random network whose pooled features see gain, blur and noise."""

    def __init__(self, channels: int = 8) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.first = nn.Conv2d(1, channels, 3, padding=1)
        self.inner = nn.GroupNorm(2, channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        first = torch.relu(self.first(self.norm(images)))
        second = torch.relu(self.second(self.inner(first)))
        return torch.cat([first.mean((2, 3)), second.mean((2, 3))], dim=1)


def encoder(channels: int = 8) -> Encoder:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Encoder(channels)


def site(
    name: str,
    rng: np.random.Generator,
    *,
    subjects: int = 16,
    slices: int = MIN,
    size: int = 32,
    change: Callable[[np.ndarray], np.ndarray] = lambda image: image,
    radius: float = 7.0,
    labelled: int | None = None,
    role: str = "train",
) -> SiteData:
    """A site of bright discs on textured ground; ``change`` is its scanner."""
    rows, columns = np.mgrid[:size, :size] - (size - 1) / 2
    cases = []
    for number in range(subjects):
        own = radius * rng.uniform(0.9, 1.1)
        disc = np.hypot(rows, columns) < own
        ground = gaussian_filter(rng.standard_normal((slices, size, size)), (0, 1, 1))
        image = change(0.5 * ground + disc + 0.1 * rng.standard_normal()).astype(np.float32)
        carries = np.arange(slices) < (slices if labelled is None else labelled)
        cases.append(
            mask_case(
                image,
                np.repeat(disc[None], slices, axis=0).astype(np.uint8),
                id=f"{name}-{number}",
                subject=f"{name}-{number:02d}",
                labelled=carries,
                spacing_mm=SPACING,
            )
        )
    mine, other = ("train", "test") if role == "train" else ("test", "train")
    splits = {mine: tuple(cases), "val": (), other: ()}
    return SiteData(name, role, ("disc",), splits)  # type: ignore[arg-type]


def measure(
    *sites: SiteData, net: Encoder | None = None
) -> tuple[list[dict], list[str], dict[str, dict[str, np.ndarray]]]:
    """Both exchanges, as the coordinator runs them."""
    net = net or encoder()
    common = {"seed": SEED, "device": CPU, "min_count": MIN}
    sent = {s.name: summaries.summarise(s, net, {"n": net}, TASK, **common) for s in sites}
    asked = shift.questions(sent, SEED)
    answers = {
        s.name: summaries.answer(s, net, {"n": net}, asked[s.name], **common)
        for s in sites
        if s.name in asked
    }
    rows, notes = shift.pairwise(sent, answers, SEED)
    return rows, notes, {name: {**sent[name], **answers.get(name, {})} for name in sent}


def value(rows: list[dict], metric: str, first: str = "a", second: str = "b") -> float:
    (found,) = [
        row["value"]
        for row in rows
        if (row["site_a"], row["site_b"], row["metric"]) == (first, second, metric)
    ]
    return found


def pixels(data: SiteData) -> np.ndarray:
    cases = data.splits["train"] or data.splits["test"]
    return np.concatenate([case.image for case in cases])


def features(data: SiteData, net: Encoder) -> np.ndarray:
    with torch.no_grad():
        return net.eval()(torch.from_numpy(pixels(data))).double().numpy()


def gain(image: np.ndarray) -> np.ndarray:
    return 1.6 * image + 0.4


# --- each distance against an independent computation -----------------------------------------


def test_intensity_distances_are_those_of_the_pixels_up_to_the_bins() -> None:
    rng = np.random.default_rng(1)
    a, b = site("a", rng), site("b", rng, change=gain)
    rows, _, sent = measure(a, b)
    exact = wasserstein_distance(pixels(a).ravel(), pixels(b).ravel())
    assert value(rows, "intensity_wasserstein") == pytest.approx(exact, rel=0.01)
    p, q = (sent[name][names.INTENSITY_HISTOGRAM] for name in "ab")
    assert value(rows, "intensity_js") == pytest.approx(jensenshannon(p, q, base=2), abs=1e-12)
    edges = names.intensity_edges()
    middle = (edges[1:] + edges[:-1]) / 2
    from_bins = wasserstein_distance(middle, middle, p, q)
    assert value(rows, "intensity_wasserstein") == pytest.approx(from_bins, rel=1e-9)


def test_the_histogram_counts_every_pixel_and_hides_bins_below_the_minimum_count() -> None:
    data = site("a", np.random.default_rng(2))
    net = encoder()
    counted = np.histogram(
        np.clip(pixels(data).astype(float), -8000, 8000), names.intensity_edges()
    )
    shown = summaries.summarise(data, net, {}, TASK, seed=SEED, device=CPU, min_count=MIN)
    expected = np.where(counted[0] < MIN, 0, counted[0])
    assert (counted[0][expected == 0] > 0).any(), "the case must have bins to hide"
    assert np.array_equal(shown[names.INTENSITY_HISTOGRAM], expected)


def test_raw_intensities_of_any_size_stay_in_the_histogram() -> None:
    data = site("a", np.random.default_rng(2), change=lambda image: 1e6 * image)
    shown = summaries.summarise(data, encoder(), {}, TASK, seed=SEED, device=CPU, min_count=1)
    assert shown[names.INTENSITY_HISTOGRAM].sum() == pixels(data).size


def test_the_spectrum_of_white_noise_is_flat_at_its_standard_deviation() -> None:
    rng = np.random.default_rng(3)
    data = site("a", rng, size=64, change=lambda image: 0.2 * rng.standard_normal(image.shape))
    shown = summaries.summarise(data, encoder(), {}, TASK, seed=SEED, device=CPU, min_count=MIN)
    # The log of a Rayleigh amplitude averages log(sigma) - gamma / 2; from the third frequency on,
    # which the window no longer mixes with the removed mean.
    expected = 20 * np.log10(0.2) - 10 * np.euler_gamma / np.log(10)
    assert shown[names.LOG_SPECTRUM][2:] == pytest.approx(expected, abs=0.6)


def test_a_wave_shows_at_its_own_frequency_whatever_its_direction_or_the_grid() -> None:
    for size, axis in ((32, 1), (64, 2), (48, 2)):
        wave = np.cos(2 * np.pi * 0.25 * np.arange(size))
        image = np.expand_dims(wave, 2 - axis)[None] * np.ones((MIN, size, size))
        data = site("a", np.random.default_rng(0), size=size, change=lambda _, i=image: i)
        shown = summaries.summarise(data, encoder(), {}, TASK, seed=SEED, device=CPU, min_count=MIN)
        peak = names.SPECTRUM_FREQUENCIES[np.argmax(shown[names.LOG_SPECTRUM])]
        assert peak == pytest.approx(0.25, abs=1 / 64)


def test_feature_frechet_equals_the_matrix_square_root_formula() -> None:
    rng = np.random.default_rng(4)
    a, b = site("a", rng), site("b", rng, change=gain)
    net = encoder()
    rows, _, _ = measure(a, b, net=net)
    x, y = features(a, net), features(b, net)
    c1, c2 = np.cov(x.T, ddof=0), np.cov(y.T, ddof=0)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(c1 + c2 - 2 * sqrtm(c1 @ c2).real)
    assert value(rows, "feature_frechet") == pytest.approx(expected, rel=1e-6)


def test_mmd_approximates_the_exact_average_of_gaussian_kernels() -> None:
    rng = np.random.default_rng(5)
    a, b = site("a", rng), site("b", rng, change=lambda image: 1.15 * image)
    net = encoder()
    rows, _, _ = measure(a, b, net=net)
    x, y = features(a, net), features(b, net)
    both = np.concatenate([x, y])
    pooled = ((both - both.mean(0)) ** 2).sum(1).mean()
    squared = ((both[:, None] - both[None]) ** 2).sum(-1)
    kernel = np.mean(
        [np.exp(-squared / (2 * f**2 * 2 * pooled)) for f in names.BANDWIDTH_FACTORS], axis=0
    )
    n = len(x)
    exact = kernel[:n, :n].mean() + kernel[n:, n:].mean() - 2 * kernel[:n, n:].mean()
    assert value(rows, "mmd") == pytest.approx(np.sqrt(exact), rel=0.1)


@pytest.mark.parametrize("lie", ["wide", "far", "still"])
def test_no_summary_moves_the_kernel_widths_of_the_other_sites_by_more_than_a_factor(
    lie: str,
) -> None:
    rng = np.random.default_rng(5)
    changes = {"a": 1.0, "b": 1.15, "c": 1.3, "d": 0.9}
    honest = [
        site(name, rng, change=lambda x, gain=gain: gain * x) for name, gain in changes.items()
    ]
    _, _, sent = measure(*honest)
    assert shift.odd_scales(sent) == {}

    def widths(statistics: shift.Statistics) -> np.ndarray:
        return shift.questions(statistics, SEED)["b"][names.BANDWIDTHS]

    def lying(times: float) -> dict[str, dict[str, np.ndarray]]:
        told = dict(sent["a"])
        told[names.FEATURE_COUNT] = np.array([1e9])
        if lie == "far":
            spread = np.sqrt(np.trace(told[names.FEATURE_COVARIANCE]))
            told[names.FEATURE_MEAN] = told[names.FEATURE_MEAN] + times * spread / 4
        else:
            square = times**2 if lie == "wide" else times**-2
            told[names.FEATURE_COVARIANCE] = square * told[names.FEATURE_COVARIANCE]
        return {**sent, "a": told}

    without = widths({name: sent[name] for name in "bcd"})
    for times in (100.0, 1e12):
        told = lying(times)
        assert list(shift.odd_scales(told)) == ["a"]
        np.testing.assert_array_equal(widths(told), without)
    for times in np.geomspace(1, 100, 30):
        ratio = widths(lying(times)) / without
        assert (ratio <= 4.5).all() and (ratio >= 1 / 4.5).all()


def test_mmd_p_is_the_share_of_all_relabellings_that_reach_the_truth() -> None:
    rng = np.random.default_rng(6)
    first, second = rng.standard_normal((4, 3)) + 0.4, rng.standard_normal((5, 3))
    blocks = np.concatenate([first, second])
    truth = np.linalg.norm(first.mean(0) - second.mean(0))
    reached = [
        np.linalg.norm(blocks[list(c)].mean(0) - np.delete(blocks, c, axis=0).mean(0))
        >= truth - 1e-12
        for c in itertools.combinations(range(9), 4)
    ]
    _, p_value = shift._mmd(first, second, SEED)
    assert 0.02 < np.mean(reached) < 0.98
    assert p_value == pytest.approx(np.mean(reached), abs=0.05)


def test_mmd_p_is_uniform_when_both_sites_draw_from_one_distribution() -> None:
    rng = np.random.default_rng(7)
    p_values = [
        shift._mmd(rng.standard_normal((8, 4)), rng.standard_normal((6, 4)), seed)[1]
        for seed in range(200)
    ]
    for level in (0.1, 0.25, 0.5, 0.75):
        assert np.mean(np.array(p_values) <= level) == pytest.approx(level, abs=0.1)


def test_norm_kl_is_the_gaussians_divergence_averaged_over_channels() -> None:
    rng = np.random.default_rng(8)
    a, b = site("a", rng), site("b", rng, change=gain)
    net = encoder()
    rows, _, sent = measure(a, b, net=net)

    def inputs(data: SiteData) -> np.ndarray:
        with torch.no_grad():
            images = net.eval().norm(torch.from_numpy(pixels(data)))
            inner = torch.relu(net.first(images)).transpose(0, 1).flatten(1).double().numpy()
        return np.concatenate([pixels(data).reshape(1, -1).astype(float), inner])

    x, y = inputs(a), inputs(b)
    assert sent["a"][names.NORM_MEAN] == pytest.approx(x.mean(1), rel=1e-6)
    assert sent["a"][names.NORM_VARIANCE] == pytest.approx(x.var(1), rel=1e-6)
    kl = []
    for u, v in zip(x, y, strict=True):
        m1, s1, m2, s2 = u.mean(), u.var() + 1e-5, v.mean(), v.var() + 1e-5
        forward = 0.5 * (np.log(s2 / s1) + (s1 + (m1 - m2) ** 2) / s2 - 1)
        backward = 0.5 * (np.log(s1 / s2) + (s2 + (m1 - m2) ** 2) / s1 - 1)
        kl.append(forward + backward)
    assert value(rows, "norm_kl") == pytest.approx(np.mean(kl), rel=1e-6)


def test_label_tv_compares_the_share_of_each_class_in_the_labelled_slices_only() -> None:
    rng = np.random.default_rng(9)
    a, b = site("a", rng, radius=6, labelled=2), site("b", rng, radius=9)
    rows, _, sent = measure(a, b)
    share = {}
    for data in (a, b):
        labels = np.concatenate([mask(c)[c.labelled] for c in data.splits["train"]])
        share[data.name] = labels.mean()
        expected = np.array([(labels == 0).sum(), (labels == 1).sum()]) * 8 * 1 * 1.5 / 1000
        assert sent[data.name][names.LABELS] == pytest.approx(expected)
    assert value(rows, "label_tv") == pytest.approx(share["b"] - share["a"])
    # Of all that the site with more has labelled, whatever the background.
    assert value(rows, "label_shift") == pytest.approx(1.0 - share["a"] / share["b"])


def test_the_domain_classifier_is_the_discriminant_of_the_training_blocks_images() -> None:
    rng = np.random.default_rng(10)
    a, b = site("a", rng), site("b", rng, change=lambda image: 1.1 * image)
    net = encoder(channels=4)  # 8 features: no projection between them and the classifier
    rows, _, sent = measure(a, b, net=net)
    x, y = (features(data, net).reshape(16, MIN, -1) for data in (a, b))
    fit = [v[::2].reshape(-1, v.shape[-1]) for v in (x, y)]
    held = [v[1::2].reshape(-1, v.shape[-1]) for v in (x, y)]
    within = sum((v - v.mean(0)).T @ (v - v.mean(0)) for v in fit) / sum(map(len, fit))
    within += 1e-3 * np.trace(within) / len(within) * np.eye(len(within))
    direction = np.linalg.solve(within, fit[0].mean(0) - fit[1].mean(0))
    threshold = direction @ (fit[0].mean(0) + fit[1].mean(0)) / 2
    error = (
        (held[0] @ direction <= threshold).mean() + (held[1] @ direction > threshold).mean()
    ) / 2
    assert 0 < error < 0.5, "the case must be neither trivial nor hopeless"
    assert value(rows, "proxy_a_distance") == pytest.approx(2 * (1 - 2 * error), abs=1e-12)
    assert sent["a"][names.DOMAIN_COUNTS].shape == (8, 1 + shift.DOMAIN_RELABELLINGS)


# --- behaviour over whole federations ---------------------------------------------------------


def test_two_halves_of_one_distribution_are_within_the_null() -> None:
    rng = np.random.default_rng(11)
    rows, _, _ = measure(site("a", rng), site("b", rng))
    assert value(rows, "proxy_a_distance") <= value(rows, "proxy_a_null95") < 2
    assert value(rows, "mmd_p") > 0.05


def test_far_sites_saturate_and_stand_out_from_the_null() -> None:
    rng = np.random.default_rng(12)
    rows, _, _ = measure(site("a", rng), site("b", rng, change=gain))
    assert value(rows, "proxy_a_distance") > 1.9
    assert value(rows, "proxy_a_null95") < 1.9
    assert value(rows, "mmd_p") == pytest.approx(0.001)


def test_identical_sites_are_at_distance_zero_in_every_metric() -> None:
    rows, notes, _ = measure(*(site(name, np.random.default_rng(13)) for name in "ab"))
    assert notes == []
    assert [row["metric"] for row in rows] == list(shift.METRICS)
    for row in rows:
        if row["metric"] == "mmd_p":
            assert row["value"] == 1.0
        elif row["metric"] != "proxy_a_null95":
            assert row["value"] == pytest.approx(0.0, abs=1e-9), row


@pytest.mark.parametrize(
    ("scanner", "grow"),
    [
        (lambda image, s: (1 + s) * image, ("intensity_wasserstein", "intensity_js", "norm_kl")),
        (
            lambda image, s: gaussian_filter(image, (0, s, s)),
            ("spectrum_distance", "feature_frechet", "mmd"),
        ),
        (
            lambda image, s: image + s * np.random.default_rng(0).standard_normal(image.shape),
            ("spectrum_distance", "intensity_js", "feature_frechet", "mmd", "norm_kl"),
        ),
    ],
    ids=["gain", "blur", "noise"],
)
def test_distances_grow_with_the_planted_shift(scanner: Callable, grow: tuple[str, ...]) -> None:
    sites = [site("a", np.random.default_rng(14))]
    for name, strength in zip("bcd", (0.3, 0.6, 1.2), strict=True):
        sites.append(
            site(name, np.random.default_rng(14), change=lambda i, s=strength: scanner(i, s))
        )
    rows, _, _ = measure(*sites)
    for metric in grow:
        near, middle, far = (value(rows, metric, "a", other) for other in "bcd")
        assert 0 < near < middle < far, metric
    assert value(rows, "label_tv", "a", "d") == 0.0


def test_moments_pooled_over_two_parts_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(15)
    parts = [rng.standard_normal((n, 5)) * s + s for n, s in ((7, 1.0), (31, 3.0))]
    whole = np.concatenate(parts)
    count, mean, covariance = shift.pool_moments(
        np.array([7.0, 31.0]),
        np.stack([part.mean(0) for part in parts]),
        np.stack([np.cov(part.T, ddof=0) for part in parts]),
    )
    assert count == 38
    assert mean == pytest.approx(whole.mean(0))
    assert covariance == pytest.approx(np.cov(whole.T, ddof=0))


def test_every_pair_of_many_sites_appears_once_and_matches_the_pair_alone() -> None:
    rng = np.random.default_rng(16)
    sites = [
        site(name, rng, subjects=4 + index, change=lambda image, i=index: (1 + 0.2 * i) * image)
        for index, name in enumerate("dbca")
    ]
    rows, _, _ = measure(*sites)
    pairs = list(itertools.combinations("abcd", 2))
    assert [(r["site_a"], r["site_b"], r["metric"]) for r in rows] == [
        (*pair, metric) for pair in pairs for metric in shift.METRICS
    ]
    alone, _, _ = measure(sites[2], sites[1])  # c and b
    for metric in set(shift.METRICS) - {"mmd", "mmd_p"}:  # whose bandwidths come from all sites
        assert value(rows, metric, "b", "c") == pytest.approx(value(alone, metric, "b", "c"))


def test_the_same_seed_gives_the_same_bits() -> None:
    first, second = (
        measure(site("a", np.random.default_rng(17)), site("b", np.random.default_rng(18)))
        for _ in range(2)
    )
    assert json.dumps(first[0]) == json.dumps(second[0])
    for name, array in first[2]["a"].items():
        assert np.array_equal(array, second[2]["a"][name])


# --- what leaves a site -----------------------------------------------------------------------


def test_what_leaves_does_not_grow_with_the_number_of_images() -> None:
    net = encoder(channels=40)  # 80 features, projected to 64
    sizes = []
    for subjects in (16, 48):
        rng = np.random.default_rng(19)
        _, _, sent = measure(site("a", rng, subjects=subjects), site("b", rng), net=net)
        assert sent["a"][names.FEATURE_MEAN].shape == (names.FEATURE_DIM,)
        assert all(array.dtype == np.float64 for array in sent["a"].values())
        assert min(sent["a"][names.BLOCK_COUNTS]) >= MIN
        assert all(array.ndim >= 1 for array in sent["a"].values())
        sizes.append(sum(array.size for array in sent["a"].values()))
    assert sizes[0] == sizes[1]
    assert sizes[0] < 20_000 < pixels(site("a", rng)).size


def test_a_projection_keeps_every_length_within_its_span_and_is_shared_by_all_sites() -> None:
    values = np.random.default_rng(20).standard_normal((200, 40))
    small = summaries._project(values, 16, SEED)
    assert small.shape == (200, 16)
    assert (small**2).sum() / (values**2).sum() == pytest.approx(16 / 40, abs=0.05)
    basis = summaries._project(np.eye(40), 16, SEED)
    assert basis.T @ basis == pytest.approx(np.eye(16), abs=1e-12)
    assert np.array_equal(summaries._project(values, 40, SEED), values)


def test_a_site_below_the_minimum_count_sends_nothing_and_is_named() -> None:
    rng = np.random.default_rng(21)
    few = site("few", rng, subjects=1, slices=MIN - 1)
    rows, notes, sent = measure(site("a", rng), site("b", rng), few)
    assert sent["few"] == {}
    assert {(row["site_a"], row["site_b"]) for row in rows} == {("a", "b")}
    assert len(notes) == 1
    assert notes[0].startswith(", ".join(shift.METRICS))
    assert "few" in notes[0]


def test_a_site_without_labels_lacks_label_shift_only_and_that_is_said() -> None:
    rng = np.random.default_rng(22)
    rows, notes, _ = measure(site("a", rng), site("b", rng, labelled=0))
    assert {row["metric"] for row in rows} == set(shift.METRICS) - {"label_tv", "label_shift"}
    assert len(notes) == 1
    assert notes[0].startswith("label_tv, label_shift: left out for b,")


def test_a_network_without_normalisation_lacks_norm_kl_only() -> None:
    rng = np.random.default_rng(23)
    net = encoder()
    net.norm, net.inner = nn.Identity(), nn.Identity()
    rows, notes, _ = measure(site("a", rng), site("b", rng), net=net)
    assert {row["metric"] for row in rows} == set(shift.METRICS) - {"norm_kl"}
    assert notes[0].startswith("norm_kl: left out for a, b,")


def test_an_unseen_site_is_summarised_from_its_test_split() -> None:
    trained = site("a", np.random.default_rng(24))
    unseen = site("a", np.random.default_rng(24), role="unseen")
    shown = [
        summaries.summarise(s, encoder(), {}, TASK, seed=SEED, device=CPU, min_count=MIN)
        for s in (trained, unseen)
    ]
    assert shown[0].keys() == shown[1].keys()
    assert all(np.array_equal(shown[0][name], shown[1][name]) for name in shown[0])


def test_blocks_are_whole_subjects_where_there_are_enough_and_else_runs_of_slices() -> None:
    rng = np.random.default_rng(25)

    def starts(subjects: int, slices: int) -> list[int]:
        data = site("a", rng, subjects=subjects, slices=slices, size=8)
        return summaries._starts(summaries._slices(data), MIN, 1)

    assert starts(4, 12) == [0, 12, 24, 36]
    assert starts(9, 3) == [0, 6, 12, 18]  # two subjects make a block; the last takes three
    assert starts(1, 23) == [0, 5, 11, 17]
    assert starts(1, MIN) == [0]
    assert len(starts(40, 5)) == 40 // 3  # at most 16 blocks of at least 13 slices: 3 subjects each


def test_a_site_of_one_block_has_no_held_out_images_and_no_proxy_distance() -> None:
    rng = np.random.default_rng(26)
    rows, notes, _ = measure(site("a", rng), site("b", rng, subjects=1))
    assert value(rows, "mmd_p") > 1 / 20  # one block among seventeen can never be significant
    assert not any(row["metric"].startswith("proxy_a") for row in rows)
    assert any(
        note.startswith("proxy_a_distance, proxy_a_null95: left out for b,") for note in notes
    ), "the other site was not asked, as there is nobody to tell it from"


def test_a_site_alone_lacks_nothing() -> None:
    rows, notes, _ = measure(site("a", np.random.default_rng(24)))
    assert rows == notes == []


def test_summarising_changes_neither_the_network_nor_torchs_generator() -> None:
    net = encoder()
    net.train()
    net.inner.eval()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    state = torch.get_rng_state()
    measure(*(site(name, np.random.default_rng(27)) for name in "ab"), net=net)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert net.training and net.norm.training and not net.inner.training
    assert not net.norm._forward_pre_hooks
    assert torch.equal(state, torch.get_rng_state())


def test_features_that_are_not_finite_name_the_site() -> None:
    data = site("clinic", np.random.default_rng(28))
    with pytest.raises(UserError, match="site clinic are not finite"):
        summaries.summarise(
            data,
            lambda images: images.mean((2, 3)) * float("nan"),
            {},
            TASK,
            seed=SEED,
            device=CPU,
            min_count=MIN,
        )
