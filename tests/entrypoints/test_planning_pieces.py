"""Planning of models that make a video in segments, or chunk by chunk."""

from pathlib import Path
from typing import Any

import pytest

from fastvideo import PipelineConfig, SamplingParam
from fastvideo.entrypoints.planning.dry import DryPipeline
from fastvideo.entrypoints.planning.forecast import Cost, costs_of
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.utils import resolve


def costs_by_name(repo: Path, **fields: Any) -> list[Cost]:
    """The stages of a small video of `repo`, counted."""
    found = resolve_repo(repo)
    given = resolve(found.entry.sampling)(**{"height": 64, "width": 96, **fields})
    return costs_of(found, resolve(found.entry.pipeline_config)(), given, on_cpu=False)[1]


@pytest.mark.slow
def test_segments_are_planned(animate_repo: Path) -> None:
    segment = {"segment_frame_length": 17, "num_inference_steps": 2}
    one, two = (
        {cost.name: cost for cost in costs_by_name(animate_repo, num_frames=frames, guidance_scale=scale, **segment)}
        for frames, scale in ((17, 1.0), (33, 3.0))
    )
    assert list(one) == ["text_encoding", "image_encoding", "media_encoding", "denoising", "decoding", "saving"]
    for name, times in (("media_encoding", 2), ("denoising", 4), ("decoding", 2)):
        assert two[name].flops == times * one[name].flops > 0  # with guidance a blank face is looked at as well
        assert two[name].held == pytest.approx(one[name].held, rel=0.02)  # what is kept is made by the first
        assert (one[name].visits, two[name].visits) == (1, 2)
    assert (one["denoising"].passes, two["denoising"].passes) == (2, 8)
    # while the second segment is made, the first one's frames are there, and all of both clips that are shown
    frame, face = 3 * 64 * 96, 3 * 16 * 16
    assert one["denoising"].frames == 0
    assert two["denoising"].frames == 33 * (2 * frame + frame + face)
    dry = DryPipeline(resolve_repo(animate_repo), PipelineConfig())
    assert dry.media == ("image", "pose_video", "face_video")
    # what the face is made into stays for all steps
    text = dry.embed(1)
    size = dry.latents_of(SamplingParam(height=64, width=96, num_frames=17))
    shown = dry.shown(SamplingParam(height=64, width=96, num_frames=17))
    model, works = dry.picked(SamplingParam(num_inference_steps=1))[1][0], []
    for times in (1, 2, 3):
        with dry.counted() as trace:
            dry.predict(model, 500.0, size, text, shown, times=times)
        works.append(trace.total)
    assert works[2] - works[1] == works[1] - works[0] < works[0]


def test_chunks_are_planned(causal_repo: Path) -> None:
    # the window is of two chunks: from the second on all see as much
    counts = [costs_by_name(causal_repo, num_frames=frames) for frames in (9, 21, 33)]
    passes = [{cost.components: cost for cost in costs}["transformer",] for costs in counts]
    assert [cost.passes for cost in passes] == [4, 9, 14]
    assert [cost.visits for cost in passes] == [1, 2, 3]
    # four steps of the first chunk and a pass when it is done; from then on each of the five sees as much
    assert passes[2].flops - passes[1].flops > passes[1].flops - passes[0].flops > passes[0].flops
    # and hold no more, but for the frames
    assert passes[2].held == pytest.approx(passes[1].held, rel=0.02)
    assert passes[1].held > passes[0].held
    decoding = [{cost.components: cost for cost in costs}["vae",] for costs in counts]
    assert decoding[2].flops == 3 * decoding[0].flops
    assert decoding[2].held == pytest.approx(decoding[1].held, rel=0.02)
    video = 4 * 3 * 64 * 96
    assert [cost.frames for cost in decoding] == [video * frames for frames in (9, 21, 33)]


def test_what_a_memory_takes_is_counted_in_all_layers(causal_repo: Path) -> None:
    repo = resolve_repo(causal_repo)
    config = resolve(repo.entry.pipeline_config)()
    dry = DryPipeline(repo, config)
    text, (model,) = dry.embed(1), set(dry.picked(SamplingParam(num_inference_steps=4))[1])
    with dry.counted():
        memory = dry.memory(model, 500.0, (16, 3, 8, 12), text, 12)
    assert memory is not None
    assert memory.nbytes == 3 * 2 * 6 * (4 * 6) * 60 * 2  # layers, keys and values, frames, tokens, width, bf16
    assert memory.start == 3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["causal_repo", "animate_repo"])
def test_pieces_are_rehearsed(name: str, request: pytest.FixtureRequest) -> None:
    repo = resolve_repo(request.getfixturevalue(name))
    small = resolve(repo.entry.sampling)(height=64, width=96, num_frames=21)
    found = costs_of(repo, resolve(repo.entry.pipeline_config)(), small, on_cpu=True)[1]
    assert all(cost.held > 0 for cost in found)
    assert all(cost.seconds and cost.seconds > 0 for cost in found[:-1])
