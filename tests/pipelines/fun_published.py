"""The pipelines of VideoX-Fun, restated step by step with the models of `diffusers` and `transformers`.

Sources: `videox_fun/pipeline/pipeline_wan_fun_inpaint.py`, `pipeline_wan_fun_control.py`,
`pipeline_wan2_2_fun_inpaint.py` and `pipeline_wan2_2_fun_control.py`, with `examples/wan2.1_fun` and
`examples/wan2.2_fun`, which say how images and videos are scaled.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from tests.fun_repos import KINDS, reference_weights, source_of
from tests.pipelines.wan_pairs import CAT


class Models:
    """Of a folder that `make_fun_repo` wrote."""

    def __init__(self, repo: Path, kind: str) -> None:
        from diffusers import AutoencoderKLWan, FlowMatchEulerDiscreteScheduler, WanPipeline, WanTransformer3DModel
        from transformers import AutoTokenizer, CLIPVisionModel, UMT5EncoderModel

        source = source_of(repo)
        self.kind, self.fun = kind, KINDS[kind]
        self.vae = AutoencoderKLWan.from_pretrained(source, subfolder="vae").eval()
        self.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
        self.text = WanPipeline(
            tokenizer=AutoTokenizer.from_pretrained(source / "tokenizer"),
            text_encoder=UMT5EncoderModel.from_pretrained(source / "text_encoder").eval(),
            transformer=None, vae=self.vae, scheduler=None,
        )  # fmt: skip
        self.transformers = {
            name: WanTransformer3DModel.from_pretrained(source, subfolder=name).eval()
            for name in ("transformer", "transformer_2") if (source / name).is_dir()
        }  # fmt: skip
        self.clip = None
        if (source / "image_encoder").is_dir():
            self.clip = CLIPVisionModel.from_pretrained(source / "image_encoder").eval()

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Latents of a video [1, 3, T, H, W] in [-1, 1]."""
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (self.vae.config.latents_mean, self.std))
        latents: torch.Tensor = (self.vae.encode(video).latent_dist.mode() - mean) / std
        return latents

    @property
    def std(self) -> list[float]:
        values: list[float] = self.vae.config.latents_std
        return values

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """The video in [0, 1]."""
        mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (self.vae.config.latents_mean, self.std))
        video: torch.Tensor = self.vae.decode(latents * std + mean, return_dict=False)[0]
        return (video / 2 + 0.5).clamp(0, 1)

    def see(self, image: Image.Image | None) -> torch.Tensor:
        """What the image encoder sees: the image squeezed into a square; zeros without one."""
        assert self.clip is not None
        shown = Image.new("RGB", (64, 64)) if image is None else image
        pixels = torch.from_numpy(np.array(shown)).permute(2, 0, 1)[None] / 255 * 2 - 1
        pixels = F.interpolate(pixels, (224, 224), mode="bicubic", align_corners=False) * 0.5 + 0.5
        mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
        std = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
        states: torch.Tensor = self.clip((pixels - mean) / std, output_hidden_states=True).hidden_states[-2]
        return torch.zeros_like(states) if image is None else states

    def predict(
        self, name: str, x: torch.Tensor, times: torch.Tensor, text: torch.Tensor, **given: Any
    ) -> torch.Tensor:
        """The velocity; with a reference, whose patches are a frame in front of the others."""
        transformer, reference = self.transformers[name], given.get("reference")
        states = None if given.get("image") is None else given["image"].expand(len(x), -1, -1)
        if reference is None:
            plain: torch.Tensor = transformer(x, times, text, states, return_dict=False)[0]
            return plain
        weights = reference_weights(self.kind, name)
        first = F.conv2d(reference, weights["ref_conv.weight"], weights["ref_conv.bias"], stride=2).unsqueeze(2)

        def in_front(module: Any, inputs: Any, patches: torch.Tensor) -> torch.Tensor:
            return torch.cat((first.expand(len(x), -1, -1, -1, -1), patches[:, :, 1:]), dim=2)

        if times.ndim > 1:
            times = torch.cat((times[:, -1:].expand(-1, first[0, 0].numel()), times), dim=1)
        hook = transformer.patch_embedding.register_forward_hook(in_front)
        try:
            made: torch.Tensor = transformer(F.pad(x, (0, 0, 0, 0, 1, 0)), times, text, states, return_dict=False)[0]
        finally:
            hook.remove()
        return made[:, :, 1:]


def signed(images: Sequence[Image.Image]) -> torch.Tensor:
    """[1, 3, T, H, W] in [-1, 1]."""
    frames = np.stack([np.array(image) for image in images])
    return torch.from_numpy(frames).permute(3, 0, 1, 2)[None] / 255 * 2 - 1


def bilinear(images: Sequence[Image.Image], height: int, width: int) -> torch.Tensor:
    """As OpenCV scales frames."""
    frames = torch.from_numpy(np.stack([np.array(image) for image in images])).permute(0, 3, 1, 2).float()
    scaled = F.interpolate(frames, (height, width), mode="bilinear", align_corners=False).round()
    return scaled.permute(1, 0, 2, 3)[None] / 255 * 2 - 1


def given_frames(models: Models, media: dict[str, Any], fields: dict[str, Any], like: torch.Tensor) -> torch.Tensor:
    """Mask and latents of the video that is known in its first and its last frame (`get_image_to_video_latent`)."""
    size, count = (fields["width"], fields["height"]), fields["num_frames"]
    if "image" not in media:
        return torch.cat((torch.zeros_like(like[:, :1]).expand(-1, 4, -1, -1, -1), torch.zeros_like(like)), dim=1)[:1]
    frames = [media["image"].resize(size)] * count
    unknown = torch.ones(1, 1, count, fields["height"], fields["width"])
    unknown[:, :, 0] = 0
    if "last_image" in media:
        frames[-1] = media["last_image"].resize(size)
        unknown[:, :, -1] = 0
    latents = models.encode(signed(frames) * (unknown < 0.5))
    spread = torch.cat((unknown[:, :, :1].repeat_interleave(4, dim=2), unknown[:, :, 1:]), dim=2)
    cells = 1 - spread.view(1, -1, 4, *unknown.shape[3:]).transpose(1, 2)
    first = F.interpolate(cells[:, :, :1], (1, *latents.shape[3:]), mode="trilinear", align_corners=False)
    if latents.shape[2] > 1:
        grid = (latents.shape[2] - 1, *latents.shape[3:])
        first = torch.cat((first, F.interpolate(cells[:, :, 1:], grid, mode="trilinear", align_corners=False)), dim=2)
    return torch.cat((first, latents), dim=1)


def conditions(models: Models, media: dict[str, Any], fields: dict[str, Any], like: torch.Tensor) -> torch.Tensor:
    """What is put behind the latents."""
    height, width, control = fields["height"], fields["width"], models.fun.pipeline_class.endswith("ControlPipeline")
    parts = []
    if control:
        film = torch.zeros_like(like[:1])
        if "video" in media:
            film = models.encode(bilinear(media["video"], height, width))
        parts.append(film)
    if control and models.clip is not None:
        start = torch.zeros_like(like[:1])
        if "image" in media and start.shape[2] != 1:
            start[:, :, :1] = models.encode(signed([media["image"].resize((width, height))]))
        parts.append(start)
    else:
        parts.append(given_frames(models, media, fields, like))
    return torch.cat(parts, dim=1)


def extras(models: Models, media: dict[str, Any], fields: dict[str, Any], like: torch.Tensor) -> dict[str, Any]:
    """What the transformer is given beside latents and text."""
    given: dict[str, Any] = {}
    size = (fields["width"], fields["height"])
    reference = (media.get("reference_images") or [None])[0]
    if models.clip is not None:
        image = media.get("image")
        if not models.fun.pipeline_class.endswith("ControlPipeline"):
            image = None if image is None else image.resize(size)
        given["image"] = models.see(image if reference is None else reference)
    if models.fun.referred:
        given["reference"] = torch.zeros_like(like[:1, :, 0])
        if reference is not None:
            given["reference"] = models.encode(signed([reference.resize(size)]))[:, :, 0]
    return given


@torch.no_grad()
def published(
    models: Models, fields: dict[str, Any], media: dict[str, Any], prompts: Sequence[str] = (CAT,),
    negatives: Sequence[str] = ("blurry low",),
) -> torch.Tensor:  # fmt: skip
    """The videos [B, 3, T, H, W] in [0, 1], one of each prompt."""
    space, z = models.vae.config.scale_factor_spatial, models.vae.config.z_dim
    grid = ((fields["num_frames"] - 1) // 4 + 1, fields["height"] // space, fields["width"] // space)
    generator = torch.Generator("cpu").manual_seed(fields["seed"])
    latents = torch.randn(len(prompts), z, *grid, generator=generator)
    text, negative = (
        models.text.encode_prompt(list(texts), do_classifier_free_guidance=False, max_sequence_length=512)[0]
        for texts in (prompts, negatives)
    )
    condition = conditions(models, media, fields, latents).expand(len(prompts), -1, -1, -1, -1)
    given = extras(models, media, fields, latents)
    # with the VAE of 5B a given first frame has no noise, and its tokens are at timestep 0
    unknown = torch.ones(1, 1, *grid)
    if space >= 16 and "image" in media:
        unknown[:, :, 0] = 0
    known = condition[:, -z:]
    latents = (1 - unknown) * known + unknown * latents
    models.scheduler.set_timesteps(fields["num_inference_steps"])
    for t in models.scheduler.timesteps:
        times = t.expand(len(prompts))
        if space >= 16:
            times = (unknown[0, 0, :, ::2, ::2] * t).flatten().expand(len(prompts), -1)
        low = "transformer_2" if "transformer_2" in models.transformers and t < 900 else "transformer"
        x = torch.cat((latents, condition), dim=1)
        velocity = models.predict(low, x, times, text, **given)
        if fields["guidance_scale"] > 1:
            other = models.predict(low, x, times, negative, **given)
            velocity = other + fields["guidance_scale"] * (velocity - other)
        latents = models.scheduler.step(velocity, t, latents, return_dict=False)[0]
        latents = (1 - unknown) * known + unknown * latents
    return models.decode(latents)
