"""Video chunk by chunk, against the published algorithm restated without a cache: the whole clip at each step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel

from fastvideo.configs.sample.wan import SFWanSampling
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.pipelines.pipeline_batch_info import Cancelled, Control, ForwardBatch, Progress
from tests import causal_repos
from tests.models.block_causal import mask, predict
from tests.pipelines.wan_pairs import CAT, LEVEL, difference, load, ours, picture, request

STEPS = torch.tensor([1000.0, 937.5, 2500 / 3, 625.0])
"""1000, 750, 500 and 250 in a schedule with a shift of 5: s -> 5 s / (1 + 4 s)."""


def published(repo: Path, prompts: list[str], window: int, sink: int, **fields: Any) -> torch.Tensor:
    """The videos [B, 3, T, H, W] in [0, 1] by `diffusers`' models: for each step of each chunk a pass over all frames
    so far, those before the chunk clean and at timestep 0, under the mask of what each chunk sees."""
    transformer = WanTransformer3DModel.from_pretrained(repo, subfolder="transformer").eval()
    vae: Any = AutoencoderKLWan.from_pretrained(repo, subfolder="vae").eval()
    from transformers import AutoTokenizer, UMT5EncoderModel

    texts = WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(repo / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(repo / "text_encoder").eval(),
        transformer=None, vae=None, scheduler=None,
    )  # fmt: skip
    frames, height, width = (fields["num_frames"] - 1) // 4 + 1, fields["height"] // 8, fields["width"] // 8
    tokens = height // 2 * (width // 2)
    generator = torch.Generator("cpu").manual_seed(fields["seed"])
    done = torch.zeros(len(prompts), 16, 0, height, width)
    with torch.no_grad():
        text = texts.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=512)[0]
        for start in range(0, frames, 3):
            noise = torch.randn(len(prompts), 16, 3, height, width, generator=generator)
            chunk = noise
            for number, time in enumerate(STEPS):
                times = torch.cat((torch.zeros(start), time.expand(3)))
                seen = mask(start + 3, 3, window, sink, tokens)
                velocity = predict(transformer, torch.cat((done, chunk), dim=2), times, text, seen)[:, :, start:]
                data = chunk - time / 1000 * velocity
                if number < len(STEPS) - 1:
                    level = STEPS[number + 1] / 1000
                    noise = torch.randn(data.shape, generator=generator)
                    chunk = (1 - level) * data + level * noise
            done = torch.cat((done, data), dim=2)
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        video: torch.Tensor = vae.decode(done * std + mean, return_dict=False)[0]
    return (video / 2 + 0.5).clamp(0, 1)


def small(**fields: Any) -> dict[str, Any]:
    """A small request to a causal model."""
    return request(**{"guidance_scale": 1.0, "num_inference_steps": 4, **fields})


@pytest.fixture(scope="module")
def pipeline(causal_repo: Path) -> ComposedPipelineBase:
    """Ours."""
    return load(causal_repo)


@pytest.mark.parametrize(
    "fields",
    [{}, {"height": 48, "width": 16, "num_frames": 45, "seed": 8}, {"num_frames": 21}],
    ids=["one-chunk", "rolling", "two-chunks"],
)
def test_one_prompt(pipeline: ComposedPipelineBase, causal_repo: Path, fields: dict[str, Any]) -> None:
    expected = published(causal_repo, [CAT], 6, 1, **small(**fields))
    assert difference(ours(pipeline, [CAT], [""], {}, **small(**fields)), expected) < LEVEL


def test_two_prompts_and_the_published_window(tmp_path: Path) -> None:
    # the class of the other transformer in the index means the same model, as its weights do
    repo = causal_repos.make_causal_repo(tmp_path / "repo", seed=2, index_class="WanTransformer3DModel")
    prompts, fields = [CAT, "a blue star"], small(num_frames=33)
    expected = published(repo, prompts, 21, 0, **fields)
    assert difference(ours(load(repo), prompts, ["", ""], {}, **fields), expected) < LEVEL


def batch_of(control: Control | None = None, **fields: Any) -> ForwardBatch:
    """A request for one video."""
    return ForwardBatch(
        prompts=[CAT], negative_prompts=[""], sampling=SFWanSampling(**small(**fields)), control=control or Control()
    )


def test_chunks_are_the_video(pipeline: ComposedPipelineBase) -> None:
    chunks = list(pipeline.stream(batch_of(num_frames=33)))
    assert [chunk.shape[2] for chunk in chunks] == [9, 12, 12]
    whole = pipeline.forward(batch_of(num_frames=33)).video
    assert whole is not None
    assert torch.equal(torch.cat(chunks, dim=2), whole)


def test_a_longer_video_begins_as_a_shorter_one(pipeline: ComposedPipelineBase) -> None:
    longer = torch.cat(list(pipeline.stream(batch_of(num_frames=33))), dim=2)
    shorter = torch.cat(list(pipeline.stream(batch_of(num_frames=21))), dim=2)
    assert torch.equal(longer[:, :, :21], shorter)


def test_a_chunk_comes_before_the_next_is_computed(pipeline: ComposedPipelineBase) -> None:
    seen: list[Progress] = []
    stream = pipeline.stream(batch_of(Control(report=seen.append), num_frames=33))
    for number in range(3):
        next(stream)
        last = seen[-1]
        # four steps of this chunk, and of those before five: decoding counts as one
        assert (last.stage, last.step, last.total) == ("denoising", 5 * number + 4, 15)
    assert next(stream, None) is None
    assert seen[-1].step == 15


def test_block_runs(pipeline: ComposedPipelineBase) -> None:
    runs = pipeline.forward(batch_of(num_frames=33)).block_runs
    # 3 layers; a pass for each step, and one that fills the memory after each chunk but the last
    assert runs == (3 * (4 * 3 + 2), 0)


def test_cancelling_ends_a_stream(pipeline: ComposedPipelineBase) -> None:
    control = Control()
    stream = pipeline.stream(batch_of(control, num_frames=33))
    first = next(stream)
    control.cancel.cancel()
    with pytest.raises(Cancelled):
        next(stream)
    assert torch.equal(next(pipeline.stream(batch_of(num_frames=33))), first)


def test_previews(pipeline: ComposedPipelineBase) -> None:
    seen: list[Progress] = []
    pipeline.forward(batch_of(Control(report=seen.append, preview_every=2), num_frames=21))
    drawn = {progress.step for progress in seen if progress.preview is not None}
    assert drawn == {2, 4, 6, 8}
    shapes = {progress.preview.shape for progress in seen if progress.preview is not None}
    assert shapes == {(32, 48, 3)}


def test_other_pipelines_do_not_stream(dmd_repo: Path) -> None:
    with pytest.raises(ValueError, match="stream: WanDMDPipeline makes all frames at once; use generate_video"):
        next(load(dmd_repo).stream(batch_of()))


@pytest.mark.parametrize(
    ("media", "fields", "message"),
    [
        ({}, {"num_frames": 81 - 4}, "num_frames=77: must be 12k-3, as the model makes 3 latent .*; try 69 or 81"),
        ({}, {"num_frames": 5}, "num_frames=5: must be 12k-3, .*; try 9$"),
        ({}, {"num_frames": 10}, r"num_frames=10: must be 4k\+1; try 9 or 13"),
        ({}, {"num_frames": 4101}, "num_frames=4101: this model has places for 1023 latent frames; try 4089"),
        ({}, {"num_inference_steps": 50}, "num_inference_steps=50: this model is distilled for 4 steps; set it to 4"),
        ({}, {"guidance_scale": 5.0}, "guidance_scale=5.0: this model has guidance in its weights; set it to 1"),
        ({}, {"cache": "fbcache"}, "cache='fbcache': the steps of a chunk are too few to skip one"),
        ({"image": picture(8, 8)}, {}, "image: this model takes none"),
    ],
)
def test_a_bad_request_is_one_line(
    pipeline: ComposedPipelineBase, media: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ours(pipeline, [CAT], [""], media, **small(**fields))
    assert "\n" not in str(caught.value)
