"""`vae_tiling` through the whole pipeline."""

from pathlib import Path

import pytest
import torch

from fastvideo import PipelineConfig, VideoGenerator


def samples(repo: Path, config: PipelineConfig) -> torch.Tensor:
    """The video [1, 3, T, H, W] of one prompt."""
    with VideoGenerator.from_pretrained(repo, device="cpu", precision="fp32", pipeline_config=config) as generator:
        result = generator.generate_video(
            "a red circle", height=48, width=64, num_frames=5, num_inference_steps=2, save_video=False,
            return_frames=True,
        )  # fmt: skip
    assert not isinstance(result, list)
    return result.samples


def test_tiles_change_the_video_a_little_and_large_ones_do_not(wan_repo: Path) -> None:
    plain = samples(wan_repo, PipelineConfig())
    assert torch.equal(samples(wan_repo, PipelineConfig(vae_tiling=True)), plain)
    tiled = samples(wan_repo, PipelineConfig(vae_tiling=True, vae_tile_size=32))
    assert tiled.shape == plain.shape
    assert not torch.equal(tiled, plain)


def test_tiles_must_be_whole_latents(wan_repo: Path) -> None:
    with pytest.raises(ValueError, match="vae_tile_size=40: must be a multiple of 32 for this VAE; try 32"):
        samples(wan_repo, PipelineConfig(vae_tiling=True, vae_tile_size=40))


def test_a_vae_of_patches_has_no_tiles_yet(ti2v_repo: Path) -> None:
    with pytest.raises(ValueError, match="vae_tiling=True: is not there for a VAE of patches"):
        VideoGenerator.from_pretrained(ti2v_repo, device="cpu", pipeline_config=PipelineConfig(vae_tiling=True))
