"""The LV-Unet: block numbering, shapes, normalisation, bad sizes."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fedshift import UserError
from fedshift.client.networks.lv_unet import NORMS, InstanceNorm, LVUNet, Norm


def test_blocks_7_and_9_lie_after_the_third_pooling() -> None:
    """The paper takes its features there (section 3.2); block 6 is still before it."""
    outputs = LVUNet(1, 2, width=4, depth=4, blocks=2).encode(torch.zeros(1, 1, 64, 48))
    shapes = [tuple(output.shape[1:]) for output in outputs]
    assert len(outputs) == 9
    assert shapes[5] == (16, 16, 12)
    assert shapes[6] == shapes[7] == shapes[8] == (32, 8, 6)


def test_encoder_has_more_blocks_than_decoder() -> None:
    net = LVUNet(1, 2, width=4, depth=4, blocks=2)
    assert (len(net.encoder), len(net.decoder)) == (9, 3)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("depth", "blocks"), [(1, 1), (2, 3), (3, 1), (4, 2)])
def test_logits_have_the_image_size_and_every_parameter_a_gradient(
    norm: Norm, depth: int, blocks: int
) -> None:
    net = LVUNet(2, 3, width=4, depth=depth, blocks=blocks, norm=norm)
    images = torch.randn(2, 2, 32, 16, generator=torch.Generator().manual_seed(0))
    logits = net(images)
    assert logits.shape == (2, 3, 32, 16)
    logits.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_skips_come_from_the_last_block_of_each_level() -> None:
    """Rebuilt by hand from the network's own layers."""
    net = LVUNet(1, 2, width=4, depth=3, blocks=2)
    images = torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    e, up = net.encoder, lambda x: x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    top = e[1](e[0](images))
    middle = e[3](e[2](F.max_pool2d(top, 2)))
    bottom = e[6](e[5](e[4](F.max_pool2d(middle, 2))))
    middle = net.decoder[0](middle + up(net.narrow[0](bottom)))
    top = net.decoder[1](top + up(net.narrow[1](middle)))
    torch.testing.assert_close(net(images), net.head(top))


def test_instance_normalisation_is_that_of_torch_and_has_weights() -> None:
    ours, theirs = InstanceNorm(6, affine=True), nn.InstanceNorm2d(6, affine=True)
    for norm in (ours, theirs):
        with torch.no_grad():
            norm.weight.copy_(torch.arange(1.0, 7.0))
            norm.bias.copy_(torch.arange(-3.0, 3.0))
    images = 5 + 3 * torch.randn(2, 6, 8, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(ours(images), theirs(images))


@pytest.mark.parametrize(
    ("norm", "layer"),
    [("instance", nn.InstanceNorm2d), ("group", nn.GroupNorm), ("batch", nn.BatchNorm2d)],
)
def test_norm_chooses_the_layer_of_every_block(norm: Norm, layer: type[nn.Module]) -> None:
    net = LVUNet(1, 2, width=12, depth=3, blocks=1, norm=norm)
    layers = [module for module in net.modules() if isinstance(module, layer)]
    assert len(layers) == 2 * (len(net.encoder) + len(net.decoder))
    assert all(module.weight is not None for module in layers)


def test_no_norm_leaves_no_norm_layer_and_gives_the_convolutions_a_bias() -> None:
    net = LVUNet(1, 2, width=4, depth=2, norm="none")
    kinds = (nn.InstanceNorm2d, nn.GroupNorm, nn.BatchNorm2d)
    assert not any(isinstance(module, kinds) for module in net.modules())
    assert all(m.bias is not None for m in net.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize("size", [(60, 64), (64, 36), (8, 64)])
def test_size_that_cannot_be_halved_is_a_user_error_naming_size_and_depth(
    size: tuple[int, int],
) -> None:
    with pytest.raises(UserError, match=rf"{size[0]} x {size[1]} pixels.*method\.depth=4"):
        LVUNet(1, 2, width=4, depth=4)(torch.zeros(1, 1, *size))
