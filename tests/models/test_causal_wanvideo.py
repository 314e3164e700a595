"""The causal Wan transformer: chunk by chunk with a cache, against the whole clip under a mask."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import WanTransformer3DModel

from fastvideo.attention.selector import set_attention_backend
from fastvideo.configs.models.dits.causal_wanvideo import CausalWanVideoArchConfig
from fastvideo.models.dits.causal_wanvideo import CausalWanTransformer3DModel
from tests import causal_repos
from tests.models.block_causal import mask, predict
from tests.models.reference import BOUND, error, ours

CHUNK, HEIGHT, WIDTH = 3, 4, 6
TOKENS = HEIGHT // 2 * (WIDTH // 2)


def random(seed: int, *shape: int) -> torch.Tensor:
    """Normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def reference(causal_repo: Path) -> Any:
    """The transformer of `diffusers` with the same weights."""
    return WanTransformer3DModel.from_pretrained(causal_repo, subfolder="transformer").eval()


def model_of(causal_repo: Path, tmp_path: Path, **fields: Any) -> CausalWanTransformer3DModel:
    """Ours, with the same weights and other fields."""
    repo = causal_repos.make_causal_repo(tmp_path / "repo", **fields)
    model = ours(repo, "transformer")
    assert isinstance(model, CausalWanTransformer3DModel)
    return model


def chunk_by_chunk(
    model: CausalWanTransformer3DModel, latents: torch.Tensor, timesteps: torch.Tensor, text: torch.Tensor
) -> torch.Tensor:
    """The predictions of one pass over each chunk, all of whose frames have one of `timesteps` [T]."""
    memory = model.new_memory((latents.shape[2], HEIGHT, WIDTH))
    made = []
    with torch.no_grad():
        for chunk, times in zip(latents.split(CHUNK, dim=2), timesteps.split(CHUNK), strict=True):
            made.append(model(chunk, times[:1].expand(len(latents)), text=text, memory=memory))
            memory.keep(CHUNK)
    return torch.cat(made, dim=2)


@pytest.mark.parametrize(
    ("window", "sink", "chunks"),
    [(21, 0, 4), (21, 3, 4), (6, 0, 6), (6, 1, 6), (7, 0, 5), (8, 2, 7), (3, 0, 4), (9, 3, 2)],
)
def test_chunks_with_a_cache_are_the_clip_under_a_mask(
    reference: Any, causal_repo: Path, tmp_path: Path, window: int, sink: int, chunks: int
) -> None:
    model = model_of(causal_repo, tmp_path, local_attn_size=window, sink_size=sink)
    frames = CHUNK * chunks
    latents, text = random(1, 2, 16, frames, HEIGHT, WIDTH), random(2, 2, 9, 36)
    timesteps = torch.tensor([900.0, 0.0, 31.5, 625.0, 3.0, 250.0, 77.0])[:chunks].repeat_interleave(CHUNK)
    with torch.no_grad():
        expected = predict(reference, latents, timesteps, text, mask(frames, CHUNK, window, sink, TOKENS))
    assert error(chunk_by_chunk(model, latents, timesteps, text), expected) < BOUND


def test_a_mask_matters(reference: Any) -> None:
    # or the test above would hold for any
    latents, text, timesteps = random(1, 1, 16, 12, HEIGHT, WIDTH), random(2, 1, 9, 36), torch.full((12,), 500.0)
    with torch.no_grad():
        whole, causal, banded, sunk = (
            predict(reference, latents, timesteps, text, mask(12, chunk, window, sink, TOKENS))
            for chunk, window, sink in ((12, 12, 0), (3, 12, 0), (3, 6, 0), (3, 6, 1))
        )
    for first, second in ((whole, causal), (causal, banded), (banded, sunk)):
        assert error(first, second) > 1e-3


def test_the_last_pass_over_a_chunk_is_what_later_ones_see(causal_repo: Path, tmp_path: Path) -> None:
    model = model_of(causal_repo, tmp_path, local_attn_size=6)
    latents, noisy, text = (random(seed, 1, 16, 12, HEIGHT, WIDTH) for seed in (1, 3, 4))
    text = random(2, 1, 9, 36)
    memory, made = model.new_memory((12, HEIGHT, WIDTH)), []
    with torch.no_grad():
        for chunk, noise in zip(latents.split(CHUNK, dim=2), noisy.split(CHUNK, dim=2), strict=True):
            for time in (1000.0, 500.0):
                model(noise, torch.tensor([time]), text=text, memory=memory)
            made.append(model(chunk, torch.zeros(1), text=text, memory=memory))
            memory.keep(CHUNK)
    assert torch.equal(torch.cat(made, dim=2), chunk_by_chunk(model, latents, torch.zeros(12), text))


def test_one_chunk_alone_is_the_other_transformer(reference: Any, causal_repo: Path) -> None:
    model = ours(causal_repo, "transformer")
    latents, text, time = random(1, 1, 16, 5, HEIGHT, WIDTH), random(2, 1, 9, 36), torch.tensor([400.0])
    with torch.no_grad():
        expected = predict(
            reference, latents, time.expand(5), text, torch.ones(5 * TOKENS, 5 * TOKENS, dtype=torch.bool)
        )
        assert error(model(latents, time, text=text), expected) < BOUND


def test_the_memory_does_not_grow_with_the_video(causal_repo: Path) -> None:
    model = ours(causal_repo, "transformer")
    sizes = []
    for chunks in (6, 30):
        frames = CHUNK * chunks
        memory = model.new_memory((frames, HEIGHT, WIDTH))
        with torch.no_grad():
            for _ in range(chunks):
                model(random(1, 1, 16, CHUNK, HEIGHT, WIDTH), torch.zeros(1), text=random(2, 1, 9, 36), memory=memory)
                memory.keep(CHUNK)
        sizes.append(memory.nbytes)
    # of each of 3 layers, keys and values of 6 frames: 3 heads of 20 in fp32
    assert sizes == [3 * 2 * 6 * TOKENS * 60 * 4] * 2


def test_a_video_longer_than_the_rotary_positions(causal_repo: Path, tmp_path: Path) -> None:
    model = model_of(causal_repo, tmp_path, rope_max_seq_len=6)
    memory = model.new_memory((9, HEIGHT, WIDTH))
    memory.keep(6)
    with pytest.raises(ValueError, match="9 latent frames: at most rope_max_seq_len=6; make the video shorter"):
        model(random(1, 1, 16, 3, HEIGHT, WIDTH), torch.zeros(1), text=random(2, 1, 9, 36), memory=memory)


def test_attention_that_needs_the_grid_is_refused(causal_repo: Path) -> None:
    for name in ("VIDEO_SPARSE_ATTN", "SLIDING_TILE_ATTN", "VMOBA_ATTN"):
        with pytest.raises(ValueError, match=f"attention backend '{name}': .*; those that can run here: "):
            set_attention_backend(
                ours(causal_repo, "transformer"), name, device="cpu", dtype=torch.float32, head_dim=20
            )


def test_published_fields() -> None:
    arch = CausalWanVideoArchConfig()
    assert (arch.num_frames_per_block, arch.window, arch.sink_size) == (3, 21, 0)
    assert CausalWanVideoArchConfig(local_attn_size=12).window == 12


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"local_attn_size": 5, "sink_size": 3}, "local_attn_size=5: must be at least sink_size .* = 6"),
        ({"sliding_window_num_frames": 2}, "sliding_window_num_frames=2: must be at least .* = 3"),
        ({"num_frames_per_block": 0}, "num_frames_per_block=0: must be at least 1"),
        ({"sink_size": -1}, "sink_size=-1: must be at least 0"),
        ({"patch_size": (2, 2, 2)}, r"patch_size=\(2, 2, 2\): must be of one frame"),
        ({"gate_compress": True}, "gate_compress=True: a causal model with the gates of sparse attention"),
        ({"image_dim": 1280, "added_kv_proj_dim": 5120}, "image_dim=1280: a causal model that is shown images"),
    ],
)
def test_fields_that_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CausalWanVideoArchConfig(**fields)
