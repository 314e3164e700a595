"""From what a client writes to sampling parameters that the model is known to run, or to a 400 that names the field."""

import re
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field

from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.serve.errors import ApiError
from fastvideo.entrypoints.serve.settings import ServerSettings
from fastvideo.utils import RuleError

SAMPLING_FIELDS = (
    "negative_prompt", "num_frames", "fps", "num_inference_steps", "guidance_scale", "guidance_scale_2",
    "guidance_rescale", "seed",
)  # fmt: skip
"""Fields of a request that are sampling parameters by the same name; none of them names a file."""
NOT_STORED = ("output_path", "save_video", "return_frames")
"""Sampling parameters that are the server's own business."""
QUALITIES = {"low": 0.5, "medium": 1.0, "high": 1.5}
"""Denoising steps, as a multiple of the default's."""
FRAME_SEARCH = 64
"""How far from what `seconds` asks for the nearest number of frames that the model makes is looked for."""
OF_FIELD = {"height": "size", "width": "size", "lora_path": "loras"}
"""The field of a request that a sampling parameter comes from, where the names differ."""


class Model(Protocol):
    """The part of `VideoGenerator` that admission needs."""

    def check_request(self, prompt: str, sampling_param: SamplingParam | None = None, **fields: Any) -> SamplingParam:
        """See `VideoGenerator`."""


class Lora(BaseModel):
    """A LoRA to apply."""

    model_config = ConfigDict(extra="forbid")
    name: str = Field(min_length=1, max_length=200)
    strength: float = 1.0


class VideoRequest(BaseModel):
    """A video to make. What is left out is as the operator set it, or else the model's default."""

    model_config = ConfigDict(extra="forbid", title="CreateVideo")
    prompt: str = Field(min_length=1, description="What to show.")
    model: str | None = Field(None, description="One of /v1/models.")
    seconds: str | float | None = Field(None, description="Length; the nearest that the model can make.")
    size: str | None = Field(None, pattern=r"^[1-9][0-9]{0,4}x[1-9][0-9]{0,4}$", description="WIDTHxHEIGHT in pixels.")
    negative_prompt: str | None = Field(None, description="What to steer away from.")
    num_frames: int | None = Field(None, description="Frames, in place of seconds.")
    fps: int | None = Field(None, ge=1, le=240, description="Frames a second of the file.")
    num_inference_steps: int | None = Field(None, description="Denoising steps.")
    guidance_scale: float | None = Field(None, description="Strength of the prompt; 1 or less is no guidance.")
    guidance_scale_2: float | None = Field(None, description="The same for a model's second transformer.")
    guidance_rescale: float | None = Field(None, description="How far guided predictions are scaled back, 0 to 1.")
    seed: int | None = Field(None, description="Of the initial noise.")
    loras: list[Lora] | None = Field(None, description="LoRAs that the operator offers.")
    quality: Literal["low", "medium", "high", "auto", "standard", "hd"] | None = Field(
        None, description="Half, all, or one and a half times the default's denoising steps."
    )
    priority: int | None = Field(None, ge=-100, le=100, description="Higher is sooner; above 0 needs a scope.")

    def given(self) -> dict[str, Any]:
        """What the client wrote."""
        return self.model_dump(exclude_none=True)


class RemixRequest(BaseModel):
    """A video to make again with another prompt."""

    model_config = ConfigDict(extra="forbid", title="RemixVideo")
    prompt: str = Field(min_length=1, description="What to show instead.")


@dataclass(frozen=True)
class Plan:
    """A request that the model can run."""

    prompt: str
    request: dict[str, Any]
    """What the client wrote."""
    sampling: dict[str, Any]
    priority: int


class Planner:
    """Makes plans of requests, by the rules of one model and one operator."""

    def __init__(self, model: Model, names: list[str], defaults: dict[str, Any], settings: ServerSettings) -> None:
        """`names` are those of the model, `defaults` the operator's sampling parameters.

        Raises:
            ValueError: the model cannot run the operator's defaults.
        """
        self._model = model
        self._names = names
        self._operator = defaults
        self._settings = settings
        own = model.check_request("", **defaults)
        self.default = own
        self._most = settings.max_size_factor * own.height * own.width * own.num_frames

    def video(self, request: VideoRequest) -> Plan:
        """The plan of a request for a video.

        Raises:
            ApiError: 400, with the field.
        """
        given = request.given()
        self._check_text(given)
        fields = dict(self._operator)
        for name in SAMPLING_FIELDS:
            if name in given:
                self._check_known(name)
                fields[name] = given[name]
        if request.size is not None:
            fields["width"], fields["height"] = map(int, request.size.split("x"))
        self._set_steps(request, fields)
        if request.seconds is not None:
            self._set_frames(request, fields)
        sampling = self._checked(request.prompt, fields, given)
        if given.get("negative_prompt") and sampling.guidance_scale <= 1:
            raise bad("negative_prompt", f"does nothing without guidance (guidance_scale={sampling.guidance_scale:g}); "
                                         "leave it out, or set guidance_scale above 1")  # fmt: skip
        return Plan(request.prompt, given, stored(sampling), request.priority or 0)

    def image(self, prompt: str, size: str | None, count: int, quality: str | None, seed: int | None) -> Plan:
        """The plan of a request for `count` images.

        Raises:
            ApiError: 400, with the field.
        """
        values: dict[str, Any] = {"prompt": prompt, "size": size, "quality": quality, "seed": seed}
        request = VideoRequest(**values, num_frames=1)
        plan = self.video(request)
        sampling = self._checked(prompt, plan.sampling | {"num_videos_per_prompt": count}, {"num_frames": 1})
        return Plan(prompt, plan.request | {"n": count}, stored(sampling), 0)

    def remix(self, prompt: str, sampling: dict[str, Any]) -> Plan:
        """The plan of a job like that of `sampling`, with another prompt.

        Raises:
            ApiError: 400, with the field.
        """
        self._check_text({"prompt": prompt})
        return Plan(prompt, {"prompt": prompt}, stored(self._checked(prompt, sampling, {})), 0)

    def _check_text(self, given: dict[str, Any]) -> None:
        most = self._settings.max_prompt_characters
        for name in ("prompt", "negative_prompt"):
            if len(given.get(name, "")) > most:
                raise bad(name, f"has {len(given[name])} characters; at most {most} are allowed")
        if not given["prompt"].strip():
            raise bad("prompt", "is empty; say what to show")
        model = given.get("model")
        if model is not None and model not in self._names:
            raise ApiError(400, f"model: {model!r} is not served here; there is {', '.join(self._names)}",
                           param="model", code="model_not_found")  # fmt: skip
        if given.get("loras"):
            raise bad("loras", "this server offers none; leave it out")

    def _check_known(self, name: str) -> None:
        if name not in SamplingParam.field_names():
            raise bad(name, "this model has nothing that it would set; leave it out")

    def _set_steps(self, request: VideoRequest, fields: dict[str, Any]) -> None:
        quality = {"auto": None, "standard": "medium", "hd": "high"}.get(request.quality or "auto", request.quality)
        if quality is not None:
            if request.num_inference_steps is not None:
                raise bad("quality", "and num_inference_steps both set the steps; give one of them")
            steps = fields.get("num_inference_steps", self.default.num_inference_steps)
            fields["num_inference_steps"] = max(1, round(steps * QUALITIES[quality]))
        steps, most = fields.get("num_inference_steps", 1), self._settings.max_steps
        if steps > most:
            raise bad("num_inference_steps", f"{steps} are more than this server allows; at most {most}")

    def _set_frames(self, request: VideoRequest, fields: dict[str, Any]) -> None:
        if request.num_frames is not None:
            raise bad("seconds", "and num_frames both set the length; give one of them")
        try:
            seconds = float(request.seconds or 0)
        except ValueError:
            seconds = 0
        if not 0 < seconds <= 3600:
            raise bad("seconds", f"{request.seconds!r} must be a number above 0, at most 3600")
        wanted = max(1, round(seconds * fields.get("fps", self.default.fps)))
        for distance in range(FRAME_SEARCH):
            for frames in (wanted + distance, wanted - distance):
                if frames > 0 and self._runs(fields | {"num_frames": frames}):
                    fields["num_frames"] = frames
                    return
        fields["num_frames"] = wanted  # what is wrong is something else, and will be said

    def _runs(self, fields: dict[str, Any]) -> bool:
        try:
            self._model.check_request("", **fields)
        except ValueError:
            return False
        return True

    def _checked(self, prompt: str, fields: dict[str, Any], given: dict[str, Any]) -> SamplingParam:
        try:
            sampling = self._model.check_request(prompt, **fields)
        except ValueError as error:
            raise ApiError(400, str(error), param=field_of(error, given), code="invalid_value") from None
        size = sampling.height * sampling.width * sampling.num_frames * sampling.num_videos_per_prompt
        if size > self._most:
            name = next((name for name in ("size", "num_frames", "seconds", "n") if name in given), "size")
            raise bad(name, f"{sampling.width}x{sampling.height} with {sampling.num_frames} frames is more than this "
                            f"server allows: at most {int(self._most)} pixels in all frames")  # fmt: skip
        return sampling


def field_of(error: ValueError, given: dict[str, Any]) -> str | None:
    """The field of the request that `error` is about, of those that the client gave where several could be."""
    begins = re.match(r"(\w+)[=:]", str(error))
    name = error.name if isinstance(error, RuleError) else begins[1] if begins else None
    for alias, of in (("seconds", "num_frames"), ("quality", "num_inference_steps")):
        name = alias if name == of and alias in given else name
    return None if name is None else OF_FIELD.get(name, name)


def bad(name: str, rule: str) -> ApiError:
    """A field of the request that is wrong."""
    return ApiError(400, f"{name}: {rule}", param=name, code="invalid_value")


def stored(sampling: SamplingParam) -> dict[str, Any]:
    """The sampling parameters that make the result what it is."""
    return {name: value for name, value in sampling.to_dict().items() if name not in NOT_STORED}
