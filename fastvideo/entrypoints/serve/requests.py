"""What clients may write: the fields of requests for videos."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from fastvideo.entrypoints.serve.errors import ApiError

SAMPLING_FIELDS = (
    "negative_prompt", "num_frames", "fps", "num_inference_steps", "guidance_scale", "guidance_scale_2",
    "guidance_rescale", "seed", "strength", "mode", "image_fit",
)  # fmt: skip
"""Fields of a request that are sampling parameters by the same name; none of them names a file."""
OTHER_VIDEOS = ("pose_video", "face_video", "background_video", "mask_video")
"""Fields that are videos, by the names that models have for them."""
REFERENCES = ("input_reference", "last_frame", "mask", "video", *OTHER_VIDEOS)
"""Fields of a request that are images or videos."""


class Lora(BaseModel):
    """A LoRA to apply."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=200)
    strength: float = 1.0


class Link(BaseModel):
    """Where an image or a video is: one of these."""

    model_config = ConfigDict(extra="forbid", title="Reference")
    image_url: str | None = Field(None, description="A data URL; or an http(s) URL, where the operator allows it.")
    video_url: str | None = Field(None, description="The same.")
    file_id: str | None = Field(None, max_length=80, description="The id of a completed video of the caller's.")
    id: str | None = Field(None, max_length=80, description="The same.")

    @model_validator(mode="after")
    def one(self) -> "Link":
        """Raises a `ValueError` unless one is given."""
        if len(self.model_dump(exclude_none=True)) != 1:
            raise ValueError("give one of image_url, video_url, file_id and id")
        return self


class Settings(BaseModel):
    """What all requests for a video may say. What is left out is as the operator set it, or the model's default."""

    model_config = ConfigDict(extra="forbid")
    prompt: str = Field(min_length=1, description="What to show.")
    model: str | None = Field(None, description="One of /v1/models.")
    negative_prompt: str | None = Field(None, description="What to steer away from.")
    num_inference_steps: int | None = Field(None, description="Denoising steps.")
    guidance_scale: float | None = Field(None, description="Strength of the prompt; 1 or less is no guidance.")
    guidance_scale_2: float | None = Field(None, description="The same for a model's second transformer.")
    guidance_rescale: float | None = Field(None, description="How far guided predictions are scaled back, 0 to 1.")
    seed: int | None = Field(None, description="Of the initial noise.")
    loras: list[Lora] | None = Field(None, max_length=16, description="LoRAs that the operator offers.")
    quality: Literal["low", "medium", "high", "auto", "standard", "hd"] | None = Field(
        None, description="Half, all, or one and a half times the default's denoising steps."
    )
    priority: int | None = Field(None, ge=-100, le=100, description="Higher is sooner; above 0 needs a scope.")

    def given(self) -> dict[str, Any]:
        """What the client wrote, but for images and videos."""
        return self.model_dump(exclude_none=True, exclude=set(REFERENCES))


class VideoRequest(Settings):
    """A video to make. What is left out is as the operator set it, or else the model's default."""

    model_config = ConfigDict(extra="forbid", title="CreateVideo")
    seconds: str | float | None = Field(None, description="Length; the nearest that the model can make.")
    size: str | None = Field(None, pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$", description="WIDTHxHEIGHT in pixels.")
    num_frames: int | None = Field(None, description="Frames, in place of seconds.")
    fps: int | None = Field(None, ge=1, le=240, description="Frames a second of the file.")
    strength: float | None = Field(None, description="How much of a given video is made anew, above 0 to 1.")
    mode: Literal["animate", "replace"] | None = Field(
        None, description="Whether the one in the image moves, or takes the place of somebody in background_video."
    )
    image_fit: Literal["area", "stretch"] | None = Field(
        None, description="How the size follows a given image or video."
    )
    input_reference: Link | None = Field(None, description="An image or a video, where the model takes one.")
    last_frame: Link | None = Field(None, description="The image that the video ends with, where the model takes one.")
    pose_video: Link | None = Field(None, description="How somebody moves, where the model takes it.")
    face_video: Link | None = Field(None, description="How a face moves, where the model takes it.")
    background_video: Link | None = Field(None, description="What is around, where the model takes it.")
    mask_video: Link | None = Field(None, description="Where somebody is in that, where the model takes it.")
    mask: Link | None = Field(None, description="White where a given video is made anew, where the model takes one.")


class EditRequest(VideoRequest):
    """A video to make of a video."""

    model_config = ConfigDict(extra="forbid", title="EditVideo")
    video: Link | None = Field(None, description="The video to edit: an upload, or the id of one.")


class ExtendRequest(Settings):
    """A video to make longer."""

    model_config = ConfigDict(extra="forbid", title="ExtendVideo")
    seconds: str | float = Field(description="How much longer; the nearest that the model can make.")
    video: Link | None = Field(None, description="The video to extend: an upload, or the id of one.")


class RemixRequest(BaseModel):
    """A video to make again with another prompt."""

    model_config = ConfigDict(extra="forbid", title="RemixVideo")
    prompt: str = Field(min_length=1, description="What to show instead.")


def bad(name: str, rule: str) -> ApiError:
    """A field of the request that is wrong."""
    return ApiError(400, f"{name}: {rule}", param=name, code="invalid_value")
