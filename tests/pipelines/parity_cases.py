"""What `docs/parity.md` compares: each pipeline of the package, a small repo of it, and requests of odd sizes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests import causal_repos, few_step_repos, fun_repos, tiny_repos
from tests.pipelines import causal_published, fun_published, rcm_published, wan_pairs
from tests.pipelines.wan_pairs import CAT, film, picture

Request = tuple[dict[str, Any], dict[str, Any]]
"""The media of a request, and its sampling fields."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One pipeline."""

    name: str
    family: str
    title: str
    make: Callable[[Path], Path]
    """Writes the repo."""
    requests: tuple[Request, ...]
    against: str
    """What it is compared with, for the table."""
    reference_class: str | None = None
    """Of `diffusers`, where the index names another one."""
    published: Callable[[Any, dict[str, Any], dict[str, Any]], torch.Tensor] | None = None
    """The published algorithm, of the reference's models, the fields of a request and its media, where `diffusers` has
    none."""
    load: Callable[[Path], Any] | None = None
    """Loads the reference's models, where no pipeline of `diffusers` can."""
    components_of: Callable[[Path], Path] = lambda repo: repo
    """Where the models are that are compared one by one: another repo with the same, where the reference cannot read
    those of the first."""
    without: tuple[str, ...] = field(default=())
    """Sampling fields that the reference takes from elsewhere."""


def pixel_error(case: Case, repo: Path, request: Request) -> float:
    """The largest difference of any pixel."""
    media, fields = request[0], wan_pairs.request(**request[1])
    mine = wan_pairs.ours(_ours(repo), [CAT], ["blurry low"], media, **fields)
    reference = _theirs(repo, case.reference_class) if case.load is None else case.load(repo)
    if case.published is not None:
        expected = case.published(reference, fields, media)
    else:
        left = {name: value for name, value in fields.items() if name not in case.without}
        expected = wan_pairs.theirs(reference, CAT, "blurry low", **media, **left)
    return wan_pairs.difference(mine, expected)


@cache
def _ours(repo: Path) -> Any:
    return wan_pairs.load(repo)


@cache
def _theirs(repo: Path, class_name: str | None) -> Any:
    return wan_pairs.load_reference(repo, class_name)


def distilled(
    reference: Any, fields: dict[str, Any], media: dict[str, Any], prompts: Sequence[str] = (CAT,)
) -> torch.Tensor:
    """DMD2 (arXiv 2405.14867), section 4.4: three times the data is predicted, and twice noised again.

    The noise levels are those of the flow-match Euler scheduler of `diffusers`, shifted by 8, which the authors use.
    Videos [B, 3, T, H, W] in [0, 1], one of each prompt.
    """
    from diffusers import FlowMatchEulerDiscreteScheduler
    from diffusers.video_processor import VideoProcessor

    scheduler, vae = FlowMatchEulerDiscreteScheduler(shift=8.0), reference.vae
    space = vae.config.scale_factor_spatial
    size = ((fields["num_frames"] - 1) // 4 + 1, fields["height"] // space, fields["width"] // space)
    generator = torch.Generator("cpu").manual_seed(fields["seed"])
    latents = torch.randn(len(prompts), vae.config.z_dim, *size, generator=generator)
    steps = torch.tensor([1000, 757, 522])
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    with torch.no_grad():
        text = reference.encode_prompt(list(prompts), do_classifier_free_guidance=False, max_sequence_length=512)[0]
        # a given image is the first latent frame, whose tokens are at timestep 0
        unknown = torch.ones(1, 1, *size)
        known = torch.zeros(1, vae.config.z_dim, 1, *size[1:])
        if "image" in media:
            unknown[:, :, 0] = 0
            shown = VideoProcessor(vae_scale_factor=space).preprocess(media["image"], fields["height"], fields["width"])
            known = (vae.encode(shown.unsqueeze(2)).latent_dist.mode() - mean) / std
        for number, step in enumerate(steps):
            level = scheduler.sigmas[(scheduler.timesteps - step).abs().argmin()].double()
            latents = (1 - unknown) * known + unknown * latents
            times = step.expand(len(prompts))
            if "image" in media:
                times = (unknown[0, 0, :, ::2, ::2] * step).flatten().expand(len(prompts), -1)
            velocity = reference.transformer(latents, times, text, return_dict=False)[0]
            data = (latents.double() - level * velocity.double()).float()
            if number < len(steps) - 1:
                following = (scheduler.timesteps - steps[number + 1]).abs().argmin()
                noise = torch.randn(latents.shape, generator=generator)
                latents = scheduler.scale_noise(data, scheduler.timesteps[following : following + 1], noise)
        data = (1 - unknown) * known + unknown * data
        video: torch.Tensor = vae.decode(data * std + mean, return_dict=False)[0]
    return (video / 2 + 0.5).clamp(0, 1)


def _causal(path: Path) -> Path:
    return causal_repos.make_causal_repo(path, sliding_window_num_frames=6, sink_size=1)


def _causal_i2v(path: Path) -> Path:
    return causal_repos.make_causal_repo(path, sliding_window_num_frames=6, sink_size=1, independent_first_frame=True)


def _dmd(path: Path, make: Callable[[Path], Path] = tiny_repos.make_wan_repo) -> Path:
    source = make(path.with_name(f"{path.name}-source"))
    return tiny_repos.make_renamed_repo(path, source, "WanDMDPipeline")


TALL: dict[str, Any] = {"height": 48, "width": 16, "num_frames": 5, "num_inference_steps": 5, "seed": 9}
WIDE: dict[str, Any] = {"height": 16, "width": 80, "num_frames": 13, "guidance_scale": 1.0}
LARGE: dict[str, Any] = {"height": 64, "width": 96}
NARROW: dict[str, Any] = {"height": 96, "width": 32, "num_frames": 5, "guidance_scale": 1.0, "seed": 9}
THREE_STEPS: dict[str, Any] = {"num_inference_steps": 3, "guidance_scale": 1.0}


def fun_case(kind: str, title: str, *requests: Request) -> Case:
    """A model of VideoX-Fun; those of 2.1 have an image encoder."""
    return Case(
        name=f"fun-{kind}", family="Wan 2.1" if kind in ("inp", "control") else "Wan 2.2", title=title,
        make=lambda path: fun_repos.make_fun_repo(path, kind), load=lambda repo: fun_published.Models(repo, kind),
        published=fun_published.published, requests=requests, against="the published algorithm",
        # diffusers translates the names of a 2.2 VAE in the authors' format for the published sizes alone
        components_of=fun_repos.source_of if kind.startswith("5b") else lambda repo: repo,
    )  # fmt: skip


def shown(**media: Any) -> tuple[Request, ...]:
    """Requests in three sizes with the same media, a video cut to their length."""
    requests: list[Request] = []
    for fields in ({}, TALL, WIDE):
        frames = fields.get("num_frames", 9)
        cut = {name: value[:frames] if name == "video" else value for name, value in media.items()}
        requests.append((cut, dict(fields)))
    return tuple(requests)


def animated(frames: int) -> dict[str, Any]:
    """An image, poses and a face."""
    return {"image": picture(61, 45), "pose_video": film(50, 33, frames), "face_video": film(21, 24, frames, seed=5)}


IMAGE, LAST, VIDEO = picture(61, 45), picture(30, 77, seed=4), film(61, 45, 13)
CASES: tuple[Case, ...] = (
    Case(
        name="t2v", family="Wan 2.1", title="text to video", make=tiny_repos.make_wan_repo,
        requests=shown(), against="WanPipeline",
    ),
    Case(
        name="euler", family="Wan 2.1", title="text to video, Euler",
        make=lambda path: tiny_repos.make_wan_repo(path, scheduler="euler"),
        requests=shown(), against="WanPipeline",
    ),
    Case(
        name="v2v", family="Wan 2.1", title="video to video", make=tiny_repos.make_wan_repo,
        requests=shown(video=VIDEO), against="WanVideoToVideoPipeline", reference_class="WanVideoToVideoPipeline",
        without=("num_frames",),
    ),
    Case(
        name="i2v", family="Wan 2.1", title="image to video", make=tiny_repos.make_i2v_repo,
        requests=shown(image=IMAGE), against="WanImageToVideoPipeline",
    ),
    Case(
        name="flf2v", family="Wan 2.1", title="first and last frame to video",
        make=lambda path: tiny_repos.make_i2v_repo(path, last=True),
        requests=shown(image=IMAGE, last_image=LAST), against="WanImageToVideoPipeline",
    ),
    Case(
        name="vace", family="Wan 2.1", title="VACE", make=tiny_repos.make_vace_repo,
        requests=(
            ({"reference_images": [IMAGE, LAST]}, {}),
            ({"video": film(16, 48, 5), "mask": [picture(16, 48, seed=n) for n in range(5)]}, TALL),
            ({"video": film(80, 16, 13), "reference_images": [IMAGE]}, WIDE),
        ),
        against="WanVACEPipeline",
    ),
    Case(
        name="22-vace", family="Wan 2.2", title="VACE, two transformers",
        make=lambda path: tiny_repos.make_vace_repo(path, two=True),
        requests=(
            ({"reference_images": [IMAGE, LAST]}, {"guidance_scale_2": 2.0, "num_inference_steps": 6}),
            ({"video": film(16, 48, 5), "mask": [picture(16, 48, seed=n) for n in range(5)]}, TALL),
            ({"video": film(80, 16, 13), "reference_images": [IMAGE]}, WIDE),
        ),
        against="WanVACEPipeline",
    ),
    Case(
        name="22-t2v", family="Wan 2.2", title="text to video, two transformers", make=tiny_repos.make_wan22_repo,
        requests=(({}, {"guidance_scale_2": 2.0, "num_inference_steps": 6}), ({}, TALL), ({}, WIDE)),
        against="WanPipeline",
    ),
    Case(
        name="22-i2v", family="Wan 2.2", title="image to video, two transformers",
        make=lambda path: tiny_repos.make_wan22_repo(path, images=True),
        requests=(
            ({"image": IMAGE}, {"guidance_scale_2": 2.0, "num_inference_steps": 6}),
            ({"image": IMAGE, "last_image": LAST}, TALL), ({"image": IMAGE}, WIDE),
        ),
        against="WanImageToVideoPipeline",
    ),
    Case(
        name="ti2v-text", family="Wan 2.2", title="text and image to video: text", make=tiny_repos.make_ti2v_repo,
        requests=(({}, LARGE), ({}, NARROW)), against="WanPipeline",
    ),
    Case(
        name="ti2v-image", family="Wan 2.2", title="text and image to video: image", make=tiny_repos.make_ti2v_repo,
        requests=(({"image": IMAGE}, LARGE), ({"image": IMAGE}, NARROW)), against="WanImageToVideoPipeline",
        reference_class="WanImageToVideoPipeline",
    ),
    Case(
        name="lucy", family="Wan 2.2", title="Lucy Edit", make=tiny_repos.make_lucy_repo,
        requests=(({"video": VIDEO[:9]}, LARGE), ({"video": VIDEO[:5]}, NARROW)), against="LucyEditPipeline",
    ),
    Case(
        name="animate", family="Wan 2.2", title="Animate", make=tiny_repos.make_animate_repo,
        requests=(
            (animated(9), {"segment_frame_length": 9}),
            (animated(5), {**TALL, "segment_frame_length": 5, "num_inference_steps": 2}),
            (
                {**animated(12), "background_video": film(80, 16, 12), "mask_video": film(80, 16, 12, seed=9)},
                {**WIDE, "num_frames": 12, "segment_frame_length": 5, "mode": "replace"},
            ),
        ),
        against="WanAnimatePipeline", without=("num_frames",),
    ),
    Case(
        name="dmd", family="Wan 2.1", title="three steps (DMD)", make=_dmd,
        requests=tuple(({}, {**fields, **THREE_STEPS}) for fields in ({}, TALL, WIDE)),
        against="the published algorithm", published=distilled, reference_class="WanPipeline",
    ),
    Case(
        name="causal", family="Wan 2.1", title="chunk by chunk (Self-Forcing)", make=_causal,
        requests=tuple(
            ({}, {**fields, "num_frames": frames, "num_inference_steps": 4, "guidance_scale": 1.0})
            for fields, frames in (({}, 9), (TALL, 21), (WIDE, 45))
        ),
        against="the published algorithm", published=causal_published.published, load=causal_published.load_models,
    ),
    Case(
        name="causal-i2v", family="Wan 2.1", title="chunk by chunk from a first frame", make=_causal_i2v,
        requests=tuple(
            (media, {**fields, "num_frames": frames, "num_inference_steps": 4, "guidance_scale": 1.0})
            for media, fields, frames in (({"image": IMAGE}, {}, 25), ({"image": LAST}, TALL, 13), ({}, WIDE, 37))
        ),
        against="the published algorithm", published=causal_published.published, load=causal_published.load_models,
    ),
    Case(
        name="dmd-ti2v", family="Wan 2.2", title="three steps (DMD) from an image",
        make=lambda path: _dmd(path, tiny_repos.make_ti2v_repo),
        requests=tuple(({"image": IMAGE}, {**fields, **THREE_STEPS}) for fields in (LARGE, NARROW)),
        against="the published algorithm", published=distilled, reference_class="WanPipeline",
    ),
    Case(
        name="rcm", family="Wan 2.1", title="one to four steps (rCM)", make=few_step_repos.make_rcm_repo,
        requests=tuple(
            ({}, {**fields, "num_inference_steps": steps, "guidance_scale": 1.0})
            for fields, steps in (({}, 4), (TALL, 2), (WIDE, 1))
        ),
        against="the published algorithm", published=rcm_published.published,
        load=lambda repo: wan_pairs.load_reference(few_step_repos.source_of(repo)),
    ),
    Case(
        name="rcm-i2v", family="Wan 2.2", title="image to video in one to four steps (rCM)",
        make=few_step_repos.make_rcm_i2v_repo,
        requests=tuple(
            (media, {**fields, "num_inference_steps": steps, "guidance_scale": 1.0})
            for media, fields, steps in (({"image": picture(48, 32)}, {}, 4), ({"image": picture(16, 48)}, TALL, 3))
        ),
        against="the published algorithm", published=rcm_published.published,
        load=lambda repo: wan_pairs.load_reference(few_step_repos.source_of(repo)),
    ),
    fun_case(
        "inp", "Fun InP", ({"image": IMAGE}, {}), ({"image": IMAGE, "last_image": LAST}, TALL), ({}, WIDE),
    ),
    fun_case(
        "control", "Fun Control", ({"video": VIDEO[:9], "image": IMAGE}, {}),
        ({"video": VIDEO[:5], "reference_images": [LAST]}, TALL), ({"reference_images": [IMAGE]}, WIDE),
    ),
    fun_case(
        "22-inp", "Fun InP, two transformers", ({"image": IMAGE}, {}), ({"image": IMAGE, "last_image": LAST}, TALL),
        ({}, WIDE),
    ),
    fun_case(
        "22-control", "Fun Control, two transformers", ({"video": VIDEO[:9], "image": IMAGE, "last_image": LAST}, {}),
        ({"video": VIDEO[:5], "reference_images": [LAST]}, TALL), ({"reference_images": [IMAGE]}, WIDE),
    ),
    fun_case(
        "5b-inp", "Fun InP, 5B", ({"image": IMAGE, "last_image": LAST}, LARGE), ({"image": IMAGE}, NARROW),
    ),
    fun_case(
        "5b-control", "Fun Control, 5B", ({"video": VIDEO[:9], "image": IMAGE, "reference_images": [LAST]}, LARGE),
        ({"video": VIDEO[:5], "image": IMAGE, "reference_images": [LAST]}, NARROW),
    ),
)  # fmt: skip
"""In the order of the table."""
