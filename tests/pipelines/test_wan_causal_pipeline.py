"""Video chunk by chunk, against the published algorithm restated without a cache: the whole clip at each step."""

from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.configs.registry import entry_for
from fastvideo.configs.sample.wan import SFWanSampling
from fastvideo.entrypoints.media_inputs import read_media
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.pipelines.pipeline_batch_info import Cancelled, Control, ForwardBatch, Progress
from tests import causal_repos, few_step_repos
from tests.pipelines.causal_published import load_models, published
from tests.pipelines.wan_pairs import CAT, LEVEL, difference, film, load, ours, picture, request


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
    expected = published(load_models(causal_repo), small(**fields), {})
    assert difference(ours(pipeline, [CAT], [""], {}, **small(**fields)), expected) < LEVEL


def test_going_on_from_frames(pipeline: ComposedPipelineBase, causal_repo: Path) -> None:
    # two chunks, all of which but the sink have left the window when the third is done
    media, fields = {"start_video": film(48, 32, 21)}, small(num_frames=33)
    expected = published(load_models(causal_repo), fields, media)
    assert difference(ours(pipeline, [CAT], [""], media, **fields), expected) < LEVEL


def test_two_prompts_and_the_published_window(tmp_path: Path) -> None:
    # the class of the other transformer in the index means the same model, as its weights do
    repo = causal_repos.make_causal_repo(tmp_path / "repo", seed=2, index_class="WanTransformer3DModel")
    prompts, fields = [CAT, "a blue star"], small(num_frames=33)
    expected = published(load_models(repo), fields, {}, prompts)
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
        ({"start_video": film(48, 32, 8)}, {}, "start_video=8: must be 12k-3, .*; give frames, its last ones: 9$"),
        ({"start_video": film(48, 32, 9)}, {}, "start_video: has at least 9 frames, so nothing .*; set num_frames"),
    ],
)
def test_a_bad_request_is_one_line(
    pipeline: ComposedPipelineBase, media: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        ours(pipeline, [CAT], [""], media, **small(**fields))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def from_frames(causal_i2v_repo: Path) -> ComposedPipelineBase:
    """Ours, of a model whose first frame is a chunk of its own."""
    return load(causal_i2v_repo)


def test_the_given_first_frame_is_a_chunk(from_frames: ComposedPipelineBase) -> None:
    batch = batch_of(num_frames=25)
    media = read_media(batch.sampling, {"image": picture(48, 32)})
    shown = ForwardBatch(
        prompts=batch.prompts, negative_prompts=batch.negative_prompts, sampling=batch.sampling, media=media
    )
    chunks = list(from_frames.stream(shown))
    assert [chunk.shape[2] for chunk in chunks] == [1, 12, 12]
    assert [chunk.shape[2] for chunk in from_frames.stream(batch)] == [1, 12, 12]
    # 3 layers; four steps for each chunk that is made, and a pass after each but the last
    assert shown.block_runs == (3 * (4 * 2 + 2), 0)


def test_going_on_where_the_first_frame_is_a_chunk(from_frames: ComposedPipelineBase, causal_i2v_repo: Path) -> None:
    media, fields = {"start_video": film(48, 32, 13)}, small(num_frames=25)
    expected = published(load_models(causal_i2v_repo), fields, media)
    assert difference(ours(from_frames, [CAT], [""], media, **fields), expected) < LEVEL


@pytest.mark.parametrize(
    ("media", "fields", "message"),
    [
        ({"start_video": film(48, 32, 9)}, {"num_frames": 25}, r"start_video=9: must be 12k\+1, .*: 1 or 13"),
        ({"start_video": film(8, 8, 1), "image": picture(8, 8)}, {"num_frames": 13}, "start_video: .* image already"),
        ({"image": picture(8, 8)}, {"num_frames": 9}, r"num_frames=9: must be 12k\+1, .*; try 1 or 13"),
        ({"last_image": picture(8, 8)}, {"num_frames": 13}, "last_image: this model takes none"),
    ],
)
def test_a_bad_request_with_a_first_frame(
    from_frames: ComposedPipelineBase, media: dict[str, Any], fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ours(from_frames, [CAT], [""], media, **small(**fields))


def test_a_checkpoint_of_the_authors(official_repo: Path, wan_repo: Path, tmp_path: Path) -> None:
    # the averaged weights of a file that holds three sets of them
    repo = few_step_repos.make_self_forcing_repo(tmp_path / "repo", official_repo)
    assert entry_for(repo).name == "self-forcing-t2v"
    expected = published(load_models(wan_repo), small(), {})
    assert difference(ours(load(repo), [CAT], [""], {}, **small()), expected) < LEVEL
