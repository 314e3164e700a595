"""Wan 2.2 Animate: the person in an image moves as somebody else does, or takes that one's place in a video.

The reference that results are compared with is `diffusers/pipelines/wan/pipeline_wan_animate.py`, and for the image
`image_processor.py` beside it.
"""

import dataclasses
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.configs.sample.wan import WanAnimateSampling
from fastvideo.layers.residence import ready
from fastvideo.models.dits.wananimate import FaceVideo, WanAnimateTransformer3DModel
from fastvideo.models.encoders.clip import CLIPVisionModel
from fastvideo.models.encoders.t5 import T5EncoderModel
from fastvideo.models.schedulers import Scheduler
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.pipelines.basic.wan.wan_i2v_pipeline import WanImageToVideoPipeline, beside_condition, image_states
from fastvideo.pipelines.basic.wan.wan_pipeline import text_conditions
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch, written
from fastvideo.pipelines.stages import (
    ConditionStage,
    DecodingStage,
    DenoisingStage,
    ImageEncodingStage,
    InputValidationStage,
    LatentPreparationStage,
    PipelineStage,
    SegmentsStage,
    SteeringStage,
    TextEncodingStage,
    TimestepPreparationStage,
)
from fastvideo.pipelines.stages.media import fit_image, fit_video
from fastvideo.utils import require

OVERLAPS = (1, 5)
"""Frames of the segment before that a segment may begin with: what the model was trained with."""


def on_black(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """`image` [H, W, 3], uint8 or in [0, 1], as large as it fits in the middle of a black one: [3, height, width] in
    [-1, 1].

    The reference asks for Pillow's bilinear filter and gets Lanczos, as its base class sets that back, and so do we.
    """
    rows, columns = image.shape[:2]
    wider = width / height < columns / rows
    size = (rows * width // columns, width) if wider else (height, columns * height // rows)
    scaled = fit_image(image, *size)
    canvas = torch.full((3, height, width), -1.0)
    top, left = height // 2 - size[0] // 2, width // 2 - size[1] // 2
    canvas[:, top : top + size[0], left : left + size[1]] = scaled
    return canvas


def brightness(video: torch.Tensor) -> torch.Tensor:
    """`video` [3, T, H, W] in [-1, 1] as grey [T, H, W] in [0, 1], in steps of 1 / 255 (ITU-R BT.601, as Pillow's)."""
    levels = ((video + 1) * 127.5).round().clamp(0, 255).byte()
    frames = (Image.fromarray(frame.numpy()).convert("L") for frame in levels.permute(1, 2, 3, 0).contiguous())
    return torch.stack([torch.from_numpy(np.array(frame)) for frame in frames]).float() / 255


def mask_channels(known: torch.Tensor, time: int) -> torch.Tensor:
    """`known` [T, h, w] as [time, t, h, w]: a channel for each of the frames that a latent frame stands for, of which
    the first stands alone and counts `time` times."""
    return torch.cat((known[:1].expand(time, -1, -1), known[1:])).unflatten(0, (-1, time)).transpose(0, 1)


class WanAnimatePipeline(WanImageToVideoPipeline):
    """An image, poses and a face to video, in segments."""

    def create_stages(self) -> tuple[PipelineStage, ...]:
        self.animator = self.component("transformer", WanAnimateTransformer3DModel)
        self.transformer = self.animator
        self.vae = self.component("vae", AutoencoderKLWan)
        scheduler = self.component("scheduler", Scheduler)
        segment = (
            TimestepPreparationStage(scheduler),
            LatentPreparationStage(self.latent_shape, more_frames=lambda batch: 1),
            ConditionStage(self.beside, uses=("before",)),
            SteeringStage(self.poses),
            DenoisingStage(
                scheduler,
                pick=lambda timestep: self.animator,
                conditions=text_conditions,
                prepare=beside_condition,
                extras=lambda batch: self.seen(batch, blank=False),
                # guidance steers away from no expression, too
                negative_extras=lambda batch: self.seen(batch, blank=True),
                finish=lambda latents, batch: latents[:, :, 1:],
                uses=("condition", "steering", "image_embeds"),
                preview=self.preview,
            ),
            DecodingStage(self.vae),
        )
        return (
            InputValidationStage(self.check_sampling, WanAnimateSampling),
            TextEncodingStage(self.component("text_encoder", T5EncoderModel)),
            ImageEncodingStage(self.component("image_encoder", CLIPVisionModel), shown_person),
            SegmentsStage(segment, cut),
        )

    def check_sampling(self, sampling: SamplingParam) -> None:
        """Sizes must be whole patches of latents, frames of a segment 4k+1; a video may be of any length."""
        length, overlap = cut(sampling)
        time = self.vae.arch.scale_factor_temporal
        fit = (length - 1) // time * time + 1
        require(length == fit, "segment_frame_length", length, f"must be {time}k+1", f"try {fit} or {fit + time}")
        require(overlap in OVERLAPS, "prev_segment_conditioning_frames", overlap,
                f"must be {' or '.join(map(str, OVERLAPS))}")  # fmt: skip
        least = (overlap // time + 1) * time + 1
        require(length > overlap, "segment_frame_length", length,
                f"must be more than prev_segment_conditioning_frames={overlap}", f"use at least {least}")  # fmt: skip
        super().check_sampling(dataclasses.replace(sampling, num_frames=length))

    def beside(self, batch: ForwardBatch, device: torch.device) -> torch.Tensor:
        """Masks and latents [1 or B, 4 + z, 1 + t, h, w]: the image, and a clip of what is known of the video.

        That is the end of the segment before, and in its other frames the background or nothing. The masks are one
        where the clip is to stay.
        """
        sampling, media, before = batch.sampling, batch.media, batch.before
        size, time = (sampling.height, sampling.width), self.vae.arch.scale_factor_temporal
        frames, (t, h, w) = sampling.num_frames, self.latent_shape(sampling)[1:]
        clip, known = torch.zeros(1, 3, frames, *size), torch.zeros(frames, h, w)
        if media.background_video is not None:
            anew = brightness(fit_video(written(media.mask_video, "mask_video"), *size))
            known = F.interpolate(1 - anew[:, None], (h, w), mode="nearest")[:, 0]
            clip = fit_video(media.background_video, *size)[None]
        if before is not None:
            count = before.shape[2]
            clip = torch.cat((before, clip[:, :, count:].expand(len(before), -1, -1, -1, -1)), dim=2)
            known[:count] = 1
        image = on_black(written(media.image, "image"), *size)[None, :, None]
        with ready(self.vae):
            shown, video = (self.vae.encode(one.to(device)) for one in (image, clip))
        shown = torch.cat((shown.new_ones(1, time, 1, h, w), shown), dim=1).expand(len(video), -1, -1, -1, -1)
        masks = mask_channels(known.to(video), time).expand(len(video), -1, t, -1, -1)
        return torch.cat((shown, torch.cat((masks, video), dim=1)), dim=2)

    def poses(self, batch: ForwardBatch, device: torch.device) -> torch.Tensor:
        """The latents [1, z, t, h, w] of the poses."""
        size = (batch.sampling.height, batch.sampling.width)
        with ready(self.vae):
            return self.vae.encode(fit_video(written(batch.media.pose_video, "pose_video"), *size)[None].to(device))

    def seen(self, batch: ForwardBatch, blank: bool) -> dict[str, Any]:
        """The keywords of the transformer for image, poses and the face, which may be blank."""
        side = self.animator.arch.motion_encoder_size
        face = fit_video(written(batch.media.face_video, "face_video"), side, side)[None]
        return image_states(batch) | {
            "pose": written(batch.steering, "steering"),
            "face": FaceVideo(torch.full_like(face, -1) if blank else face, batch.sampling.motion_encode_batch_size),
        }


def shown_person(batch: ForwardBatch) -> list[torch.Tensor]:
    """The image."""
    return [written(batch.media.image, "image")]


def cut(sampling: SamplingParam) -> tuple[int, int]:
    """The frames of a segment, and how many of them are of the one before."""
    usual = WanAnimateSampling()
    lengths = (sampling.segment_frame_length, usual.segment_frame_length)
    overlaps = (sampling.prev_segment_conditioning_frames, usual.prev_segment_conditioning_frames)
    length, overlap = (next(one for one in several if one is not None) for several in (lengths, overlaps))
    return length, overlap
