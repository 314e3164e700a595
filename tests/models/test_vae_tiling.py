"""Tiles of a VAE against `diffusers`' own tiling, and what they cost in memory."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.models.vaes.base import OneRank, TiledSplit
from fastvideo.models.vaes.tiling import Mosaic, Tiling, blended
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from tests.models.reference import BOUND, error, ours, theirs
from tests.models.test_wanvae import clip, decoded, encoded, noise


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def reference(wan_repo: Path) -> Any:
    """The reference; `tiled` sets its tiles."""
    return theirs(wan_repo, "vae")


@pytest.fixture
def vae(wan_repo: Path) -> AutoencoderKLWan:
    """Ours."""
    loaded: AutoencoderKLWan = ours(wan_repo, "vae")
    return loaded


def tiled(vae: AutoencoderKLWan, reference: Any, size: int, stride: int) -> None:
    """Let both work in tiles."""
    vae.tiling = Tiling(size, stride)
    reference.enable_tiling(size, size, stride, stride)


SIZES = [
    (32, 24, 64, 80),  # several of each, those at the edges cut
    (32, 24, 24, 72),  # one row, which is less than a tile
    (32, 24, 72, 16),
    (48, 24, 56, 64),  # tiles of which the last lie wholly in the one before
    (32, 32, 64, 64),  # no overlap
    (64, 48, 40, 64),  # one tile: not cut
]


@pytest.mark.parametrize(("size", "stride", "height", "width"), SIZES)
@pytest.mark.parametrize("chunk", [1, 4])
def test_decode(
    vae: AutoencoderKLWan, reference: Any, size: int, stride: int, height: int, width: int, chunk: int
) -> None:
    vae.chunk = chunk
    tiled(vae, reference, size, stride)
    latents = noise(1, 16, 3, height // 8, width // 8)
    expected = decoded(reference, latents)
    assert error(vae.decode(latents), expected) < BOUND
    parts = list(vae.stream(latents))
    assert len(parts) == vae.parts(latents)
    assert torch.equal(torch.cat(parts, dim=2), vae.decode(latents))
    if max(height, width) > size:
        reference.disable_tiling()
        assert error(decoded(reference, latents), expected) > 100 * BOUND


@pytest.mark.parametrize(("size", "stride", "height", "width"), SIZES)
def test_encode(vae: AutoencoderKLWan, reference: Any, size: int, stride: int, height: int, width: int) -> None:
    tiled(vae, reference, size, stride)
    video = clip(9, 2, height, width)
    assert error(vae.encode(video), encoded(reference, video)) < BOUND


def test_the_result_does_not_depend_on_the_chunk(wan_repo: Path) -> None:
    vae = ours(wan_repo, "vae", torch.float64)
    vae.tiling = Tiling(32, 24)
    latents = noise(1, 16, 6, 6, 5).double()
    vae.chunk = 1
    decoding = vae.decode(latents)
    for chunk in (2, 4, 6):
        vae.chunk = chunk
        # blending is in fp32
        assert error(vae.decode(latents), decoding) < 1e-6


def test_tiles_of_a_frame() -> None:
    tiling = Tiling(256, 192)
    tiles = tiling.tiles(480, 832)
    assert len(tiles) == 3 * 5
    assert {(tile.height, tile.width) for tile in tiles[:2]} == {(256, 256)}
    assert (tiles[-1].top, tiles[-1].left, tiles[-1].height, tiles[-1].width) == (384, 768, 96, 64)
    covered = torch.zeros(480, 832)
    for tile in tiles:
        covered[tile.top : tile.top + tile.height, tile.left : tile.left + tile.width] = 1
    assert covered.all()
    assert tiling.over(8) == Tiling(32, 24)
    assert tiles[7].scaled(2).top == 2 * tiles[7].top


def test_blending_is_a_ramp() -> None:
    before, x = torch.ones(1, 1, 1, 1, 8), torch.zeros(1, 1, 1, 1, 6)
    made = blended(before, x, 4, 4)
    assert made.flatten().tolist() == [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]
    assert not x.any()
    assert torch.equal(blended(before, x, 4, 0), x)


def test_equal_tiles_leave_no_seam() -> None:
    frames = torch.zeros(1, 3, 2, 50, 70)
    mosaic = Mosaic(frames, Tiling(32, 24))
    for tile in Tiling(32, 24).tiles(50, 70):
        mosaic.put(torch.full((1, 3, 2, tile.height, tile.width), 0.7), tile, 0)
    assert torch.allclose(mosaic.frames, torch.tensor(0.7))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Tiling(32, 40), "stride=40: must be from 1 to size=32"),
        (lambda: Tiling(30, 24).over(8), "size=30: must be a multiple of 8; try 24"),
        (lambda: Tiling(32, 20).over(8), "stride=20: must be a multiple of 8; try 16"),
    ],
)
def test_tiles_that_cannot_be(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_parts_without_frames_come_while_tiles_are_decoded() -> None:
    split = TiledSplit(Tiling(4, 3), OneRank())
    latents = noise(1, 16, 3, 5, 4)
    seen: list[tuple[int, ...]] = []

    def decode(part: torch.Tensor, past: Any) -> torch.Tensor:
        seen.append(tuple(part.shape[2:]))
        first = not past.started(None)
        past._frames[None] = part
        frames = 4 * part.shape[2] - (3 if first else 0)
        return torch.zeros(1, 3, frames, 8 * part.shape[3], 8 * part.shape[4])

    parts = list(split.stream(decode, latents, 2, 4, torch.empty(1, 3, 0, 40, 32)))
    assert seen == [(2, 4, 4), (1, 4, 4), (2, 4, 1), (1, 4, 1), (2, 2, 4), (1, 2, 4), (2, 2, 1), (1, 2, 1)]
    assert [part.shape[2] for part in parts] == [0] * 8 + [5, 4]
    assert len(parts) == split.parts(latents, 2)
