"""Sampling defaults of the Wan models, and of the small model of the same architecture in the package.

Source: the model cards; the negative prompt is the one that the Wan 2.1 authors publish with their models.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.utils import require

WAN21_NEGATIVE_PROMPT = (
    "色调艳丽，过曝，静态，细节模糊不清，字幕，风格，作品，画作，画面，静止，整体发灰，最差质量，低质量，JPEG压缩残留，"
    "丑陋的，残缺的，多余的手指，画得不好的手部，画得不好的脸部，畸形的，毁容的，形态畸形的肢体，手指融合，静止不动的画面，"
    "杂乱的背景，三条腿，背景人很多，倒着走"
)


@dataclass(kw_only=True)
class WanT2V480PSampling(SamplingParam):
    """Wan2.1-T2V-1.3B."""

    takes: ClassVar[tuple[str, ...]] = ("video", "strength")

    negative_prompt: str = WAN21_NEGATIVE_PROMPT
    guidance_scale: float = 3.0


@dataclass(kw_only=True)
class WanT2V720PSampling(WanT2V480PSampling):
    """Wan2.1-T2V-14B."""

    height: int = 720
    width: int = 1280
    guidance_scale: float = 5.0


@dataclass(kw_only=True)
class WanI2V480PSampling(SamplingParam):
    """Wan2.1-I2V-14B-480P."""

    needs: ClassVar[tuple[str, ...]] = ("image",)

    negative_prompt: str = WAN21_NEGATIVE_PROMPT
    num_inference_steps: int = 40


@dataclass(kw_only=True)
class WanI2V720PSampling(WanI2V480PSampling):
    """Wan2.1-I2V-14B-720P."""

    height: int = 720
    width: int = 1280


@dataclass(kw_only=True)
class WanFLF2VSampling(WanI2V720PSampling):
    """Wan2.1-FLF2V-14B-720P: from a first to a last frame."""

    needs: ClassVar[tuple[str, ...]] = ("image", "last_image")

    num_inference_steps: int = 50
    guidance_scale: float = 5.5


@dataclass(kw_only=True)
class WanAnyI2VSampling(WanI2V480PSampling):
    """A local repo, which the pipeline looks at to say whether it takes a last frame."""

    takes: ClassVar[tuple[str, ...]] = ("last_image",)


@dataclass(kw_only=True)
class Wan22T2VSampling(WanT2V720PSampling):
    """Wan2.2-T2V-A14B."""

    takes: ClassVar[tuple[str, ...]] = ("guidance_scale_2",)

    num_inference_steps: int = 40
    guidance_scale: float = 4.0
    guidance_scale_2: float | None = 3.0


@dataclass(kw_only=True)
class Wan22I2VSampling(WanI2V720PSampling):
    """Wan2.2-I2V-A14B."""

    takes: ClassVar[tuple[str, ...]] = ("last_image", "guidance_scale_2")

    guidance_scale: float = 3.5
    guidance_scale_2: float | None = 3.5


@dataclass(kw_only=True)
class WanTI2VSampling(SamplingParam):
    """Wan2.2-TI2V-5B."""

    takes: ClassVar[tuple[str, ...]] = ("image",)

    negative_prompt: str = WAN21_NEGATIVE_PROMPT
    height: int = 704
    width: int = 1280
    num_frames: int = 121
    fps: int = 24


@dataclass(kw_only=True)
class WanV2VSampling(WanT2V480PSampling):
    """A repo that is for video to video alone."""

    needs: ClassVar[tuple[str, ...]] = ("video",)

    guidance_scale: float = 5.0


@dataclass(kw_only=True)
class WanVACESampling(WanT2V480PSampling):
    """Wan2.1-VACE-1.3B."""

    takes: ClassVar[tuple[str, ...]] = ("video", "mask", "reference_images", "conditioning_scale")

    guidance_scale: float = 5.0


@dataclass(kw_only=True)
class WanVACE720PSampling(WanVACESampling):
    """Wan2.1-VACE-14B."""

    height: int = 720
    width: int = 1280


@dataclass(kw_only=True)
class Wan22VACESampling(WanVACE720PSampling):
    """A repo of VACE with two transformers."""

    takes: ClassVar[tuple[str, ...]] = (*WanVACESampling.takes, "guidance_scale_2")


@dataclass(kw_only=True)
class WanAnimateSampling(SamplingParam):
    """Wan2.2-Animate-14B."""

    needs: ClassVar[tuple[str, ...]] = ("image", "pose_video", "face_video")
    takes: ClassVar[tuple[str, ...]] = (
        "background_video", "mask_video", "mode", "segment_frame_length", "prev_segment_conditioning_frames",
        "motion_encode_batch_size",
    )  # fmt: skip
    # the one in the image is put in the middle of a video of the size of the poses
    sized_by: ClassVar[tuple[str, ...]] = ("pose_video",)

    negative_prompt: str = WAN21_NEGATIVE_PROMPT
    height: int = 720
    width: int = 1280
    num_frames: int = 77
    fps: int = 30
    num_inference_steps: int = 20
    guidance_scale: float = 1.0
    mode: str | None = "animate"
    segment_frame_length: int | None = 77
    prev_segment_conditioning_frames: int | None = 1

    @classmethod
    def check_together(cls, sampling: SamplingParam, media: Collection[str]) -> None:
        """A background and its mask are for replacing somebody, and nothing is replaced without them."""
        mode, both = sampling.mode or "animate", ("background_video", "mask_video")
        for name in both:
            require(mode == "replace" or name not in media, name, "...", f"does nothing with mode={mode!r}",
                    "set mode to 'replace', or leave it out")  # fmt: skip
            require(mode != "replace" or name in media, "mode", mode, f"needs {' and '.join(both)}", f"give {name} too")


@dataclass(kw_only=True)
class LucyEditSampling(SamplingParam):
    """Lucy-Edit-Dev."""

    needs: ClassVar[tuple[str, ...]] = ("video",)

    fps: int = 24


@dataclass(kw_only=True)
class FastWanSampling(SamplingParam):
    """FastWan2.1-T2V-1.3B."""

    height: int = 448
    num_frames: int = 61
    num_inference_steps: int = 3
    guidance_scale: float = 1.0


@dataclass(kw_only=True)
class SFWanSampling(SamplingParam):
    """SFWan2.1-T2V-1.3B."""

    takes: ClassVar[tuple[str, ...]] = ("start_video",)
    sized_by: ClassVar[tuple[str, ...]] = ("start_video",)

    num_inference_steps: int = 4
    guidance_scale: float = 1.0


@dataclass(kw_only=True)
class ShapesT2VSampling(SamplingParam):
    """The model in the package."""

    takes: ClassVar[tuple[str, ...]] = ("video", "strength")

    height: int = 96
    width: int = 96
    num_frames: int = 17
    fps: int = 12
    num_inference_steps: int = 20
    guidance_scale: float = 3.0


@dataclass(kw_only=True)
class ShapesTI2VSampling(ShapesT2VSampling):
    """The companion of the model in the package, which is given the first frame."""

    takes: ClassVar[tuple[str, ...]] = ("image",)
