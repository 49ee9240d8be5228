"""Published comparisons, repeated on phantom federations beside the papers' own tables.

``bench`` is what a paper's module is written against, ``p01_unet_gan`` and so on are those modules,
``result`` stores what was measured. Nothing heavy is imported here, since the command line's help
shows the titles.
"""

from __future__ import annotations

PAPERS = {
    "p01_unet_gan": "Unet-GAN: vendor adaptation of a segmentation network",
    "p02_online_rendering": "online adversarial rendering: adaptation to each test image",
    "p06_style_transfer": "variational style transfer of ultrasound images",
    "p09_drai": "DRAI: disentangled conditional generation",
    "p28_fbp_augmentation": "FBPAug: reconstruction kernels of CT as augmentation",
}
"""The papers that can be reproduced: module, which begins with the paper's number, -> what it is
about."""

NUMBERS = {module.partition("_")[0][1:]: module for module in PAPERS}
"""Number -> module."""
