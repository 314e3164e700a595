"""The Wan transformer against `diffusers`."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from fastvideo.models.dits.base import Given, RunsAlone
from fastvideo.models.dits.wanvideo import WanTransformer3DModel
from tests import tiny_repos
from tests.models.reference import BF16_NOISE, BOUND, error, mean_square, ours, theirs, write_repo


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def request(
    batch: int = 2, size: tuple[int, int, int] = (3, 6, 8), length: int = 20, seed: int = 0, channels: int = 16
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, timesteps that differ, and text."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(batch, channels, *size, generator=generator)
    return latents, torch.rand(batch, generator=generator) * 1000, torch.randn(batch, length, 36, generator=generator)


def reference(model: Any, latents: torch.Tensor, timestep: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """The reference's prediction; like its pipeline, this gives it everything in its own dtype."""
    prediction: torch.Tensor = model(latents.to(model.dtype), timestep, text.to(model.dtype), return_dict=False)[0]
    return prediction


@pytest.fixture(scope="module")
def models(wan_repo: Path) -> tuple[WanTransformer3DModel, Any]:
    """Ours and the reference."""
    return ours(wan_repo, "transformer"), theirs(wan_repo, "transformer")


Models = tuple[WanTransformer3DModel, Any]


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 2, 2), (1, 4, 2), (3, 6, 8), (5, 2, 14)])
def test_sizes_and_batches(models: Models, batch: int, size: tuple[int, int, int]) -> None:
    latents, timestep, text = request(batch, size)
    assert error(models[0](latents, timestep, text=text), reference(models[1], latents, timestep, text)) < BOUND


@pytest.mark.parametrize("time", [0.0, 0.5, 1.0, 999.0, 1000.0])
@pytest.mark.parametrize("length", [1, 7, 512])
def test_times_and_texts(models: Models, time: float, length: int) -> None:
    latents, _, text = request(length=length)
    timestep = torch.full((2,), time)
    assert error(models[0](latents, timestep, text=text), reference(models[1], latents, timestep, text)) < BOUND


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "fraction"])
def test_timesteps_of_a_schedule(models: Models, whole: bool) -> None:
    latents, timestep, text = request()
    # schedulers give either kind
    timestep = timestep.long() if whole else timestep
    assert error(models[0](latents, timestep, text=text), reference(models[1], latents, timestep, text)) < BOUND


@pytest.mark.parametrize("padding", [1, 5, 492])
def test_text_padding_equals_rows_of_zeros(models: Models, padding: int) -> None:
    latents, timestep, text = request()
    rows = F.pad(text, (0, 0, 0, padding))
    made = models[0](latents, timestep, text=text, text_padding=padding)
    assert error(made, models[0](latents, timestep, text=rows)) < BOUND
    assert error(made, reference(models[1], latents, timestep, rows)) < BOUND
    # and the rows do count
    assert error(made, models[0](latents, timestep, text=text)) > 100 * BOUND


@pytest.mark.parametrize(
    "fields",
    [
        {"num_attention_heads": 1, "attention_head_dim": 14, "num_layers": 1},
        {"patch_size": (1, 1, 3), "ffn_dim": 7},
        {"patch_size": (3, 2, 1), "freq_dim": 64, "eps": 1e-3},
        {"in_channels": 5, "out_channels": 3},
        {"cross_attn_norm": False, "rope_max_seq_len": 6},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_other_architectures(tmp_path: Path, fields: dict[str, Any]) -> None:
    repo = write_repo(tmp_path, transformer=tiny_repos.make_transformer(seed=5, **fields))
    latents, timestep, text = request(size=(3, 6, 6), channels=fields.get("in_channels", 16))
    expected = reference(theirs(repo, "transformer"), latents, timestep, text)
    assert error(ours(repo, "transformer")(latents, timestep, text=text), expected) < BOUND


def test_official_names(models: Models, official_repo: Path) -> None:
    latents, timestep, text = request()
    made = ours(official_repo, "transformer")(latents, timestep, text=text)
    assert error(made, reference(models[1], latents, timestep, text)) < BOUND


def test_bf16_is_no_further_from_fp32_than_the_reference(models: Models, wan_repo: Path) -> None:
    mine, rounded = ours(wan_repo, "transformer", torch.bfloat16), theirs(wan_repo, "transformer", torch.bfloat16)
    errors: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {"ours": [], "theirs": [], "padded": []}
    for seed in range(16):
        latents, timestep, text = request(seed=seed)
        rows = F.pad(text, (0, 0, 0, 44))
        expected = reference(models[1], latents, timestep, rows)
        errors["ours"].append((mine(latents, timestep, text=rows), expected))
        errors["padded"].append((mine(latents, timestep, text=text, text_padding=44), expected))
        errors["theirs"].append((reference(rounded, latents, timestep, rows), expected))
    squares = {name: mean_square(pairs) for name, pairs in errors.items()}
    assert 0 < squares["ours"] <= BF16_NOISE * squares["theirs"]
    assert 0 < squares["padded"] <= BF16_NOISE * squares["theirs"]


def test_in_bf16_it_keeps_in_fp32_what_the_reference_keeps(wan_repo: Path) -> None:
    mine, rounded = ours(wan_repo, "transformer", torch.bfloat16), theirs(wan_repo, "transformer", torch.bfloat16)
    count = {
        name: sum(p.numel() for p in model.parameters() if p.dtype == torch.float32)
        for name, model in (("ours", mine), ("theirs", rounded))
    }
    assert 0 < count["ours"] == count["theirs"]


class Reversed:
    """A sharding that turns the sequence around."""

    def scatter(
        self, tokens: torch.Tensor, along: Mapping[str, tuple[Any, int]]
    ) -> tuple[torch.Tensor, dict[str, Any]]:
        (cos, sin), dim = along["rotary"]
        assert list(along) == ["rotary"]
        return tokens.flip(1), {"rotary": (cos.flip(dim), sin.flip(dim))}

    def gather(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.flip(1)


def test_blocks_see_the_sequence_as_it_is_scattered(wan_repo: Path) -> None:
    model = ours(wan_repo, "transformer")
    latents, timestep, text = request()
    expected = model(latents, timestep, text=text)
    first_tokens: list[torch.Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda block, inputs: first_tokens.append(inputs[0]))
    model(latents, timestep, text=text)
    model.sequence = Reversed()
    assert error(model(latents, timestep, text=text), expected) < BOUND
    assert torch.equal(first_tokens[1].flip(1), first_tokens[0])


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ((1, 3, 4), "latents of 1x3x4: each must be a multiple of the patch size 1x2x2"),
        ((1, 4, 5), "latents of 1x4x5: each must be a multiple of the patch size 1x2x2"),
        ((1025, 2, 2), "1025 tokens along one axis: at most rope_max_seq_len=1024; make the video shorter or smaller"),
    ],
)
def test_sizes_that_do_not_fit(models: Models, size: tuple[int, int, int], message: str) -> None:
    latents, timestep, text = request(1, size)
    with pytest.raises(ValueError, match=message):
        models[0](latents, timestep, text=text)


@pytest.fixture(scope="module")
def image_models(i2v_repo: Path, flf2v_repo: Path) -> dict[str, Models]:
    """Models that are shown one image, and two."""
    return {name: (ours(repo, "transformer"), theirs(repo, "transformer"))
            for name, repo in (("one", i2v_repo), ("two", flf2v_repo))}  # fmt: skip


@pytest.mark.parametrize("images", ["one", "two"])
@pytest.mark.parametrize("batch", [1, 2])
def test_images(image_models: dict[str, Models], images: str, batch: int) -> None:
    mine, exact = image_models[images]
    latents, timestep, text = request(batch, length=512, channels=36)
    count = 2 if images == "two" else 1
    states = torch.randn(batch * count, 5, 24, generator=torch.Generator().manual_seed(9))
    expected = exact(latents, timestep, text, states, return_dict=False)[0]
    given = states.view(batch, count * 5, 24)
    assert error(mine(latents, timestep, text=text, image=given), expected) < BOUND
    if count == 2:  # the positions of two are told apart
        assert error(mine(latents, timestep, text=text, image=given.flip(1)), expected) > 100 * BOUND


def test_an_image_belongs_to_a_model_that_takes_one(models: Models, image_models: dict[str, Models]) -> None:
    latents, timestep, text = request()
    with pytest.raises(ValueError, match="image: must be given to a model with image_dim, and to no other"):
        models[0](latents, timestep, text=text, image=torch.zeros(2, 5, 24))
    with pytest.raises(ValueError, match="image: must be given to a model with image_dim"):
        image_models["one"][0](request(channels=36)[0], timestep, text=text)


@pytest.mark.parametrize(("batch", "size"), [(1, (1, 2, 2)), (2, (3, 6, 8)), (1, (5, 2, 14))])
def test_a_timestep_for_each_frame(models: Models, batch: int, size: tuple[int, int, int]) -> None:
    latents, _, text = request(batch, size)
    timestep = torch.rand(batch, size[0], generator=torch.Generator().manual_seed(4)) * 1000
    timestep[:, 0] = 0
    tokens = timestep.repeat_interleave(size[1] * size[2] // 4, dim=1)
    expected = reference(models[1], latents, tokens, text)
    assert error(models[0](latents, timestep, text=text), expected) < BOUND
    same = torch.full((batch,), 321.0)
    made = models[0](latents, same[:, None].expand(-1, size[0]), text=text)
    assert error(made, models[0](latents, same, text=text)) < BOUND


def test_a_timestep_for_frames_that_are_not_there(models: Models) -> None:
    latents, _, text = request(1)
    with pytest.raises(ValueError, match="timestep of 2 frames: must be of the 3 of the tokens"):
        models[0](latents, torch.zeros(1, 2), text=text)


def given(batch: int, length: int, padding: int, seed: int) -> Given:
    """A pass, all of whose clips are at one time."""
    latents, _, text = request(batch, length=length, seed=seed)
    return Given(latents, torch.tensor(357.5).expand(batch), {"text": text, "text_padding": padding})


def test_passes_run_together_are_what_they_are_alone(models: Models) -> None:
    passes = [given(1, 3, 0, 1), given(2, 20, 492, 2), given(1, 1, 511, 3)]
    for one, prediction in zip(passes, models[0].together(passes), strict=True):
        assert error(prediction, models[0](one.latents, one.timestep, **one.conditions)) < BOUND


def test_passes_with_a_timestep_for_each_frame_run_together(models: Models) -> None:
    times = torch.tensor([[0.0, 500.0, 500.0]])
    passes = [given(1, length, 0, length)._replace(timestep=times * scale) for length, scale in ((3, 1.0), (9, 0.5))]
    for one, prediction in zip(passes, models[0].together(passes), strict=True):
        assert error(prediction, models[0](one.latents, one.timestep, **one.conditions)) < BOUND


def test_passes_of_other_sizes_or_kinds_do_not(models: Models) -> None:
    one, other = given(1, 3, 0, 1), given(1, 3, 0, 1)
    with pytest.raises(RunsAlone, match="one pass at a time"):
        models[0].together([one, other._replace(latents=other.latents[:, :, :1])])
    with pytest.raises(RunsAlone, match="one pass at a time"):
        models[0].together([one, other._replace(timestep=torch.zeros(1, 3))])
