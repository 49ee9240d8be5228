"""The objective of DRAI term by term against independent computations: hand numbers, numpy,
torch.distributions and gradients."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import linalg
from torch import nn
from torch.nn import functional as F

from fedshift import UserError
from fedshift.client.methods.drai import content_preserving, dual_inference
from fedshift.client.methods.drai.conditions import condition
from fedshift.client.methods.drai.disentangling import cross_image_consistency
from fedshift.client.methods.drai.dual_inference import MARGIN, Batch
from fedshift.client.methods.drai.networks import (
    CodePredictor,
    ConditionEncoder,
    ImageEncoder,
    ImageGenerator,
    PairDiscriminator,
)
from fedshift.client.methods.drai.reversal import reverse_gradient
from fedshift.client.networks.gaussian import DiagonalGaussian
from fedshift.protocol.frechet import frechet_distances, pool_moments

STYLE, CONTENT, CONDITION = 3, 4, 5


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def small_networks(seed: int = 0) -> dict[str, nn.Module]:
    shape = ((16, 16), 4, 2)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            "style_encoder": ImageEncoder(1, *shape, STYLE),
            "content_encoder": ImageEncoder(1, *shape, CONTENT),
            "condition_encoder": ConditionEncoder(CONDITION, 8, CONTENT),
            "generator": ImageGenerator(1, *shape, STYLE, CONTENT),
            "style_from_content": CodePredictor(CONTENT, 8, STYLE),
            "content_from_style": CodePredictor(STYLE, 8, CONTENT),
            "judge_image": PairDiscriminator(1, *shape),
            "judge_condition": PairDiscriminator(1, *shape, CONDITION),
            "judge_style": PairDiscriminator(1, *shape, STYLE),
            "judge_content": PairDiscriminator(1, *shape, CONTENT),
        }


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(known: tuple[int, ...] = (0, 1, 2, 3)) -> Batch:
    """Four images and their noisy copies; conditions 0, 0, 1, 2 of those ``known``."""
    images = torch.rand(4, 1, 16, 16, generator=generator(5))
    conditions = torch.eye(CONDITION)[[0, 0, 1, 2]]
    unknown = [row for row in range(4) if row not in known]
    conditions[unknown] = torch.nan
    copies = images + 0.1 * torch.randn(images.shape, generator=generator(6))
    return Batch(images, conditions, torch.tensor(known, dtype=torch.long)).with_copy(copies)


def square(values: torch.Tensor) -> float:
    return float((values.detach() ** 2).mean())


# --- gradient reversal ---------------------------------------------------------------------------


def test_reversal_is_the_identity_forwards_and_minus_the_weight_backwards() -> None:
    values = torch.tensor([1.0, -2.0, 3.0], requires_grad=True)
    passed = reverse_gradient(values, 0.7)
    assert torch.equal(passed, values)
    (passed * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([-0.7, -7.0, -70.0]))


def test_information_loss_teaches_the_predictors_and_reverses_what_the_codes_learn() -> None:
    nets = small_networks()
    f_z, f_c = nets["style_from_content"], nets["content_from_style"]
    styles = torch.randn(6, STYLE, generator=generator(1), requires_grad=True)
    contents = torch.randn(6, CONTENT, generator=generator(2), requires_grad=True)
    loss = dual_inference.information_loss(styles, contents, f_z, f_c)
    plain_z = (styles.detach() - f_z(contents)).abs().mean()
    plain_c = (contents.detach() - f_c(styles)).abs().mean()
    assert loss.item() == pytest.approx((plain_z + plain_c).item(), rel=1e-6)
    predictors = [*f_z.parameters(), *f_c.parameters()]
    inputs = [styles, contents]
    found = torch.autograd.grad(loss, [*predictors, *inputs])
    plain = torch.autograd.grad(plain_z + plain_c, [*predictors, *inputs])
    for mine, other in zip(found[:-2], plain[:-2], strict=True):
        torch.testing.assert_close(mine, other)
    for mine, other in zip(found[-2:], plain[-2:], strict=True):
        torch.testing.assert_close(mine, -other)
        assert other.abs().max() > 0


# --- attract and repel ---------------------------------------------------------------------------


def test_self_supervised_loss_of_hand_numbers() -> None:
    contents = torch.tensor([[0.0, 1.0], [2.0, 2.0], [0.5, 0.5], [2.0, 1.0]])
    # Content differences: (0.5 + 0.5) / 2 and (0 + 1) / 2.
    styles = torch.tensor([[0.0], [0.0], [0.25], [5.0]])
    # Style differences 0.25, and 5, which counts as the margin.
    found = dual_inference.self_supervised_loss(styles, contents).item()
    assert found == pytest.approx((0.5 - 0.25 + 0.5 - MARGIN) / 2, rel=1e-6)


def test_self_supervised_loss_pulls_contents_together_and_pushes_styles_apart() -> None:
    contents = torch.tensor([[0.0], [1.0]], requires_grad=True)
    styles = torch.tensor([[0.0], [0.5]], requires_grad=True)
    dual_inference.self_supervised_loss(styles, contents).backward()
    assert contents.grad is not None and styles.grad is not None
    # A descent step moves against these: the contents towards each other, the styles apart.
    assert contents.grad.flatten().tolist() == [-1.0, 1.0]
    assert styles.grad.flatten().tolist() == [1.0, -1.0]
    far = torch.tensor([[0.0], [MARGIN + 0.1]], requires_grad=True)
    dual_inference.self_supervised_loss(far, contents.detach()).backward()
    assert far.grad is not None and not far.grad.any()


def test_margin_is_how_far_two_draws_of_the_prior_are_apart() -> None:
    draws = torch.randn(2, 400_000, generator=generator())
    assert (draws[0] - draws[1]).abs().mean().item() == pytest.approx(MARGIN, rel=5e-3)


# --- the adversarial terms -----------------------------------------------------------------------


def test_judges_loss_is_the_papers_sum_in_least_squares() -> None:
    nets = small_networks()
    game = dual_inference.play(batch(), nets, generator()).detached()
    x, made, t = game.batch.images, game.generated, game.batch.conditions
    d_x, d_t = nets["judge_image"], nets["judge_condition"]
    d_z, d_c = nets["judge_style"], nets["judge_content"]
    # Rows 0 and 1 share a condition, as do their copies 4 and 5: the next other one is row 2.
    wrong = x[[2, 2, 3, 4, 6, 6, 7, 0]]
    expected = 0.5 * (square(d_x(x) - 1) + square(d_x(made)))
    expected += 0.5 * (square(d_z(x, game.styles) - 1) + square(d_z(made, game.prior_styles)))
    expected += 0.5 * (square(d_c(x, game.contents) - 1) + square(d_c(made, game.prior_contents)))
    expected += 0.5 * square(d_t(x, t) - 1)
    expected += 0.25 * (square(d_t(wrong, t)) + square(d_t(made, t)))
    assert dual_inference.judges_loss(game, nets).item() == pytest.approx(expected, rel=1e-5)


def test_players_losses_are_the_papers_terms() -> None:
    nets = small_networks()
    game = dual_inference.play(batch(), nets, generator())
    found = dual_inference.players_losses(
        game, nets, ("information", "self", "code_cycle"), cycle=3.0, kl=0.5
    )
    x, made, t = game.batch.images, game.generated, game.batch.conditions
    d_z, d_c = nets["judge_style"], nets["judge_content"]
    assert found["realism"].item() == pytest.approx(
        0.5 * square(nets["judge_image"](made) - 1), rel=1e-5
    )
    assert found["condition"].item() == pytest.approx(
        0.25 * square(nets["judge_condition"](made, t) - 1), rel=1e-5
    )
    inference = square(d_z(made, game.prior_styles) - 1) + square(d_z(x, game.styles))
    inference += square(d_c(made, game.prior_contents) - 1) + square(d_c(x, game.contents))
    assert found["inference"].item() == pytest.approx(0.5 * inference, rel=1e-5)
    again = nets["generator"](game.styles, game.contents)
    assert found["image_cycle"].item() == pytest.approx(3 * (again - x).abs().mean().item())
    codes = (nets["style_encoder"](made).mean - game.prior_styles).abs().mean()
    codes = codes + (nets["content_encoder"](made).mean - game.prior_contents).abs().mean()
    assert found["code_cycle"].item() == pytest.approx(codes.item(), rel=1e-6)
    kl = 0.0
    for q in (game.style, game.content, game.condition):
        assert q is not None
        normal = torch.distributions.Normal(q.mean, (0.5 * q.log_variance).exp())
        standard = torch.distributions.Normal(0.0, 1.0)
        kl += torch.distributions.kl_divergence(normal, standard).mean().item()
    assert found["kl"].item() == pytest.approx(0.5 * kl, rel=1e-5)
    assert set(found) == {
        "realism", "condition", "inference", "image_cycle", "kl",
        "code_cycle", "information", "self",
    }  # fmt: skip


def test_dai_has_none_of_the_constraints() -> None:
    nets = small_networks()
    game = dual_inference.play(batch(), nets, generator())
    found = dual_inference.players_losses(game, nets, (), cycle=1.0, kl=1.0)
    assert set(found) == {"realism", "condition", "inference", "image_cycle", "kl"}


def test_judges_and_players_learn_from_their_own_losses_only() -> None:
    nets = small_networks()
    game = dual_inference.play(batch(), nets, generator())
    dual_inference.judges_loss(game.detached(), nets).backward()
    for name, net in nets.items():
        reached = any(p.grad is not None for p in net.parameters())
        assert reached == name.startswith("judge"), name


def test_slices_without_condition_train_no_condition_and_take_contents_from_the_prior() -> None:
    nets = small_networks()
    some = dual_inference.play(batch(known=(1, 3)), nets, generator())
    none = dual_inference.play(batch(known=()), nets, generator())
    assert some.batch.known.tolist() == [1, 3, 5, 7]
    # The same draws: only the known rows are replaced by q(c|t).
    same = (some.prior_contents == none.prior_contents).all(dim=1)
    assert same.tolist() == [True, False] * 4
    losses = dual_inference.players_losses(none, nets, (), cycle=1.0, kl=1.0)
    assert "condition" not in losses
    total = torch.stack([*losses.values()]).sum()
    total = total + dual_inference.judges_loss(none.detached(), nets)
    total.backward()
    for name in ("condition_encoder", "judge_condition"):
        assert all(p.grad is None for p in nets[name].parameters())
    assert torch.isfinite(dual_inference.judges_loss(some.detached(), nets))


def test_wrong_conditions_are_the_next_that_differ_and_none_where_all_are_alike() -> None:
    rows, partners = dual_inference.mismatched(torch.eye(3)[[0, 0, 1, 0]])
    assert (rows.tolist(), partners.tolist()) == ([0, 1, 2, 3], [2, 2, 3, 2])
    rows, partners = dual_inference.mismatched(torch.ones(3, 2))
    assert (len(rows), len(partners)) == (0, 0)


def test_batch_of_one_condition_still_has_a_finite_loss() -> None:
    nets = small_networks()
    alike = batch()
    alike = Batch(alike.images, torch.ones_like(alike.conditions), alike.known)
    game = dual_inference.play(alike, nets, generator()).detached()
    d_t, t = nets["judge_condition"], alike.conditions
    without = replace(game, batch=Batch(alike.images, t, alike.known[:0]))
    difference = dual_inference.judges_loss(game, nets) - dual_inference.judges_loss(without, nets)
    expected = 0.5 * (square(d_t(alike.images, t) - 1) + square(d_t(game.generated, t)))
    assert difference.item() == pytest.approx(expected, rel=1e-4)


# --- networks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (16, 32)])
def test_networks_have_the_stated_shapes_and_share_nothing(size: tuple[int, int]) -> None:
    images = torch.rand(2, 1, *size)
    q = ImageEncoder(1, size, 4, 2, STYLE)(images)
    assert isinstance(q, DiagonalGaussian)
    assert q.mean.shape == q.log_variance.shape == (2, STYLE)
    made = ImageGenerator(1, size, 4, 3, STYLE, CONTENT)(torch.rand(2, STYLE), torch.rand(2, 4))
    assert made.shape == images.shape
    assert PairDiscriminator(1, size, 4, 2)(images).shape == (2,)
    assert PairDiscriminator(1, size, 4, 2, 7)(images, torch.rand(2, 7)).shape == (2,)


def test_discriminator_of_pairs_sees_the_code() -> None:
    judge = PairDiscriminator(1, (16, 16), 4, 2, 7)
    images = torch.rand(2, 1, 16, 16)
    assert not torch.allclose(judge(images, torch.zeros(2, 7)), judge(images, torch.ones(2, 7)))


# --- content-preserving changes ------------------------------------------------------------------


def test_papers_changes_are_the_three_rotations_and_two_mirrorings_equally_often() -> None:
    image = torch.arange(16.0).view(1, 1, 4, 4)
    changed = content_preserving.change(image.repeat(500, 1, 1, 1), "paper", generator())
    grid = image[0, 0].numpy()
    wanted = [np.rot90(grid, k) for k in (1, 2, 3)] + [grid[::-1], grid[:, ::-1]]
    counts = [int((changed[:, 0].numpy() == want).all(axis=(1, 2)).sum()) for want in wanted]
    assert sum(counts) == 500
    assert min(counts) > 60


def test_vendor_changes_keep_edges_where_they_are_and_change_each_image_in_its_own_way() -> None:
    image = torch.zeros(1, 1, 32, 32)
    image[..., 16:] = 1.0
    changed = content_preserving.change(image.repeat(20, 1, 1, 1), "vendor", generator())
    steps = changed.diff(dim=3).mean(dim=(1, 2))
    assert (steps.argmax(dim=1) - 15).abs().max() <= 1
    assert changed.flatten(1).std(dim=0).mean() > 0.05
    again = content_preserving.change(image.repeat(20, 1, 1, 1), "vendor", generator())
    assert torch.equal(changed, again)


def test_images_that_are_not_square_cannot_be_turned() -> None:
    with pytest.raises(UserError, match=r"16 x 32 pixels: set method\.transform=vendor"):
        content_preserving.change(torch.zeros(1, 1, 16, 32), "paper", generator())


# --- the condition -------------------------------------------------------------------------------


def test_condition_says_which_structures_are_there_and_how_large() -> None:
    label = np.zeros((10, 10), np.uint8)
    label[:2, :2] = 1  # a share of 0.04, so a size of 0.2: the third quarter of 0 to 0.4
    label[4:9, 4:9] = 3  # a size of 0.5: beyond the last
    found = condition(label, structures=3, bins=4, largest=0.4)
    assert found.dtype == np.float32
    assert found.reshape(3, 5).tolist() == [[0, 0, 0, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]


# --- metrics -------------------------------------------------------------------------------------


def test_cifc_of_a_perfect_encoder_and_generator_is_zero() -> None:
    def encode(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images[:, :2], images[:, 2:]

    def decode(styles: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
        return torch.cat([styles, contents], dim=1)

    first, second = encode(torch.rand(5, 6)), encode(torch.rand(5, 6))
    found = cross_image_consistency(encode, decode, first, second)
    assert found.error == pytest.approx(0, abs=1e-7)
    assert found.spread > 0 and found.relative == pytest.approx(0, abs=1e-6)


def test_cifc_follows_the_two_swaps() -> None:
    """Written out for a generator that leaks content into style: hand numbers."""

    def encode(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return images[:, :1], images[:, 1:]

    def decode(styles: torch.Tensor, contents: torch.Tensor) -> torch.Tensor:
        return torch.cat([styles + 0.5 * contents, contents], dim=1)

    one = torch.ones(1, 1)
    # a = (z 0, c 1), b = (z 0, c 3). I_ab = (0.5, 1), I_ba = (1.5, 3).
    # I_aa = decode(z of ba, c of ab) = (2, 1), I_bb = decode(z of ab, c of ba) = (2, 3).
    found = cross_image_consistency(encode, decode, (0 * one, one), (0 * one, 3 * one))
    assert found.error == pytest.approx(2 + 0 + 2 + 0)
    assert found.spread == pytest.approx(2 * (0 + 2))
    assert found.relative == pytest.approx(1.0)


def test_collapsed_encoder_has_no_error_and_no_spread() -> None:
    def encode(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(len(images), 2), torch.zeros(len(images), 2)

    codes = encode(torch.zeros(3, 1))
    found = cross_image_consistency(encode, lambda z, c: z + c, codes, codes)
    assert (found.error, found.spread) == (0.0, 0.0)
    assert np.isnan(found.relative)


def test_frechet_of_pooled_moments_is_that_of_the_samples_put_together() -> None:
    rng = np.random.default_rng(0)
    sites = [rng.normal(k, 1 + k, (40 + 30 * k, 3)) for k in range(2)]
    other = rng.normal(1, 2, (90, 3)) @ rng.normal(size=(3, 3))

    def moments(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return values.mean(axis=0), np.cov(values, rowvar=False, bias=True)

    means, covariances = zip(*map(moments, sites), strict=True)
    counts = np.array([float(len(values)) for values in sites])
    total, mean, covariance = pool_moments(counts, np.stack(means), np.stack(covariances))
    wanted_mean, wanted_covariance = moments(np.concatenate(sites))
    assert total == 110
    np.testing.assert_allclose(mean, wanted_mean)
    np.testing.assert_allclose(covariance, wanted_covariance)
    other_mean, other_covariance = moments(other)
    (found,) = frechet_distances(mean, covariance, other_mean[None], other_covariance[None])
    root = linalg.sqrtm(covariance @ other_covariance).real
    expected = ((mean - other_mean) ** 2).sum()
    expected += np.trace(covariance + other_covariance - 2 * root)
    assert found == pytest.approx(expected, rel=1e-8)


def test_log_variance_is_bounded() -> None:
    encoder = ImageEncoder(1, (16, 16), 4, 2, STYLE)
    q = encoder(1e6 * torch.ones(1, 1, 16, 16))
    assert torch.isfinite(q.sample(generator())).all()
    assert F.relu(q.log_variance.abs() - 10).max() == 0
