"""Frozen networks in whose features perceptual and style losses are measured.

The losses of Gatys et al. (2015) need features that are the same at every site. They come from

* ``vgg16`` or ``vgg19``: Simonyan & Zisserman, ICLR 2015, with weights from a file of the user's;
* ``fixed``: a network of the same form with random weights, the same wherever this code runs.
  Random filters carry texture nearly as well as trained ones (Ustyuzhaninov et al., "What Does It
  Take to Generate Natural Textures?", ICLR 2017) and need no download;
* any encoder that is handed over, such as the segmentation network's.

The layers are those of the paper, the first convolution after each pooling: block1_conv1,
block2_conv1, ...; each after its ReLU.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import skip_init

from fedshift import UserError

Vgg = Literal["vgg16", "vgg19"]
Extractor = Callable[[torch.Tensor], list[torch.Tensor]]
"""Images (B, 1, H, W), about 0 to 1, to the features (B, C_i, H_i, W_i) of each layer."""

FIXED_WIDTHS = (16, 32, 48, 64)
_FIXED_SEED = 20210927
_VGG_WIDTHS = (64, 128, 256, 512, 512)
_VGG_CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}
_IMAGENET_MEAN = (0.485, 0.456, 0.406)
_IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


class FrozenExtractor(nn.Module):
    """A chain of 3x3 convolutions with ReLU, ``convolutions[k]`` of ``widths[k]`` channels in block
    k, a 2x2 max-pooling between blocks. Called with images, it returns the output of each block's
    first convolution. Its weights have no gradient.

    ``mean`` and ``deviation``, one entry for each of the input's channels, standardise the images;
    a grey image is repeated over the channels.
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(
        self,
        widths: tuple[int, ...],
        convolutions: tuple[int, ...],
        mean: tuple[float, ...],
        deviation: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList()
        channels = len(mean)
        for block, (width, count) in enumerate(zip(widths, convolutions, strict=True)):
            # Of the last block only the first convolution is ever used.
            used = 1 if block == len(widths) - 1 else count
            self.blocks.append(
                # The weights are filled in later, without a draw from torch's default generator.
                nn.ModuleList(
                    skip_init(nn.Conv2d, channels if n == 0 else width, width, 3, padding=1)
                    for n in range(used)
                )
            )
            channels = width
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("deviation", torch.tensor(deviation).view(1, -1, 1, 1))
        self.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        hidden = (images - self.mean) / self.deviation
        found = []
        for index, block in enumerate(self.blocks):
            if index:
                hidden = F.max_pool2d(hidden, kernel_size=2)
            assert isinstance(block, nn.ModuleList)
            for number, convolution in enumerate(block):
                hidden = F.relu(convolution(hidden))
                if number == 0:
                    found.append(hidden)
        return found


def fixed_extractor() -> FrozenExtractor:
    """Return the network with random weights: one convolution a block, of 16 to 64 channels.

    The weights are normal with He et al.'s variance, drawn from a generator of their own with a
    constant seed, so that every site has the same. The biases are normal, too, with standard
    deviation 0.1: with none, all features would only grow with the image's contrast.
    """
    # A half in the middle of the images' range: then dark and bright parts answer alike.
    network = FrozenExtractor(FIXED_WIDTHS, (1,) * len(FIXED_WIDTHS), (0.5,), (0.25,))
    generator = torch.Generator().manual_seed(_FIXED_SEED)
    with torch.no_grad():
        for convolution in network.modules():
            if isinstance(convolution, nn.Conv2d):
                assert convolution.bias is not None
                inputs = convolution.weight[0].numel()
                convolution.weight.normal_(0, (2 / inputs) ** 0.5, generator=generator)
                convolution.bias.normal_(0, 0.1, generator=generator)
    return network


def vgg_extractor(kind: Vgg, path: str | Path) -> FrozenExtractor:
    """Return VGG-16 or VGG-19 with the weights of ``path``, up to block5_conv1.

    The file is a safetensors file, or a torch state dict (read without running code), with
    torchvision's names ``features.N.weight`` and ``features.N.bias``; what else it holds is
    ignored. Raises :class:`fedshift.UserError` where it cannot be read or is no such network.
    """
    weights = _read_weights(Path(path).expanduser())
    network = FrozenExtractor(
        _VGG_WIDTHS, _VGG_CONVOLUTIONS[kind], _IMAGENET_MEAN, _IMAGENET_DEVIATION
    )
    position = 0
    for block, count in zip(network.blocks, _VGG_CONVOLUTIONS[kind], strict=True):
        assert isinstance(block, nn.ModuleList)
        for number, convolution in enumerate(block):
            for name, parameter in convolution.named_parameters():
                # In torchvision's list each convolution is followed by its ReLU.
                _fill(parameter, weights, f"features.{position + 2 * number}.{name}", kind, path)
        # ... and each block by its pooling.
        position += 2 * count + 1
    return network


def _read_weights(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(
            f"method.extractor_file={path} does not exist; give the file of the VGG's weights, or "
            "set method.extractor=fixed"
        ) from None
    except Exception as error:  # both readers raise many kinds
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"method.extractor_file={path} cannot be read as safetensors or a torch state dict "
            f"({reason}); save the VGG's state dict anew"
        ) from error
    if not isinstance(found, Mapping):
        raise UserError(
            f"method.extractor_file={path} holds no state dict; save model.state_dict() instead"
        )
    return found


def _fill(
    parameter: nn.Parameter,
    weights: Mapping[str, torch.Tensor],
    name: str,
    kind: Vgg,
    path: str | Path,
) -> None:
    given = weights.get(name)
    if given is None:
        raise UserError(
            f"method.extractor_file={path} has no {name}; give torchvision's weights of {kind}"
        )
    if given.shape != parameter.shape:
        raise UserError(
            f"method.extractor_file={path}: {name} is {tuple(given.shape)}, {kind} needs "
            f"{tuple(parameter.shape)}; give torchvision's weights of {kind}"
        )
    with torch.no_grad():
        parameter.copy_(given)
