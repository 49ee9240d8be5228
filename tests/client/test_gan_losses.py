"""Adversarial losses against hand-computed numbers, and the signs of a failing game."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from fedshift import UserError
from fedshift.client.gan import (
    discriminator_loss,
    fake_loss,
    generator_loss,
    gradient_penalty,
    is_collapsed,
    real_loss,
)
from fedshift.client.methods.unet_gan.patch_discriminator import PatchDiscriminator
from fedshift.client.methods.unet_gan.translator import Translator

REAL = torch.tensor([[2.0], [-1.0]])
FAKE = torch.tensor([[0.5], [-3.0]])


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value))


def test_bce_is_the_logarithmic_game() -> None:
    real = (-math.log(sigmoid(2)) - math.log(sigmoid(-1))) / 2
    fake = (-math.log(1 - sigmoid(0.5)) - math.log(1 - sigmoid(-3))) / 2
    assert discriminator_loss("bce", REAL, FAKE).item() == pytest.approx(real + fake, rel=1e-6)
    fooled = (-math.log(sigmoid(0.5)) - math.log(sigmoid(-3))) / 2
    assert generator_loss("bce", FAKE).item() == pytest.approx(fooled, rel=1e-6)


def test_lsgan_is_half_the_squared_distance_to_the_labels() -> None:
    # Real: 1 and -2 from label 1; generated: 0.5 and -3 from label 0.
    expected = 0.5 * (1 + 4) / 2 + 0.5 * (0.25 + 9) / 2
    assert discriminator_loss("lsgan", REAL, FAKE).item() == pytest.approx(expected)
    assert generator_loss("lsgan", FAKE).item() == pytest.approx(0.5 * (0.25 + 16) / 2)


def test_wasserstein_is_the_difference_of_means() -> None:
    assert discriminator_loss("wgan_gp", REAL, FAKE).item() == pytest.approx(-1.25 - 0.5)
    assert generator_loss("wgan_gp", FAKE).item() == pytest.approx(1.25)


def test_relativistic_average_judges_against_the_other_kinds_mean() -> None:
    # Means: real 0.5, generated -1.25.
    real = [-math.log(sigmoid(x + 1.25)) for x in (2, -1)]
    fake = [-math.log(1 - sigmoid(x - 0.5)) for x in (0.5, -3)]
    expected = np.mean(real) + np.mean(fake)
    assert discriminator_loss("relativistic", REAL, FAKE).item() == pytest.approx(expected)
    real = [-math.log(1 - sigmoid(x + 1.25)) for x in (2, -1)]
    fake = [-math.log(sigmoid(x - 0.5)) for x in (0.5, -3)]
    expected = np.mean(real) + np.mean(fake)
    assert generator_loss("relativistic", FAKE, REAL).item() == pytest.approx(expected)


@pytest.mark.parametrize("kind", ["bce", "lsgan", "wgan_gp", "relativistic"])
def test_gradients_part_real_from_generated_logits_and_the_generator_closes_the_gap(
    kind: str,
) -> None:
    real, fake = torch.zeros(2, 1, requires_grad=True), torch.zeros(3, 1, requires_grad=True)
    by_real, by_fake = torch.autograd.grad(discriminator_loss(kind, real, fake), [real, fake])
    assert (by_real <= 0).all()
    assert (by_fake >= 0).all()
    assert by_real.sum() - by_fake.sum() < 0
    (by_fake,) = torch.autograd.grad(generator_loss(kind, fake, real), fake)
    assert (by_fake < 0).all()


@pytest.mark.parametrize("kind", ["bce", "lsgan", "wgan_gp"])
def test_discriminators_loss_is_the_sum_of_its_terms(kind: str) -> None:
    terms = real_loss(kind, REAL) + fake_loss(kind, FAKE)
    assert discriminator_loss(kind, REAL, FAKE).item() == pytest.approx(terms.item())


def test_relativistic_has_no_term_of_one_kind_alone() -> None:
    for term in (real_loss, fake_loss, generator_loss):
        with pytest.raises(ValueError, match="relativistic"):
            term("relativistic", REAL)


def test_gradient_penalty_of_a_linear_discriminator_is_known() -> None:
    """Its gradient is the weight wherever it is taken: (||w|| - 1)^2 = (5 - 1)^2."""
    weight = torch.tensor([3.0, 4.0], requires_grad=True)
    generator = torch.Generator().manual_seed(0)
    penalty = gradient_penalty(
        lambda x: x.flatten(1) @ weight[:, None],
        torch.randn(4, 1, 1, 2, generator=generator),
        torch.randn(4, 1, 1, 2, generator=generator),
        generator,
    )
    assert penalty.item() == pytest.approx(16.0, rel=1e-5)
    # d/dw (||w|| - 1)^2 = 2 (||w|| - 1) w / ||w||
    (gradient,) = torch.autograd.grad(penalty, weight)
    np.testing.assert_allclose(gradient.numpy(), [8 * 0.6, 8 * 0.8], rtol=1e-5)


def test_gradient_penalty_is_taken_between_real_and_generated() -> None:
    """For D(x) = x^2 / 2 in one dimension the gradient is x: between 2 and 4 the penalty lies
    between (2 - 1)^2 and (4 - 1)^2, and takes values all over."""
    penalties = [
        gradient_penalty(
            lambda x: x**2 / 2,
            torch.full((1, 1), 2.0),
            torch.full((1, 1), 4.0),
            torch.Generator().manual_seed(seed),
        ).item()
        for seed in range(50)
    ]
    assert 1 <= min(penalties) < 2
    assert 8 < max(penalties) <= 9


def test_collapse_is_seen_within_and_between_images() -> None:
    rng = torch.Generator().manual_seed(0)
    real = torch.rand(4, 1, 16, 16, generator=rng)
    assert not is_collapsed(torch.rand(4, 1, 16, 16, generator=rng), real)
    assert is_collapsed(torch.rand(4, 1, 1, 1, generator=rng).expand(4, 1, 16, 16), real)  # flat
    assert is_collapsed(real[:1].expand(4, 1, 16, 16), real)  # one picture for all
    assert not is_collapsed(real[:1], real[1:2])  # one image has no others to differ from
    assert is_collapsed(real * float("nan"), real)
    assert not is_collapsed(real, torch.zeros(4, 1, 16, 16))  # nothing to fall short of


def test_patch_discriminator_sees_38_pixels() -> None:
    """Without normalisation only the pixels of its patch move a logit."""
    torch.manual_seed(0)
    net = PatchDiscriminator(1, 4, 3, norm="none")
    image = torch.rand(1, 1, 96, 96, requires_grad=True)
    logits = net(image)
    assert logits.shape == (1, 1, 12, 12)
    (gradient,) = torch.autograd.grad(logits[0, 0, 6, 6], image)
    rows, columns = np.nonzero(gradient[0, 0].numpy())
    assert np.ptp(rows) + 1 == np.ptp(columns) + 1 == 38


@pytest.mark.parametrize("norm", ["instance", "none"])
def test_no_tensor_of_the_gans_networks_belongs_to_a_normalising_layer(norm: str) -> None:
    for net in (PatchDiscriminator(1, 4, 3, norm=norm), Translator(1, 4)):
        assert {type(module) for module in net.modules() if list(module.parameters(False))} == {
            torch.nn.Conv2d
        }
        assert not list(net.buffers())


def test_instance_normalised_stage_of_the_discriminator_ignores_its_weights_scale() -> None:
    torch.manual_seed(0)
    images = torch.rand(2, 1, 32, 32)
    for norm, same in (("instance", True), ("none", False)):
        net = PatchDiscriminator(1, 4, 3, norm=norm)
        before = net(images)
        net.stages[1].weight.data *= 7
        assert torch.allclose(net(images), before, atol=1e-2) == same


def test_translator_keeps_shape_and_range_and_clips_its_input() -> None:
    torch.manual_seed(0)
    net = Translator(1, 4)
    images = 3 * torch.randn(2, 1, 16, 24)
    out = net(images)
    assert out.shape == images.shape
    assert out.min() >= 0
    assert out.max() <= 1
    torch.testing.assert_close(out, net(images.clamp(0, 1)))


@pytest.mark.parametrize(
    ("net", "size", "step"), [(Translator(1, 4), 30, 4), (PatchDiscriminator(1, 4), 36, 8)]
)
def test_image_that_cannot_be_halved_is_refused_with_the_key(
    net: torch.nn.Module, size: int, step: int
) -> None:
    with pytest.raises(UserError, match=rf"data\.size to a multiple of {step}"):
        net(torch.rand(1, 1, size, size))
