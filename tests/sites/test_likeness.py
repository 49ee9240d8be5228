"""One picture saved otherwise is known again; those of different people are told apart."""

from __future__ import annotations

import hashlib
import hmac
import io
import itertools

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from fedshift.sites import phantoms
from fedshift.sites.likeness import NEAR, keyed, keyed_alike, perceptual_hash


def photograph(seed: int, shape: tuple[int, int] = (180, 240)) -> np.ndarray:
    """A smooth picture of random structures, 0 to 255."""
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = ndimage.gaussian_filter(noise, 14)
    low, high = smooth.min(), smooth.max()
    return ((smooth - low) / (high - low) * 255).astype(np.uint8)


def distance(one: str, other: str) -> int:
    return (int(one, 16) ^ int(other, 16)).bit_count()


def jpeg(picture: np.ndarray) -> np.ndarray:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=60)
    return np.asarray(Image.open(file))


def half(picture: np.ndarray) -> np.ndarray:
    size = (picture.shape[1] // 2, picture.shape[0] // 2)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))


CHANGES = {
    "saved as JPEG": jpeg,
    "half the size": half,
    "less contrast": lambda picture: 40 + picture * 0.4,
    "another gamma": lambda picture: (picture / 255.0) ** 1.5,
    "as floats": lambda picture: picture.astype(np.float32) * 13.7 - 400,
}


@pytest.mark.parametrize("change", list(CHANGES))
def test_a_hash_survives_what_does_not_change_the_picture(change: str) -> None:
    for seed in range(20):
        picture = photograph(seed)
        changed = perceptual_hash(np.asarray(CHANGES[change](picture)))
        assert distance(perceptual_hash(picture), changed) <= NEAR


def test_the_bits_say_which_cell_is_brighter_than_its_right_neighbour() -> None:
    picture = photograph(0, (61, 83))
    rows = [int(61 * k / 8) for k in range(9)]
    columns = [int(83 * k / 9) for k in range(10)]
    bits = ""
    for top, bottom in itertools.pairwise(rows):
        cells = [
            float(picture[top:bottom, left:right].astype(float).mean())
            for left, right in itertools.pairwise(columns)
        ]
        bits += "".join("1" if a > b else "0" for a, b in itertools.pairwise(cells))
    assert perceptual_hash(picture) == f"{int(bits, 2):016x}"


def test_pictures_of_different_people_differ() -> None:
    hashes = [perceptual_hash(photograph(seed)) for seed in range(40)]
    apart = [distance(a, b) for a, b in itertools.combinations(hashes, 2)]
    assert min(apart) > NEAR and 24 < np.mean(apart) < 40
    people = [
        phantoms.draw(
            "cardiac", vendor="vendor_a", subject=f"p{k}", seed=0, shift=1.0, size=64, slices=1
        )[0][0]
        for k in range(12)
    ]
    hashes = [found for found in map(perceptual_hash, people) if found]
    assert len(hashes) > 8
    assert min(distance(a, b) for a, b in itertools.combinations(hashes, 2)) > NEAR


def test_plain_and_tiny_pictures_have_no_hash() -> None:
    assert perceptual_hash(np.full((40, 40), 7.0)) == ""
    assert perceptual_hash(photograph(0)[:7]) == ""
    assert perceptual_hash(photograph(0)[:, :8]) == ""
    ball = np.zeros((90, 90))
    ball[40:50, 40:50] = 1  # Most cells do not differ from their neighbours.
    assert perceptual_hash(ball) == ""
    assert keyed("", b"secret") == ()


def test_sites_compare_quarters_under_their_secret() -> None:
    secret = b"0123456789abcdef"
    own = perceptual_hash(photograph(1))
    quarters = keyed(own, secret)
    expected = [
        hmac.new(secret, f"{k}:{own[4 * k : 4 * k + 4]}".encode(), hashlib.sha256).hexdigest()
        for k in range(4)
    ]
    assert [text[:24] for text in expected] == list(quarters)
    one_bit = f"{int(own, 16) ^ 1:016x}"
    two_far = f"{int(own, 16) ^ (1 | 1 << 63):016x}"
    assert keyed_alike(quarters, keyed(one_bit, secret))
    assert not keyed_alike(quarters, keyed(two_far, secret))
    # Without the secret nothing matches, nor does a quarter in another place.
    assert not keyed_alike(quarters, keyed(own, b"another secret....."))
    assert not keyed_alike(quarters, keyed(own[4:] + own[:4], secret))
    assert not keyed_alike(keyed("", secret), keyed("", secret))
    assert not any(text in own for text in quarters)


def test_across_sites_copies_are_found_and_others_are_not() -> None:
    secret = b"0123456789abcdef"
    here = [keyed(perceptual_hash(photograph(seed)), secret) for seed in range(60)]
    copies = [keyed(perceptual_hash(jpeg(photograph(seed))), secret) for seed in range(60)]
    assert sum(keyed_alike(a, b) for a, b in zip(here, copies, strict=True)) >= 55
    assert not any(keyed_alike(a, b) for a, b in itertools.combinations(here, 2))
