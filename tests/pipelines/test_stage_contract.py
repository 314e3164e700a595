"""Stages that do not connect are found when the pipeline is built."""

import pytest

from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch
from fastvideo.pipelines.stages.base import PipelineStage, check_connected


def stage(name: str, reads: tuple[str, ...] = (), writes: tuple[str, ...] = ()) -> PipelineStage:
    """A stage that does nothing."""

    def forward(self: PipelineStage, batch: ForwardBatch, args: FastVideoArgs) -> ForwardBatch:
        return batch

    members = {"name": name, "reads": reads, "writes": writes, "forward": forward}
    made: PipelineStage = type("Stage", (PipelineStage,), members)()
    return made


ENCODE = stage("encode", writes=("prompt_embeds",))
NOISE = stage("noise", reads=("sampling",), writes=("latents",))
DENOISE = stage("denoise", reads=("prompt_embeds", "latents"), writes=("latents",))
DECODE = stage("decode", reads=("latents",), writes=("video",))


def test_connected_stages_pass() -> None:
    check_connected((ENCODE, NOISE, DENOISE, DECODE))


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ((NOISE, DENOISE, DECODE), "stage 'denoise' reads 'prompt_embeds', which no stage writes"),
        (
            (NOISE, DENOISE, ENCODE, DECODE),
            "stage 'denoise' reads 'prompt_embeds', which 'encode' writes after it: move that one before it",
        ),
        ((stage("own", reads=("latents",), writes=("latents",)), DECODE), "'own' reads 'latents', which no stage"),
        ((ENCODE, NOISE, DENOISE), "no stage of 'encode', 'noise', 'denoise' writes 'video'"),
        ((NOISE, NOISE, DECODE), "stage 'noise' is in the pipeline twice"),
        ((stage("x", writes=("latnets",)), DECODE), "stage 'x' declares 'latnets'.*nearest is 'latents'"),
        ((NOISE, stage("x", reads=("timestep",)), DECODE), "stage 'x' declares 'timestep'.*nearest is 'timesteps'"),
        ((stage("x", writes=("sampling",)), NOISE, DECODE), "'x' writes 'sampling': no stage changes the request"),
    ],
)
def test_what_does_not_connect_is_refused(stages: tuple[PipelineStage, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_connected(stages)
