"""Statistics of style, latent Gaussians, frozen extractors and the translator's networks, each
against an independent computation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from fedshift import UserError
from fedshift.client.methods.style_transfer.extractor import fixed_extractor, vgg_extractor
from fedshift.client.methods.style_transfer.networks import (
    Encoder,
    StyleEncoder,
    UNetDecoder,
    render,
)
from fedshift.client.methods.style_transfer.style import adain, channel_statistics, gram_matrix
from fedshift.client.methods.style_transfer.style_bank import SiteStyle, code_of, style_of
from fedshift.client.networks.gaussian import DiagonalGaussian


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_channel_statistics_are_numpys() -> None:
    features = 3 * normal(0, 2, 5, 6, 7) + 1
    mean, deviation = channel_statistics(features)
    np.testing.assert_allclose(mean, features.numpy().mean((2, 3)), rtol=1e-5)
    np.testing.assert_allclose(deviation, features.numpy().std((2, 3)), rtol=1e-4)


def test_adain_gives_the_styles_mean_and_deviation_to_every_channel() -> None:
    content = 0.3 * normal(1, 3, 4, 8, 8) - 2
    mean, deviation = normal(2, 3, 4), normal(3, 3, 4).exp()
    found = adain(content, mean, deviation).numpy()
    np.testing.assert_allclose(found.mean((2, 3)), mean, atol=1e-4)
    np.testing.assert_allclose(found.std((2, 3)), deviation, rtol=1e-3)
    # The pattern is the content's: every channel correlates with it fully.
    for image in range(3):
        for channel in range(4):
            pair = found[image, channel].ravel(), content[image, channel].numpy().ravel()
            assert np.corrcoef(*pair)[0, 1] == pytest.approx(1, abs=1e-5)


def test_adain_of_a_constant_channel_is_the_styles_mean() -> None:
    found = adain(torch.full((1, 1, 4, 4), 0.7), torch.tensor([[2.0]]), torch.tensor([[5.0]]))
    torch.testing.assert_close(found, torch.full((1, 1, 4, 4), 2.0), atol=1e-3, rtol=0)


def test_gram_matrix_is_equation_4() -> None:
    features = normal(4, 2, 3, 4, 5)
    found = gram_matrix(features)
    for image in range(2):
        for u in range(3):
            for v in range(3):
                products = features[image, u] * features[image, v]
                expected = products.sum() / (3 * 4 * 5)
                assert found[image, u, v].item() == pytest.approx(expected.item(), abs=1e-6)


def test_gram_loss_towards_the_mean_has_the_mean_gradient() -> None:
    """What lets a site train on another's mean Gram matrix instead of its images' matrices."""
    style = [gram_matrix(normal(seed, 1, 3, 6, 6)) for seed in range(5)]
    rendered = normal(9, 1, 3, 6, 6).requires_grad_()
    each = torch.stack([F.mse_loss(gram_matrix(rendered), gram) for gram in style]).mean()
    towards_mean = F.mse_loss(gram_matrix(rendered), torch.stack(style).mean(0))
    (wanted,) = torch.autograd.grad(each, rendered)
    (found,) = torch.autograd.grad(towards_mean, rendered)
    torch.testing.assert_close(found, wanted, atol=1e-7, rtol=1e-5)


def test_kl_is_that_of_torch_distributions() -> None:
    mean, log_variance = normal(5, 4, 2, 3, 3), normal(6, 4, 2, 3, 3)
    expected = kl_divergence(Normal(mean, (0.5 * log_variance).exp()), Normal(0.0, 1.0))
    found = DiagonalGaussian(mean, log_variance).kl()
    torch.testing.assert_close(found, expected.sum((1, 2, 3)))


def test_kl_is_the_corrected_equation_6() -> None:
    """mu = 0.7, sigma = 1.6: 0.555 nats; the printed form gives 0.406."""
    one = DiagonalGaussian(torch.tensor([[0.7]]), torch.tensor([[2 * np.log(1.6)]]))
    assert one.kl().item() == pytest.approx(0.555, abs=5e-4)


def test_sample_has_the_gaussians_moments_and_passes_gradients_to_both() -> None:
    mean = torch.full((20000,), 0.7, requires_grad=True)
    log_variance = torch.full((20000,), 2 * np.log(1.6), requires_grad=True)
    sample = DiagonalGaussian(mean, log_variance).sample(torch.Generator().manual_seed(0))
    assert sample.mean().item() == pytest.approx(0.7, abs=0.05)
    assert sample.std().item() == pytest.approx(1.6, abs=0.05)
    sample.sum().backward()
    assert mean.grad is not None
    assert log_variance.grad is not None
    torch.testing.assert_close(mean.grad, torch.ones(20000))
    # d(mu + sigma e)/d(log sigma^2) = (z - mu) / 2
    torch.testing.assert_close(log_variance.grad, (sample.detach() - 0.7) / 2, atol=1e-5, rtol=1e-4)


def test_sample_depends_on_its_generator_alone() -> None:
    gaussian = DiagonalGaussian(torch.zeros(8), torch.zeros(8))
    first = gaussian.sample(torch.Generator().manual_seed(3))
    torch.manual_seed(99)
    assert torch.equal(first, gaussian.sample(torch.Generator().manual_seed(3)))
    assert not torch.equal(first, gaussian.sample(torch.Generator().manual_seed(4)))


def test_fixed_extractor_is_frozen_and_the_same_whatever_the_global_generator() -> None:
    torch.manual_seed(1)
    first = fixed_extractor()
    torch.manual_seed(2)
    second = fixed_extractor().state_dict()
    assert all(torch.equal(value, second[name]) for name, value in first.state_dict().items())
    assert not any(p.requires_grad for p in first.parameters())


def test_building_the_fixed_extractor_leaves_the_global_generator() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    fixed_extractor()
    assert torch.equal(before, torch.get_rng_state())


def test_fixed_extractor_halves_at_each_layer_and_tells_textures_apart() -> None:
    y, x = np.mgrid[:32, :32]
    stripes = [
        torch.from_numpy(0.5 + 0.5 * np.sin(v * np.pi / 4)).float()[None, None] for v in (x, y)
    ]
    shifted = torch.roll(stripes[0], 3, dims=3)
    features = [fixed_extractor()(image) for image in (*stripes, shifted)]
    assert [tuple(f.shape[1:]) for f in features[0]] == [
        (16, 32, 32),
        (32, 16, 16),
        (48, 8, 8),
        (64, 4, 4),
    ]
    for across, along, moved in zip(*features, strict=True):
        differing = F.mse_loss(gram_matrix(across), gram_matrix(along))
        same = F.mse_loss(gram_matrix(across), gram_matrix(moved))
        assert differing > 1.5 * same


def vgg_weights(convolutions: tuple[int, ...]) -> dict[str, torch.Tensor]:
    """Small random weights under torchvision's names, with a classifier that is not needed."""
    widths, weights = (64, 128, 256, 512, 512), {"classifier.0.weight": torch.zeros(2, 2)}
    position, channels = 0, 3
    for width, count in zip(widths, convolutions, strict=True):
        for _ in range(count):
            shape = (width, channels, 3, 3)
            weights[f"features.{position}.weight"] = 0.02 * normal(position, *shape)
            weights[f"features.{position}.bias"] = 0.1 * normal(position, width)
            position, channels = position + 2, width
        position += 1
    return weights


def test_vgg16_from_a_file_is_torchvisions_up_to_block5_conv1(tmp_path: Path) -> None:
    weights = vgg_weights((2, 2, 3, 3, 3))
    save_file(weights, tmp_path / "vgg.safetensors")
    torch.save(weights, tmp_path / "vgg.pth")
    images = normal(0, 1, 1, 32, 32) * 0.2 + 0.5
    hidden = (images.repeat(1, 3, 1, 1) - torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)) / (
        torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
    )
    expected = []
    # Positions in torchvision's "features" of the convolutions; a pooling precedes each group.
    for group in ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24,)):
        if group[0]:
            hidden = F.max_pool2d(hidden, 2)
        for position in group:
            name = f"features.{position}"
            hidden = F.conv2d(hidden, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)
            hidden = hidden.relu()
            if position == group[0]:
                expected.append(hidden)
    for file in ("vgg.safetensors", "vgg.pth"):
        found = vgg_extractor("vgg16", tmp_path / file)(images)
        for one, other in zip(found, expected, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_vgg19_reads_its_own_positions(tmp_path: Path) -> None:
    weights = vgg_weights((2, 2, 4, 4, 4))
    torch.save(weights, tmp_path / "vgg19.pth")
    network = vgg_extractor("vgg19", tmp_path / "vgg19.pth")
    last = network.blocks[4][0].weight
    assert torch.equal(last, weights["features.28.weight"])
    assert len(network(torch.zeros(1, 1, 32, 32))) == 5


def test_unusable_vgg_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"extractor_file=.*none\.pth does not exist"):
        vgg_extractor("vgg16", tmp_path / "none.pth")
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(UserError, match="cannot be read as safetensors or a torch state dict"):
        vgg_extractor("vgg16", tmp_path / "text.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(UserError, match="holds no state dict"):
        vgg_extractor("vgg16", tmp_path / "list.pth")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match=r"has no features\.0\.weight"):
        vgg_extractor("vgg16", tmp_path / "other.pth")
    torch.save(vgg_weights((2, 2, 3, 3, 3)), tmp_path / "vgg16.pth")
    with pytest.raises(UserError, match=r"give torchvision's weights of vgg19"):
        vgg_extractor("vgg19", tmp_path / "vgg16.pth")
    torch.save({"features.0.weight": torch.zeros(64, 1, 3, 3)}, tmp_path / "grey.pth")
    with pytest.raises(UserError, match=r"\(64, 1, 3, 3\), vgg16 needs \(64, 3, 3, 3\)"):
        vgg_extractor("vgg16", tmp_path / "grey.pth")


def test_encoder_and_decoder_keep_the_grid_at_every_scale() -> None:
    encoder = StyleEncoder(1, width=4, scales=3, latent=2, norm="none")
    posteriors = encoder(normal(0, 2, 1, 16, 24))
    assert [tuple(q.mean.shape) for q in posteriors] == [
        (2, 2, 16, 24),
        (2, 2, 8, 12),
        (2, 2, 4, 6),
    ]
    features = encoder.features([q.mean for q in posteriors])
    assert [f.shape[1] for f in features] == [4, 8, 16]
    content = Encoder(1, width=4, scales=3, norm="none")(normal(1, 2, 1, 16, 24))
    assert [f.shape for f in content] == [f.shape for f in features]
    style = [channel_statistics(f) for f in features]
    assert render(UNetDecoder(1, 4, 3, "none"), content, style).shape == (2, 1, 16, 24)


def test_decoder_sees_nothing_of_the_contents_own_statistics() -> None:
    """f_c reaches the decoder through AdaIN alone: a change of a channel's scale and offset has no
    effect on the rendered image."""
    content = [normal(0, 1, 4, 8, 8), normal(1, 1, 8, 4, 4)]
    changed = [3 * f + 2 for f in content]
    style = [channel_statistics(normal(2, 1, f.shape[1], 5, 5)) for f in content]
    decoder = UNetDecoder(1, 4, 2, "none")
    with torch.no_grad():
        torch.testing.assert_close(
            render(decoder, content, style), render(decoder, changed, style), atol=1e-4, rtol=1e-3
        )


def test_code_holds_the_statistics_and_gives_them_back() -> None:
    features = [2 * normal(0, 3, 4, 8, 8) + 1, normal(1, 3, 8, 4, 4)]
    codes = code_of(features)
    assert codes.shape == (3, 2 * 4 + 2 * 8)
    for (mean, deviation), feature in zip(style_of(codes, [4, 8]), features, strict=True):
        np.testing.assert_allclose(mean, feature.numpy().mean((2, 3)), atol=1e-6)
        np.testing.assert_allclose(deviation, feature.numpy().std((2, 3)), rtol=1e-4)


def test_site_style_survives_the_bank_and_draws_its_own_moments() -> None:
    style = SiteStyle(normal(0, 6), normal(1, 6).exp(), (normal(2, 3, 3), normal(3, 5, 5)))
    found = style.to_bank()
    assert all(value.dtype == np.float32 for value in found.values())
    again = SiteStyle.from_bank(found, torch.device("cpu"))
    assert torch.equal(again.mean, style.mean)
    assert all(torch.equal(a, b) for a, b in zip(again.grams, style.grams, strict=True))
    codes = again.draw(20000, torch.Generator().manual_seed(0))
    torch.testing.assert_close(codes.mean(0), style.mean, atol=0.05, rtol=0.05)
    torch.testing.assert_close(codes.std(0), style.deviation, atol=0.05, rtol=0.05)
