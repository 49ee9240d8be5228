"""``fedshift reproduce``: a paper's comparison on phantom federations, beside its own table.

``paper`` is what a paper's module is written against, ``paper_01`` and so on are those modules,
``result`` prints and stores, ``command`` runs. Nothing heavy is imported here, since the command
line's help shows the titles.
"""

from __future__ import annotations

PAPERS = {
    "01": "Unet-GAN: vendor adaptation of a segmentation network",
    "02": "online adversarial rendering: adaptation to each test image",
    "06": "variational style transfer of ultrasound images",
    "09": "DRAI: disentangled conditional generation",
    "28": "FBPAug: reconstruction kernels of CT as augmentation",
}
"""The papers that can be reproduced: number -> what it is about."""
