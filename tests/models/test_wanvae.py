"""The Wan 2.1 and 2.2 VAEs against `diffusers`."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.models.vaes.wanvae import AutoencoderKLWan, ChannelNorm, Past
from tests import tiny_repos
from tests.models.reference import BF16_NOISE, BOUND, error, mean_square, ours, theirs, write_repo


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    """Normal noise."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def clip(frames: int, batch: int = 1, height: int = 24, width: int = 32, seed: int = 0) -> torch.Tensor:
    """Uniform noise in [-1, 1]: video [B, 3, T, H, W]."""
    return torch.rand(batch, 3, frames, height, width, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def statistics(reference: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation of the reference's latents, which its pipeline scales by."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1, 1) for values in
                 (reference.config.latents_mean, reference.config.latents_std))  # fmt: skip
    return mean, std


def encoded(reference: Any, video: torch.Tensor) -> torch.Tensor:
    """The reference's latents, scaled."""
    mean, std = statistics(reference)
    latents: torch.Tensor = reference.encode(video.to(reference.dtype)).latent_dist.mode()
    return (latents.float() - mean) / std


def decoded(reference: Any, latents: torch.Tensor) -> torch.Tensor:
    """The reference's video of scaled latents."""
    mean, std = statistics(reference)
    video: torch.Tensor = reference.decode((latents * std + mean).to(reference.dtype), return_dict=False)[0]
    return video


Models = tuple[AutoencoderKLWan, Any]


@pytest.fixture(scope="module")
def models(wan_repo: Path) -> Models:
    """Ours and the reference."""
    return ours(wan_repo, "vae"), theirs(wan_repo, "vae")


@pytest.fixture
def chunked(models: Models) -> Iterator[AutoencoderKLWan]:
    """Ours, whose `chunk` a test may set."""
    usual = models[0].chunk
    yield models[0]
    models[0].chunk = usual


@pytest.fixture(scope="module", params=[1, 5, 9, 17])
def expected(request: pytest.FixtureRequest, models: Models) -> dict[str, torch.Tensor]:
    """A clip and latents of a number of frames, and what the reference makes of them."""
    video, latents = clip(request.param), noise(1, 16, (request.param - 1) // 4 + 1, 3, 4)
    with torch.no_grad():
        made = {"encoded": encoded(models[1], video), "decoded": decoded(models[1], latents)}
    return {"video": video, "latents": latents, **made}


@pytest.mark.parametrize("chunk", [1, 2, 3, 4, 100])
def test_encode_and_decode(chunked: AutoencoderKLWan, expected: dict[str, torch.Tensor], chunk: int) -> None:
    chunked.chunk = chunk
    assert error(chunked.encode(expected["video"]), expected["encoded"]) < BOUND
    assert error(chunked.decode(expected["latents"]), expected["decoded"]) < BOUND


def test_the_result_does_not_depend_on_the_chunk(wan_repo: Path) -> None:
    # float64: kernels for longer inputs round in another order, and here nothing but rounding may differ
    vae = ours(wan_repo, "vae", torch.float64)
    latents, video = noise(1, 16, 6, 2, 3).double(), clip(21, 1, 16, 24).double()
    vae.chunk = 1
    encoding, decoding = vae.encode(video), vae.decode(latents)
    for chunk in (2, 3, 5, 6):
        vae.chunk = chunk
        assert error(vae.encode(video), encoding) < 1e-12
        assert error(vae.decode(latents), decoding) < 1e-12


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 8, 8), (2, 16, 40), (3, 40, 8)])
def test_sizes_and_batches(models: Models, batch: int, height: int, width: int) -> None:
    video = clip(5, batch, height, width)
    latents = encoded(models[1], video)
    assert error(models[0].encode(video), latents) < BOUND
    assert error(models[0].decode(latents), decoded(models[1], latents)) < BOUND


@pytest.mark.parametrize(
    "fields",
    [
        {"decoder_base_dim": 10},
        {"base_dim": 5, "num_res_blocks": 1, "z_dim": 2, "latents_mean": [0.5, -1.0], "latents_std": [2.0, 0.3]},
        {"dim_mult": [1, 3], "temperal_downsample": [True], "scale_factor_spatial": 2, "scale_factor_temporal": 2},
        {"dim_mult": [2, 1, 2], "temperal_downsample": [True, False], "scale_factor_spatial": 4,
         "scale_factor_temporal": 2},
    ],
    ids=lambda fields: next(iter(fields)),
)  # fmt: skip
def test_other_architectures(tmp_path: Path, fields: dict[str, Any]) -> None:
    repo = write_repo(tmp_path, vae=tiny_repos.make_vae(seed=4, **fields))
    mine, reference = ours(repo, "vae"), theirs(repo, "vae")
    video = clip(9)
    if mine.arch.scale_factor_temporal == 4:  # the reference's encoder takes four frames at a time
        assert error(mine.encode(video), encoded(reference, video)) < BOUND
    latents = noise(1, mine.arch.z_dim, 4, 3, 4)
    assert error(mine.decode(latents), decoded(reference, latents)) < BOUND


def test_official_names(models: Models, official_repo: Path) -> None:
    mine = ours(official_repo, "vae")
    latents = encoded(models[1], clip(5))
    assert error(mine.encode(clip(5)), latents) < BOUND
    assert error(mine.decode(latents), decoded(models[1], latents)) < BOUND


def test_bf16_is_no_further_from_fp32_than_the_reference(models: Models, wan_repo: Path) -> None:
    mine, rounded = ours(wan_repo, "vae", torch.bfloat16), theirs(wan_repo, "vae", torch.bfloat16)
    errors: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {
        f"{who} {what}": [] for who in ("ours", "theirs") for what in ("encode", "decode")
    }
    for seed in range(6):
        video, latents = clip(5, seed=seed), noise(1, 16, 2, 3, 4, seed=seed)
        expected = encoded(models[1], video)
        errors["ours encode"].append((mine.encode(video), expected))
        errors["theirs encode"].append((encoded(rounded, video), expected))
        expected = decoded(models[1], latents)
        errors["ours decode"].append((mine.decode(latents), expected))
        errors["theirs decode"].append((decoded(rounded, latents), expected))
    squares = {name: mean_square(pairs) for name, pairs in errors.items()}
    assert 0 < squares["ours encode"] <= BF16_NOISE * squares["theirs encode"]
    assert 0 < squares["ours decode"] <= BF16_NOISE * squares["theirs decode"]


def test_latents_are_fp32_whatever_the_precision(wan_repo: Path) -> None:
    mine = ours(wan_repo, "vae", torch.bfloat16)
    assert mine.encode(clip(1)).dtype == torch.float32
    assert mine.decode(noise(1, 16, 1, 3, 4)).dtype == torch.bfloat16


def test_stream_gives_a_chunk_at_a_time(chunked: AutoencoderKLWan) -> None:
    chunked.chunk = 2
    latents = noise(1, 16, 5, 3, 4)
    parts = list(chunked.stream(latents))
    assert [part.shape[2] for part in parts] == [5, 8, 4]
    assert chunked.parts(latents) == 3
    assert torch.equal(torch.cat(parts, dim=2), chunked.decode(latents))


def test_video_is_within_bounds(models: Models) -> None:
    video = models[0].decode(20 * noise(1, 16, 2, 3, 4))
    assert float(video.min()) == -1
    assert float(video.max()) == 1


def test_the_past_does_not_see_the_future(models: Models) -> None:
    latents = noise(1, 16, 4, 3, 4)
    changed = latents.clone()
    changed[:, :, 3] += 1
    before, after = models[0].decode(latents), models[0].decode(changed)
    assert torch.equal(before[:, :, :9], after[:, :, :9])
    assert not torch.equal(before[:, :, 9], after[:, :, 9])


def test_clips_do_not_remember_each_other(models: Models) -> None:
    first = models[0].encode(clip(9))
    models[0].encode(clip(5, seed=1))
    assert torch.equal(models[0].encode(clip(9)), first)


def test_the_past_holds_nothing_but_the_frames_that_are_needed(models: Models) -> None:
    past = Past()
    models[0].frames(noise(1, 16, 4, 3, 4), past)
    assert past._frames
    for frames in past._frames.values():
        assert frames.shape[2] == 2
        assert frames.untyped_storage().nbytes() == frames.nbytes


def test_moments_and_frames_of_a_whole_clip(models: Models) -> None:
    vae, reference = models
    posterior = reference.encode(clip(9)).latent_dist.parameters
    assert error(vae.moments(clip(9), Past()), posterior) < 10 * BOUND  # the log variance is not clamped here
    latents = noise(1, 16, 3, 3, 4)
    mean, std = statistics(reference)
    assert torch.equal(vae.frames(latents * std + mean, Past()).clamp(-1, 1), vae.decode(latents))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((1, 3, 6, 16, 16), "video of 6 frames: must be 4k\\+1; try 5"),
        ((1, 3, 5, 20, 16), "video of 20x16: height and width must be multiples of 8"),
        ((1, 3, 5, 16, 12), "video of 16x12: height and width must be multiples of 8"),
    ],
)
def test_sizes_that_do_not_fit(models: Models, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models[0].encode(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 0.0])
def test_channel_norm(dtype: torch.dtype, scale: float) -> None:
    from diffusers.models.autoencoders.autoencoder_kl_wan import WanRMS_norm

    norm, reference = ChannelNorm(7).to(dtype), WanRMS_norm(7, images=False)
    norm.gamma.copy_(noise(7, 1, 1, 1).to(dtype))
    reference.gamma.copy_(norm.gamma)
    x = (scale * noise(2, 7, 3, 4, 5)).to(dtype)
    expected = reference(x.float())
    assert torch.allclose(norm(x).float(), expected, rtol=1e-6 + 2 * torch.finfo(dtype).eps, atol=0)


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory) -> Models:
    """A Wan 2.2 VAE, ours and the reference."""
    repo = write_repo(tmp_path_factory.mktemp("vae"), vae=tiny_repos.make_vae(seed=8, **tiny_repos.RESIDUAL_VAE))
    return ours(repo, "vae"), theirs(repo, "vae")


@pytest.mark.parametrize("frames", [1, 5, 9, 21])
@pytest.mark.parametrize("chunk", [1, 2, 3, 100])
def test_residual(residual: Models, frames: int, chunk: int) -> None:
    video, latents = clip(frames, 1, 32, 48), noise(1, 48, (frames - 1) // 4 + 1, 2, 3)
    usual, residual[0].chunk = residual[0].chunk, chunk
    try:
        assert error(residual[0].encode(video), encoded(residual[1], video)) < BOUND
        assert error(residual[0].decode(latents), decoded(residual[1], latents)) < BOUND
        assert error(residual[0].first_frame(latents), decoded(residual[1], latents)[:, :, 0]) < BOUND
    finally:
        residual[0].chunk = usual


@pytest.mark.parametrize(
    "fields",
    [
        {"num_res_blocks": 1, "decoder_base_dim": None},
        {"patch_size": None, "in_channels": 3, "out_channels": 3, "scale_factor_spatial": 8},
        {"temperal_downsample": [True, False, True]},
        {"is_residual": False, "decoder_base_dim": None},
    ],
)
def test_residual_architectures(tmp_path: Path, fields: dict[str, Any]) -> None:
    repo = write_repo(tmp_path, vae=tiny_repos.make_vae(seed=9, **{**tiny_repos.RESIDUAL_VAE, **fields}))
    mine, reference = ours(repo, "vae"), theirs(repo, "vae")
    video = clip(9, 2, 32, 16)
    latents = encoded(reference, video)
    assert error(mine.encode(video), latents) < BOUND
    assert error(mine.decode(latents), decoded(reference, latents)) < BOUND


def test_residual_sizes(residual: Models) -> None:
    with pytest.raises(ValueError, match="video of 24x32: height and width must be multiples of 16"):
        residual[0].encode(clip(5, 1, 24, 32))
