"""Animate against `diffusers.WanAnimatePipeline` on the same repo, request and seed, and its transformer by itself."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvideo.configs.models.dits.wananimate import WanAnimateArchConfig
from fastvideo.configs.sample import SamplingParam
from fastvideo.entrypoints.media_inputs import read_media
from fastvideo.models.dits.wananimate import FaceVideo
from fastvideo.models.loader.lora import LoraSet, load_adapter, transformers_of
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.pipelines.basic.wan.wan_animate_pipeline import WanAnimatePipeline, brightness, on_black
from fastvideo.pipelines.pipeline_batch_info import Control, ForwardBatch, Progress
from tests import loras, official_repos, tiny_repos
from tests.models import reference as components
from tests.pipelines.wan_pairs import CAT, LEVEL, difference, film, load, load_reference, ours, picture, request, theirs

Pair = tuple[WanAnimatePipeline, Any]


@pytest.fixture(scope="module")
def pair(animate_repo: Path) -> Pair:
    """Ours and the reference."""
    mine = load(animate_repo)
    assert isinstance(mine, WanAnimatePipeline)
    return mine, load_reference(animate_repo)


def animated(frames: int = 9) -> dict[str, Any]:
    """An image, poses and a face, each of a size of its own."""
    return {"image": picture(61, 45), "pose_video": film(50, 33, frames), "face_video": film(21, 24, frames, seed=5)}


def replaced(frames: int = 9) -> dict[str, Any]:
    """The same, and somebody to be replaced, with a coloured mask."""
    more = {"background_video": film(40, 30, frames, seed=7), "mask_video": film(40, 30, frames, seed=9)}
    return {**animated(frames), **more}


def small(**fields: Any) -> dict[str, Any]:
    """A small request, of one segment and two steps unless `fields` say otherwise."""
    return request(**{"num_inference_steps": 2, "segment_frame_length": 9, "mode": "animate", **fields})


def expected(reference: Any, media: dict[str, Any], **fields: Any) -> torch.Tensor:
    """The reference's video, which is as long as the poses."""
    assert len(media["pose_video"]) == fields.pop("num_frames")
    return theirs(reference, CAT, "blurry", **media, **fields)


@pytest.mark.parametrize(
    ("media", "fields"),
    [
        (animated(), {}),
        # three segments, the last one padded; of another form than the image
        (animated(12), {"num_frames": 12, "segment_frame_length": 5, "guidance_scale": 1.0, "height": 48, "width": 16}),
        (replaced(), {"mode": "replace", "guidance_scale": 1.0}),
        (
            replaced(15),
            {"mode": "replace", "num_frames": 15, "segment_frame_length": 13, "prev_segment_conditioning_frames": 5},
        ),
        (animated(3), {"num_frames": 3, "segment_frame_length": 5, "motion_encode_batch_size": 2}),
    ],
    ids=["animate", "segments", "replace", "replace-segments", "shorter-than-a-segment"],
)
def test_pixels_equal_the_reference(pair: Pair, media: dict[str, Any], fields: dict[str, Any]) -> None:
    fields = small(**fields)
    mine = ours(pair[0], [CAT], ["blurry"], media, **fields)
    assert mine.shape[2] == fields["num_frames"]
    assert difference(mine, expected(pair[1], media, **fields)) < LEVEL


@pytest.mark.parametrize("batch", [1, 2])
def test_the_transformer(animate_repo: Path, batch: int) -> None:
    mine = components.ours(animate_repo, "transformer")
    exact = components.theirs(animate_repo, "transformer")
    draws = torch.Generator().manual_seed(2)
    latents, pose = (torch.randn(batch, c, t, 6, 8, generator=draws) for c, t in ((36, 4), (16, 3)))
    face = torch.rand(batch, 3, 9, 16, 16, generator=draws) * 2 - 1
    timestep, text = torch.rand(batch, generator=draws) * 1000, torch.randn(batch, 512, 36, generator=draws)
    text[:, 20:], image = 0, torch.randn(batch, 5, 24, generator=draws)
    with torch.no_grad():
        reference = exact(latents, timestep, text, image, pose, face, return_dict=False)[0]
        seen = FaceVideo(face, at_once=4)
        shown = {"text": text[:, :20], "text_padding": 492, "image": image, "pose": pose, "face": seen}
        assert components.error(mine(latents, timestep, **shown), reference) < components.BOUND
        frames = face.transpose(1, 2).flatten(0, 1)
        assert components.error(mine.motion_encoder(frames), exact.motion_encoder(frames)) < components.BOUND
        # the face is looked at once: pixels that change afterwards are not seen
        seen.pixels = torch.zeros_like(face)
        assert components.error(mine(latents, timestep, **shown), reference) < components.BOUND
    with pytest.raises(ValueError, match=r"pose of \(2, 6, 8\): must be of the latents' \(4, 6, 8\), one frame fewer"):
        mine(latents, timestep, **{**shown, "pose": pose[:, :, 1:]})
    with pytest.raises(ValueError, match=r"face of .*: must be 9 frames of 16x16 for 3 latent frames"):
        mine(latents, timestep, **{**shown, "face": FaceVideo(face[:, :, 1:])})


def test_the_transformer_in_bf16(animate_repo: Path) -> None:
    exact = components.theirs(animate_repo, "transformer")
    mine, reference = (f(animate_repo, "transformer", torch.bfloat16) for f in (components.ours, components.theirs))
    assert mine.motion_encoder.directions.dtype == torch.float32
    made: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {"ours": [], "theirs": []}
    for seed in range(4):
        draws = torch.Generator().manual_seed(seed)
        latents, pose = (torch.randn(1, c, t, 6, 8, generator=draws) for c, t in ((36, 4), (16, 3)))
        face, timestep = torch.rand(1, 3, 9, 16, 16, generator=draws) * 2 - 1, torch.rand(1, generator=draws) * 1000
        text, image = torch.randn(1, 20, 36, generator=draws), torch.randn(1, 5, 24, generator=draws)
        text = torch.cat((text, torch.zeros(1, 492, 36)), dim=1)
        with torch.no_grad():
            whole = exact(latents, timestep, text, image, pose, face, return_dict=False)[0]
            given, text, image, pose, face = (x.bfloat16() for x in (latents, text, image, pose, face))
            theirs_ = reference(given, timestep, text, image, pose, face, return_dict=False)[0]
            shown = {"text": text[:, :20], "text_padding": 492, "image": image, "pose": pose, "face": FaceVideo(face)}
            made["ours"].append((mine(given, timestep, **shown), whole))
            made["theirs"].append((theirs_, whole))
    errors = {name: components.mean_square(pairs) for name, pairs in made.items()}
    assert errors["ours"] <= components.BF16_NOISE * errors["theirs"]


def test_an_official_folder_gives_the_same(tmp_path: Path) -> None:
    encoder = official_repos.OFFICIAL_ENCODER
    source = tiny_repos.make_animate_repo(
        # an official config does not say how many faces go through at once
        tmp_path / "source", image_encoder=encoder, transformer={"motion_encoder_batch_size": 8}
    )  # fmt: skip
    official = load(official_repos.make_official_animate_repo(tmp_path / "official", source))
    fields = small(num_frames=5, segment_frame_length=5, num_inference_steps=1)
    made = ours(official, [CAT], [""], animated(5), **fields)
    assert torch.equal(made, ours(load(source), [CAT], [""], animated(5), **fields))


@pytest.mark.parametrize("mode", ["animate", "replace"])
def test_what_is_known_of_a_segment_equals_the_reference(pair: Pair, mode: str) -> None:
    media = replaced() if mode == "replace" else animated()
    sampling = SamplingParam(height=32, width=48, num_frames=9)
    batch = ForwardBatch(prompts=[""], negative_prompts=[""], sampling=sampling, media=read_media(sampling, media))
    reference, size, cpu = pair[1], {"height": 32, "width": 48}, torch.device("cpu")
    clips = {
        name: processor.preprocess_video(media.get(name, media["pose_video"]), **size)
        for name, processor in (
            ("pose_video", reference.video_processor), ("background_video", reference.video_processor),
            ("mask_video", reference.video_processor_for_mask),
        )
    }  # fmt: skip
    pixels = reference.vae_image_processor.preprocess(media["image"], resize_mode="fill", **size)
    for before in (None, torch.rand(2, 3, 5, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1):
        count = 1 if before is None else len(before)
        with torch.no_grad():
            known = reference.prepare_prev_segment_cond_latents(
                before, clips["background_video"].expand(count, -1, -1, -1, -1), clips["mask_video"].expand(
                    count, -1, -1, -1, -1), batch_size=count, segment_frame_length=9, task=mode, device=cpu,
                start_frame=0 if before is None else 4, prev_segment_cond_frames=5, **size,
            )  # fmt: skip
            image = reference.prepare_reference_image_latents(
                pixels, batch_size=count, sample_mode="argmax", device=cpu
            )
            batch.before = before
            made = pair[0].beside(batch, cpu)
            assert components.error(made, torch.cat((image, known), dim=2)) < components.BOUND
            poses = reference.prepare_pose_latents(clips["pose_video"], sample_mode="argmax", device=cpu)
            assert components.error(pair[0].poses(batch, cpu), poses) < components.BOUND


def test_two_videos_each_go_on_from_their_own_frames(pair: Pair) -> None:
    fields = small(num_frames=9, segment_frame_length=5, num_inference_steps=1, guidance_scale=1.0)
    both = ours(pair[0], [CAT], [""], animated(), num_videos_per_prompt=2, **fields)
    reference = expected(pair[1], animated(), num_videos_per_prompt=2, **fields)
    assert difference(both, reference) < LEVEL
    assert both.shape[0] == 2


def test_progress_previews_and_times(pair: Pair) -> None:
    seen: list[Progress] = []
    fields = small(num_frames=9, segment_frame_length=5, guidance_scale=1.0, image_fit="stretch")
    sampling = SamplingParam(**fields)
    batch = ForwardBatch(
        prompts=[CAT], negative_prompts=[""], sampling=sampling, media=read_media(sampling, animated()),
        control=Control(report=seen.append, preview_every=1),
    )  # fmt: skip
    batch = pair[0].forward(batch)
    assert [p.step for p in seen if p.stage == "segments"] == [0, 1, 2]
    assert [p.step for p in seen if p.stage == "denoising"] == [0, 1, 2] * 2
    previews = [p.preview for p in seen if p.preview is not None]
    assert [one.shape for one in previews] == [(32, 48, 3)] * 2
    # of the video, and not of the image, which is the first of the latents
    assert batch.video is not None
    first = (batch.video[0, :, 0] * 255).permute(1, 2, 0).numpy()
    assert np.corrcoef(previews[0].flatten(), first.flatten())[0, 1] > 0.9
    assert {"media_encoding", "steering", "denoising", "decoding", "segments"} < set(batch.stage_times)
    assert batch.block_runs == (2 * 2 * 4, 0)


@pytest.mark.parametrize(
    "cache",
    ["fbcache", pytest.param("teacache", marks=pytest.mark.slow), pytest.param("magcache", marks=pytest.mark.slow)],
)
def test_step_caches(pair: Pair, cache: str) -> None:
    fields = small(num_frames=5, segment_frame_length=5, num_inference_steps=4, guidance_scale=1.0, cache=cache)
    fields["cache_coefficients"] = (1.0,) * 4 if cache == "magcache" else None
    exact = ours(pair[0], [CAT], [""], animated(5), **{**fields, "cache": "none", "cache_coefficients": None})
    assert torch.equal(ours(pair[0], [CAT], [""], animated(5), **fields, cache_threshold=0.0), exact)
    quick = ours(pair[0], [CAT], [""], animated(5), **fields, cache_threshold=9.0, cache_retention=0.0)
    assert float((quick - exact).abs().max()) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "most"),
    [
        ({"disk_offload": True}, 0.0),
        ({"disk_offload": True, "dit_layerwise_offload": True}, 0.0),
        # the rotation is in real numbers there: the same up to rounding
        ({"enable_torch_compile": True, "torch_compile_kwargs": {"backend": "eager"}}, 1e-5),
        (
            {
                "enable_torch_compile": True,
                "torch_compile_kwargs": {"backend": "eager", "fullgraph": True},
                "disk_offload": True,
                "dit_layerwise_offload": True,
            },
            1e-5,
        ),
    ],
    ids=["disk", "layers", "compiled", "compiled-layers"],
)
def test_offloaded_and_compiled(pair: Pair, animate_repo: Path, options: dict[str, Any], most: float) -> None:
    torch.compiler.reset()
    pipeline, fields = load(animate_repo, **options), small(num_frames=9, segment_frame_length=5)
    exact = ours(pair[0], [CAT], ["blurry"], animated(), **fields)
    assert difference(ours(pipeline, [CAT], ["blurry"], animated(), **fields), exact) <= most
    torch.compiler.reset()


@pytest.mark.slow
def test_quantized(pair: Pair, animate_repo: Path) -> None:
    pytest.importorskip("torchao", reason="needs the extra quant")
    pipeline, fields = load(animate_repo, quantization="int8"), small(num_frames=5, segment_frame_length=5)
    exact = ours(pair[0], [CAT], ["blurry"], animated(5), **fields)
    assert (
        0 < difference(ours(pipeline, [CAT], ["blurry"], animated(5), **fields), exact) < 0.011
    )  # twice what is measured


@pytest.mark.slow
def test_lora(animate_repo: Path, tmp_path: Path) -> None:
    """With the layers that look at the face, in the authors' spelling, where key and value are one matrix."""
    draws, state = torch.Generator().manual_seed(3), loras.comfy(loras.make_pairs(1, layers=4), alpha=None)
    for number in range(2):
        for name, wide in (("linear1_q", 60), ("linear1_kv", 120), ("linear2", 60)):
            layer = f"diffusion_model.face_adapter.fuser_blocks.{number}.{name}"
            state[f"{layer}.lora_down.weight"] = 0.3 * torch.randn(3, 60, generator=draws)
            state[f"{layer}.lora_up.weight"] = 0.3 * torch.randn(wide, 3, generator=draws)
    path = loras.write(tmp_path / "style.safetensors", state)
    adapter = load_adapter("style", path, transformers_of(resolve_repo(animate_repo)))
    assert adapter.not_applied == {}
    assert adapter.applied == len(state)
    pipeline, fields = load(animate_repo), small(num_frames=5, segment_frame_length=5, num_inference_steps=1)
    plain = ours(pipeline, [CAT], [""], animated(5), **fields)
    made = []
    for merged in (False, True):
        pipeline.adapt(LoraSet(((adapter, 0.7),), merged))
        made.append(ours(pipeline, [CAT], [""], animated(5), **fields))
    assert float((made[0] - plain).abs().max()) > LEVEL
    assert float((made[0] - made[1]).abs().max()) < 2e-5


def test_the_image_and_the_mask_are_those_of_the_reference(pair: Pair) -> None:
    for width, height in ((61, 45), (20, 90), (48, 32)):
        image = picture(width, height)
        pixels = pair[1].vae_image_processor.preprocess(image, height=32, width=48, resize_mode="fill")[0]
        assert torch.equal(on_black(torch.from_numpy(np.array(image)), 32, 48), pixels)
    mask = film(48, 32, 3, seed=9)
    grey = pair[1].video_processor_for_mask.preprocess_video(mask, height=32, width=48)[0, 0]
    shown = torch.stack([torch.from_numpy(np.array(frame)) for frame in mask]).permute(3, 0, 1, 2) / 127.5 - 1
    assert torch.equal(brightness(shown), grey)


@pytest.mark.parametrize(
    ("media", "fields", "message"),
    [
        (
            {"pose_video": None},
            {},
            "pose_video: this model needs one; give pose_video=..., pose_video_path or its flag",
        ),
        ({"face_video": None}, {}, "face_video: this model needs one"),
        ({"image": None}, {}, "image: this model needs one"),
        ({"pose_video": film(8, 8, 4)}, {}, "pose_video: has 4 frames, num_frames=9 asks for more; set num_frames to"),
        ({"face_video": film(8, 8, 8)}, {}, "face_video: has 8 frames, num_frames=9 asks for more"),
        ({}, {"mode": "replace"}, "mode='replace': needs background_video and mask_video; give background_video too"),
        ({"background_video": film(8, 8, 9)}, {"mode": "replace"}, "mode='replace': needs .*; give mask_video too"),
        ({"background_video": film(8, 8, 9)}, {}, "background_video='...': does nothing with mode='animate'; set mode"),
        ({"mask_video": film(8, 8, 9)}, {}, "mask_video: without background_video; give background_video too"),
        (
            {"background_video": film(8, 8, 9), "mask_video": film(8, 9, 9)},
            {"mode": "replace"},
            "mask_video='8x9': must be of background_video's size, '?8x8",
        ),
        ({}, {"mode": "dance"}, "mode='dance': must be one of animate, replace"),
        ({}, {"segment_frame_length": 8}, r"segment_frame_length=8: must be 4k\+1; try 5 or 9"),
        (
            {},
            {"segment_frame_length": 1},
            "segment_frame_length=1: must be more than prev_segment_conditioning_frames=1",
        ),
        ({}, {"prev_segment_conditioning_frames": 2}, "prev_segment_conditioning_frames=2: must be 1 or 5"),
        ({}, {"motion_encode_batch_size": 0}, "motion_encode_batch_size=0: must be a whole number, at least 1"),
        ({}, {"height": 40}, "height=40: must be a multiple of 16"),
        ({"video": film(8, 8, 9)}, {}, "video: this model takes none"),
    ],
)
def test_a_bad_request_is_one_line(pair: Pair, media: dict[str, Any], fields: dict[str, Any], message: str) -> None:
    given = {name: value for name, value in {**animated(), **media}.items() if value is not None}
    with pytest.raises(ValueError, match=message) as caught:
        ours(pair[0], [CAT], [""], given, **small(**fields))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_layers": 41}, "inject_face_latents_blocks=5: must divide num_layers=41"),
        ({"in_channels": 16}, "in_channels=16: must be 2 . latent_channels . 4, 36"),
        ({"motion_encoder_size": 500}, "motion_encoder_size=500: must be a power of 2"),
        ({"motion_encoder_channel_sizes": {"4": 9}}, "motion_encoder_size=512: .* with motion_encoder_channel_sizes"),
        ({"motion_encoder_channel_sizes": {"4": "9"}}, "'motion_encoder_channel_sizes'={'4': '9'}: must be"),
        ({"patch_size": [2, 2, 2]}, r"patch_size=\[2, 2, 2\]: must be of one frame"),
    ],
)
def test_configs_that_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        WanAnimateArchConfig.from_dict(fields)


def test_the_published_sizes() -> None:
    arch = WanAnimateArchConfig.from_dict({"motion_encoder_channel_sizes": None})
    assert arch.motion_channels == (32, 64, 128, 256, 512, 512, 512, 512)
    assert dataclasses.asdict(arch)["motion_encoder_channel_sizes"] is None
