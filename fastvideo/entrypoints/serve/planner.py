"""From what a client writes to sampling parameters that the model is known to run, or to a 400 that names the field."""

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any, Protocol

import numpy as np

from fastvideo.configs.entries import ModelEntry
from fastvideo.configs.sample.base import MASKS, MEDIA, VIDEOS, SamplingParam
from fastvideo.entrypoints.serve.errors import ApiError
from fastvideo.entrypoints.serve.plan import EXTENDS, GOES_ON, OF_FIELD, Plan, extended, field_of, stored
from fastvideo.entrypoints.serve.references import IMAGE, VIDEO, Look, Reference, proportioned, rate_of
from fastvideo.entrypoints.serve.requests import (
    OTHER_VIDEOS,
    SAMPLING_FIELDS,
    EditRequest,
    ExtendRequest,
    Lora,
    Settings,
    VideoRequest,
    bad,
)  # fmt: skip
from fastvideo.entrypoints.serve.settings import ServerSettings
from fastvideo.utils import nearest, resolve

QUALITIES = {"low": 0.5, "medium": 1.0, "high": 1.5}
"""Denoising steps, as a multiple of the default's."""
SEARCH = 128
"""How far from what is asked for the nearest size or number of frames that the model makes is looked for."""
MEDIA_OF: dict[str, dict[str, tuple[str, ...]]] = {
    "input_reference": {IMAGE: ("image", "reference_images"), VIDEO: ("video",)},
    "last_frame": {IMAGE: ("last_image",)},
    "mask": {IMAGE: ("mask",), VIDEO: ("mask",)},
    "video": {VIDEO: ("video",)},
    **{name: {VIDEO: (name,)} for name in OTHER_VIDEOS},
    "mask_video": {IMAGE: ("mask_video",), VIDEO: ("mask_video",)},
}
"""What an image or a video in a field of a request is for the model: the first of these that it takes."""
TINY = 8
"""Side of what stands in, in checks, for images and videos: the model is asked about sizes, not about pixels."""


class Model(Protocol):
    """The part of `VideoGenerator` that admission needs."""

    @property
    def entry(self) -> ModelEntry:
        """See `VideoGenerator`."""

    def check_request(self, prompt: str, sampling_param: SamplingParam | None = None, **fields: Any) -> SamplingParam:
        """See `VideoGenerator`."""


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
        self.streams = model.entry.streams
        kind: type[SamplingParam] = resolve(model.entry.sampling)
        self.takes, self._sized_by = (*kind.needs, *kind.takes), kind.sized_by
        self.needs, self.default = self._needed(kind)
        self._most = settings.max_size_factor * self._size(self.default)
        self.multiple, self.frame_step = self._step("width"), self._step("num_frames")

    def _needed(self, kind: type[SamplingParam]) -> tuple[tuple[str, ...], SamplingParam]:
        """What a request must have, and what the default one comes to. A class of defaults may leave it to the pipeline
        whether something that it takes is needed."""
        needs = kind.needs
        while True:
            try:
                return needs, self._model.check_request("", **self._operator, **self._stand_ins(needs))
            except ValueError as error:
                name = field_of(error, {}, {}, aliases={})
                if name not in MEDIA or name not in kind.takes or name in needs:
                    raise
                needs = (*needs, name)

    def video(self, request: VideoRequest, given: Mapping[str, Reference] | None = None) -> Plan:
        """The plan of a request for a video.

        Args:
            request: what the client wrote.
            given: its images and videos, by the field.

        Raises:
            ApiError: 400, with the field.
        """
        wrote = request.given()
        self._check_text(wrote)
        inputs = self._inputs(given or {}, "video" if isinstance(request, EditRequest) else "input_reference")
        fields = self._fields(wrote)
        if request.size is not None:
            fields["width"], fields["height"] = map(int, request.size.split("x"))
        self._set_steps(request, fields)
        self._follow(inputs, fields, wrote)
        if request.seconds is not None:
            if request.num_frames is not None:
                raise bad("seconds", "and num_frames both set the length; give one of them")
            self._set_frames(request.seconds, fields)
        sampling = self._checked(request.prompt, fields, wrote, inputs)
        return self._plan(request, wrote, sampling, inputs)

    def extension(self, request: ExtendRequest, given: Mapping[str, Reference]) -> Plan:
        """The plan of a request to make a video longer: one that starts with its last frames, of its size and pace.

        Raises:
            ApiError: 400, with the field; also where the model cannot.
        """
        self.check_extends()
        wrote = request.given()
        self._check_text(wrote)
        source = given.get("video")
        if source is None:
            raise ApiError(400, "video: is missing", param="video", code="missing_required_parameter")
        fields = self._fields(wrote) | {"fps": rate_of(source, self.default.fps)}
        source = self._going_on(source, request.seconds, fields)
        inputs, size = {EXTENDS: source}, {"width": source.look.width, "height": source.look.height}
        fields |= size
        self._set_steps(request, fields)
        self._set_frames(request.seconds, fields, source)
        if fields["num_frames"] <= source.look.repeated:
            raise bad("seconds", f"{request.seconds} add no frame at {fields['fps']} a second; ask for more")
        sampling = self._checked(request.prompt, fields, wrote, inputs)
        return self._plan(request, wrote | extended(inputs), sampling, inputs)

    def image(self, prompt: str, size: str | None, count: int, quality: str | None, seed: int | None) -> Plan:
        """The plan of a request for `count` images.

        Raises:
            ApiError: 400, with the field.
        """
        if self.needs:
            raise ApiError(400, f"model: {self._names[0]} makes videos of {' and '.join(self.needs)}, and no images of "
                           "a prompt alone", param="model", code="unsupported_by_model")  # fmt: skip
        values: dict[str, Any] = {"prompt": prompt, "size": size, "quality": quality, "seed": seed}
        plan = self.video(VideoRequest(**values, num_frames=1))
        wrote = {"num_frames": 1, "n": count}
        sampling = self._checked(prompt, plan.sampling | {"num_videos_per_prompt": count}, wrote, {})
        return Plan(prompt, plan.request | {"n": count}, stored(sampling), 0)

    def remix(self, prompt: str, sampling: dict[str, Any], inputs: Mapping[str, Reference]) -> Plan:
        """The plan of a job like that of `sampling` and `inputs`, with another prompt.

        Raises:
            ApiError: 400, with the field.
        """
        self._check_text({"prompt": prompt})
        fields, loras = dict(sampling), sampling.get("loras")
        fields.pop("loras", None)
        self._check_loras(loras or [])
        request = {"prompt": prompt} | extended(inputs)
        return Plan(prompt, request, stored(self._checked(prompt, fields, {}, inputs), loras), 0, inputs)

    def kinds(self, name: str) -> tuple[str, ...]:
        """Which of `IMAGE` and `VIDEO` the model takes in a field.

        Raises:
            ApiError: 400; none.
        """
        found = tuple(kind for kind, media in MEDIA_OF[name].items() if any(medium in self.takes for medium in media))
        if found:
            return found
        words = {
            "input_reference": "takes no image or video; leave it out",
            "video": "cannot edit videos: it takes none",
        }
        raise ApiError(400, f"{name}: {self._names[0]} {words.get(name, 'takes none; leave it out')}",
                       param=name, code="unsupported_by_model")  # fmt: skip

    def check_extends(self) -> None:
        """Raise a 400 unless the model can make a video go on, from some frames or from an image."""
        if not {"image", GOES_ON} & set(self.takes) or set(self.needs) - {"image"}:
            raise ApiError(400, f"video: {self._names[0]} cannot extend videos, as it starts from no image and no "
                           "frames alone", param="video", code="unsupported_by_model")  # fmt: skip

    def runs(self, **fields: Any) -> bool:
        """Whether the model can make a video of these sampling parameters, with what it needs beside them."""
        try:
            self._model.check_request("", **{**self._operator, **fields, **self._stand_ins(self.needs)})
        except ValueError:
            return False
        return True

    def _step(self, name: str) -> int:
        """How far it is from the default of `name` to the next value that the model can make."""
        start: int = getattr(self.default, name)
        return next((step for step in range(1, SEARCH) if self.runs(**{name: start + step})), SEARCH)

    def _stand_ins(self, media: Collection[str], frames: int = 4096) -> dict[str, Any]:
        picture = np.zeros((TINY, TINY, 3), np.uint8)
        clip = np.zeros((frames, TINY, TINY, 3), np.uint8)
        made: dict[str, Any] = {name: clip if name in VIDEOS or name == "mask_video" else picture for name in media}
        if "reference_images" in made:
            made["reference_images"] = [picture]
        return made | ({"image_fit": "stretch"} if set(self._sized_by) & set(media) else {})

    @staticmethod
    def _clip(frames: int) -> dict[str, Any]:
        """What stands in for frames to go on from."""
        return {GOES_ON: np.zeros((frames, TINY, TINY, 3), np.uint8), "image_fit": "stretch"}

    @staticmethod
    def _size(sampling: SamplingParam) -> int:
        return sampling.height * sampling.width * sampling.num_frames * sampling.num_videos_per_prompt

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
        self._check_loras(given.get("loras") or [])

    def _check_loras(self, loras: list[dict[str, Any]]) -> None:
        known, names = self._settings.loras, [lora["name"] for lora in loras]
        for lora in map(Lora.model_validate, loras):
            if not known:
                raise bad("loras", "this server offers none; leave it out")
            if lora.name not in known:
                close = nearest(lora.name, known)
                hint = f"did you mean {close!r}? " if close else ""
                raise bad("loras", f"there is no {lora.name!r}; {hint}there are {', '.join(known)}")
            if not math.isfinite(lora.strength) or lora.strength == 0:
                raise bad("loras", f"the strength {lora.strength} of {lora.name!r} must be a finite number, and not 0, "
                                   "which does nothing")  # fmt: skip
            if names.count(lora.name) > 1:
                raise bad("loras", f"{lora.name!r} is given twice")

    def _fields(self, wrote: dict[str, Any]) -> dict[str, Any]:
        """Sampling parameters: those of the client before those of the operator."""
        for name in SAMPLING_FIELDS:
            if name in wrote and name not in SamplingParam.field_names():
                raise bad(name, "this model has nothing that it would set; leave it out")
        return {**self._operator, **{name: wrote[name] for name in SAMPLING_FIELDS if name in wrote}}

    def _inputs(self, given: Mapping[str, Reference], main: str) -> dict[str, Reference]:
        """What is given, by the names of the model's media. `main` is the field of what it is made from."""
        inputs: dict[str, Reference] = {}
        for name, reference in given.items():
            medium = next((one for one in MEDIA_OF[name][reference.look.kind] if one in self.takes), None)
            if medium is None or medium in inputs:
                raise bad(name, "another video is given already" if medium else "this model takes no such thing")
            inputs[medium] = reference
        for medium in self.needs if main == "input_reference" else ("video", *self.needs):
            if medium not in inputs:
                name = main if medium == "video" else OF_FIELD.get(medium, medium)
                raise ApiError(400, f"{name}: is missing; {self._names[0]} makes videos of {' and '.join(self.needs)}"
                               if medium in self.needs else f"{name}: is missing",
                               param=name, code="missing_required_parameter")  # fmt: skip
        return inputs

    def _follow(self, inputs: Mapping[str, Reference], fields: dict[str, Any], wrote: dict[str, Any]) -> None:
        """Take the size from an image or a video, and the length and pace from a video, but for what was written."""
        shown = next((inputs[name] for name in self._sized_by if name in inputs), None)
        if shown is None:
            if "image_fit" in wrote:
                raise bad("image_fit", "does nothing without an image or a video; leave it out")
            return
        if fields.get("image_fit", "area") == "area":
            within = {name: fields.get(name, getattr(self.default, name)) for name in ("height", "width")}
            fields["height"], fields["width"] = proportioned(shown, SamplingParam(**within), self.multiple)
        fields["image_fit"] = "stretch"
        videos = [inputs[name] for name in VIDEOS if name in inputs]
        if videos and "fps" not in wrote:
            fields["fps"] = rate_of(videos[0], fields.get("fps", self.default.fps))
        if videos and not {"num_frames", "seconds"} & wrote.keys():
            frames = min(video.look.frames for video in videos)
            fields["num_frames"] = frames - (frames - 1) % self.frame_step

    def _set_steps(self, request: Settings, fields: dict[str, Any]) -> None:
        quality = {"auto": None, "standard": "medium", "hd": "high"}.get(request.quality or "auto", request.quality)
        if quality is not None:
            if request.num_inference_steps is not None:
                raise bad("quality", "and num_inference_steps both set the steps; give one of them")
            steps = fields.get("num_inference_steps", self.default.num_inference_steps)
            fields["num_inference_steps"] = max(1, round(steps * QUALITIES[quality]))
        steps, most = fields.get("num_inference_steps", 1), self._settings.max_steps
        if steps > most:
            raise bad("num_inference_steps", f"{steps} are more than this server allows; at most {most}")

    def _going_on(self, source: Reference, seconds: str | float, fields: dict[str, Any]) -> Reference:
        """`source`, with how many of its last frames the model is shown. Where it takes several, these are as many as
        there is room for beside the new ones in a video of its usual length."""
        if GOES_ON not in self.takes:
            return source
        have = source.look.frames
        room = min(have, max(0, self.default.num_frames - self._wanted(seconds, fields)))
        for shown in (*range(room, 0, -1), *range(room + 1, have + 1)):
            if self.runs(num_frames=shown + self.frame_step, **self._clip(shown)):
                return replace(source, look=replace(source.look, shown=shown))
        raise bad("video", f"has {have} frames, too few for this model to go on from")

    def _wanted(self, asked: str | float, fields: dict[str, Any]) -> int:
        """How many frames `asked` seconds are."""
        try:
            seconds = float(asked)
        except ValueError:
            seconds = 0
        if not 0 < seconds <= 3600:
            raise bad("seconds", f"{asked!r} must be a number above 0, at most 3600")
        return round(seconds * fields.get("fps", self.default.fps))

    def _set_frames(self, asked: str | float, fields: dict[str, Any], source: Reference | None = None) -> None:
        """The nearest number of frames that the model makes to `asked` seconds, after those of `source` that it is
        shown."""
        more, shown = (0, 0) if source is None else (source.look.repeated, source.look.shown)
        wanted = max(1, self._wanted(asked, fields) + more)
        fields["num_frames"] = wanted
        self._check_most("seconds", **fields)
        tried = {name: value for name, value in fields.items() if name not in ("strength", "image_fit")}
        tried |= self._clip(shown) if shown else {}
        for distance in range(SEARCH // 2):
            for frames in (wanted + distance, wanted - distance):
                if frames > 0 and self.runs(**tried | {"num_frames": frames}):
                    fields["num_frames"] = frames
                    return
        # what is wrong is something else, and will be said

    def _check_most(self, name: str, **fields: Any) -> None:
        """Raise a 400 for what is larger than the operator allows, before the model is asked."""
        sizes = ("height", "width", "num_frames", "num_videos_per_prompt")
        height, width, frames, count = (fields.get(size, getattr(self.default, size)) for size in sizes)
        if height * width * frames * count > self._most:
            raise bad(name, f"{width}x{height} with {frames} frames is more than this server allows: at most "
                            f"{int(self._most)} pixels in all frames")  # fmt: skip

    def _checked(
        self, prompt: str, fields: dict[str, Any], wrote: dict[str, Any], inputs: Mapping[str, Reference]
    ) -> SamplingParam:
        named = ("size", "num_frames", "seconds", "n")
        largest = next((name for name in named if name in wrote), "video" if EXTENDS in inputs else "size")
        self._check_most("input_reference" if "video" in inputs and largest == "size" else largest, **fields)
        going_on = inputs[EXTENDS].look.shown if EXTENDS in inputs else 0
        media = ["image" if name == EXTENDS else name for name in inputs if name != EXTENDS or not going_on]
        frames = min((shown.look.frames for name, shown in inputs.items() if name in VIDEOS), default=1)
        stand_ins = self._stand_ins(media, frames) | (self._clip(going_on) if going_on else {})
        try:
            sampling = self._model.check_request(prompt, **fields | stand_ins)
        except ValueError as error:
            raise ApiError(400, str(error), param=field_of(error, wrote, inputs), code="invalid_value") from None
        for name, of in MASKS.items():
            if name in inputs and of in inputs:
                self._check_mask(name, inputs[name].look, of, inputs[of].look, sampling.num_frames)
        return sampling

    @staticmethod
    def _check_mask(name: str, mask: Look, of: str, video: Look, frames: int) -> None:
        what = "the video" if of == "video" else of
        if (mask.width, mask.height) != (video.width, video.height):
            raise bad(name, f"is {mask.width}x{mask.height}, and {what} is {video.width}x{video.height}; scale it")
        if 1 < mask.frames < frames:
            raise bad(name, f"has {mask.frames} frames; give one image, or at least {frames} frames")

    def _plan(
        self, request: Settings, wrote: dict[str, Any], sampling: SamplingParam, inputs: dict[str, Reference]
    ) -> Plan:
        if wrote.get("negative_prompt") and sampling.guidance_scale <= 1:
            raise bad("negative_prompt", f"does nothing without guidance (guidance_scale={sampling.guidance_scale:g}); "
                                         "leave it out, or set guidance_scale above 1")  # fmt: skip
        return Plan(request.prompt, wrote, stored(sampling, wrote.get("loras")), request.priority or 0, inputs)
