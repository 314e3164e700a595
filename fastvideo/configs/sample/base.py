"""`SamplingParam`: everything that a request may ask for beside its prompt."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from fastvideo.configs.base import Assignable, require_bool, require_number, require_whole
from fastvideo.configs.sample.speed import check_speed
from fastvideo.utils import require

MEDIA = {
    "image": "image_path",
    "last_image": "last_image_path",
    "video": "video_path",
    "mask": "mask_path",
    "reference_images": "reference_paths",
    "pose_video": "pose_video_path",
    "face_video": "face_video_path",
    "background_video": "background_video_path",
    "mask_video": "mask_video_path",
    "start_video": "start_video_path",
}
"""What a model may be shown beside the prompt, and the field that says where it is."""
MASKS = {"mask": "video", "mask_video": "background_video"}
"""Those that are a mask, and what they are a mask of."""
VIDEOS = ("video", "pose_video", "face_video", "background_video")
"""Those that are a video with as many frames as the request."""
OPTIONS = (
    "guidance_scale_2", "strength", "conditioning_scale", "mode", "segment_frame_length",
    "prev_segment_conditioning_frames", "motion_encode_batch_size",
)  # fmt: skip
"""Fields that only some models heed."""
MODES = ("animate", "replace")
"""Values of `mode`."""
FITS = ("area", "stretch")
"""Values of `image_fit`."""


@dataclass(kw_only=True)
class SamplingParam(Assignable):
    """What to sample. Every field is assignable until a generator uses it; then `check` runs once.

    The class that a model is registered with says what a request to it needs and may have.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    """Names in `MEDIA` that a request must have."""
    takes: ClassVar[tuple[str, ...]] = ()
    """Names in `MEDIA` and `OPTIONS` that a request may have."""
    sized_by: ClassVar[tuple[str, ...]] = ("image", "video")
    """Names in `MEDIA`; the first that is there gives the video its proportions."""

    negative_prompt: str = ""
    """What guidance steers away from."""
    height: int = 480
    """Of the video, in pixels."""
    width: int = 832
    """Of the video, in pixels."""
    num_frames: int = 81
    """Of the video."""
    fps: int = 16
    """Frames a second of the file."""
    num_inference_steps: int = 50
    """Denoising steps."""
    guidance_scale: float = 5.0
    """Strength of classifier-free guidance; 1 or less is none."""
    guidance_rescale: float = 0.0
    """How far guided predictions are scaled back to the spread of unguided ones, 0 to 1 (arXiv 2305.08891)."""
    seed: int = 1024
    """Of the initial noise."""
    num_videos_per_prompt: int = 1
    """Videos to make of each prompt."""
    output_path: str = "outputs/"
    """A folder, or a file."""
    save_video: bool = True
    """Whether to write the video to `output_path`."""
    return_frames: bool = False
    """Whether the result holds the frames."""
    image_path: str | None = None
    """The image that the video starts with: a file, or an http(s) URL, as all paths below."""
    last_image_path: str | None = None
    """The image that it ends with."""
    video_path: str | None = None
    """The video that it is made from."""
    mask_path: str | None = None
    """White where the video is made anew; a video, or one image for all frames."""
    reference_paths: list[str] | None = None
    """Images of what the video shows."""
    pose_video_path: str | None = None
    """The poses that the one in the image takes, frame by frame."""
    face_video_path: str | None = None
    """The face whose expressions it takes."""
    background_video_path: str | None = None
    """The video in which somebody is replaced."""
    mask_video_path: str | None = None
    """White where that one is; a video, or one image for all frames."""
    start_video_path: str | None = None
    """The video whose frames it begins with, to go on from them; num_frames counts them too."""
    image_fit: str = "area"
    """How the size follows an image or video that is given: "area" keeps its proportions, with at most height * width
    pixels; "stretch" makes it height x width."""
    guidance_scale_2: float | None = None
    """As guidance_scale, of the steps with little noise; None is guidance_scale."""
    strength: float | None = None
    """How much of a given video is noise at the start, above 0 to 1; None is the model's own."""
    conditioning_scale: float | list[float] | None = None
    """How strongly a control video or reference images steer, one number or one for each control layer; None is 1."""
    mode: str | None = None
    """animate: what is in the image moves as the poses and the face do; replace: in place of somebody in a given video.
    None is animate."""
    segment_frame_length: int | None = None
    """Frames that are made at once, of a model that makes a longer video in segments; None is the model's own."""
    prev_segment_conditioning_frames: int | None = None
    """Frames that a segment begins with, which are the last ones of the segment before; None is 1."""
    motion_encode_batch_size: int | None = None
    """Frames of the face that are looked at together: fewer take less memory; None is the model's own."""
    quality: str | None = None
    """exact; or high or fast: what `fastvideo tune` chose for this model among the fields below. None is what the model
    was loaded for, which is exact unless somebody said otherwise, and exact where a field below is given."""
    cache: str = "none"
    """How blocks are skipped between steps: none, fbcache, teacache (arXiv 2411.19108) or magcache (2506.09045)."""
    cache_threshold: float | None = None
    """The change below which they are; 0 skips none. None is the method's usual one."""
    cache_retention: float | None = None
    """Share of the steps, from the first, that run all blocks; None is the method's usual one."""
    cache_max_skips: int | None = None
    """At most so many steps in a row skip; None is the method's usual number."""
    cache_order: int = 0
    """0 adds the last residual again, 1 extrapolates the last two (arXiv 2503.06923)."""
    cache_coefficients: tuple[float, ...] | None = None
    """teacache's polynomial, highest power first, or magcache's ratio at each step; None is the model's own."""
    cfg_gate_step: float | None = None
    """Share of the steps after which guidance reuses its last difference and the unconditional prediction is left out
    (LinearAG of arXiv 2312.12487); 1 never. None is what FASTVIDEO_CFG_GATE_STEP says, else 1."""
    cfg_gate_refresh: int = 0
    """After the gate every n-th step computes it anyway; 0 none."""
    cfg_zero_star: bool = False
    """Fit the unconditional prediction to the conditional one, and start from zero (CFG-Zero*, arXiv 2503.18886)."""
    zero_init_steps: int | None = None
    """Steps from the first whose prediction is zero, with cfg_zero_star; None is 1."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Start and end of guidance, as shares of the steps; outside it the conditional prediction is used
    (arXiv 2404.07724)."""

    @classmethod
    def from_pretrained(cls, model: str | Path) -> "SamplingParam":
        """The defaults of `model`: a registered id, or a local folder.

        Raises:
            ValueError: nothing is registered for it; the message lists what is.
        """
        from fastvideo.configs.sample.registry import sampling_param_for

        return sampling_param_for(model)

    def check(self) -> None:
        """Check each field by itself; what a model requires of sizes is `check_sizes`.

        Raises:
            ValueError: the field, its value, the rule, and what to do.
        """
        for name in ("height", "width", "num_frames", "fps", "num_inference_steps", "num_videos_per_prompt"):
            require_whole(name, getattr(self, name), 1)
        require_whole("seed", self.seed, 0)
        require(int(self.seed) < 2**63, "seed", self.seed, "must be less than 2**63")
        require_number("guidance_scale", self.guidance_scale, 0)
        require_number("guidance_rescale", self.guidance_rescale, 0, 1)
        for name in ("save_video", "return_frames"):
            require_bool(name, getattr(self, name))
        require(isinstance(self.negative_prompt, str), "negative_prompt", self.negative_prompt, "must be a string")
        path = self.output_path
        require(isinstance(path, (str, Path)) and bool(str(path)), "output_path", path, "must be a path, not empty")
        self._check_media()
        check_speed(self)

    def _check_media(self) -> None:
        require(self.image_fit in FITS, "image_fit", self.image_fit, f"must be one of {', '.join(FITS)}")
        fix = "in Python pixels go into generate_video(image=...) and the like"
        for name in MEDIA.values():
            value, several = getattr(self, name), name == "reference_paths"
            if value is None:
                continue
            paths = value if several and isinstance(value, (list, tuple)) else [None if several else value]
            ok = len(paths) > 0 and all(isinstance(path, (str, Path)) and str(path) for path in paths)
            shown = value if isinstance(value, (str, list)) else type(value).__name__
            require(ok, name, shown, "must be a list of paths or URLs" if several else "must be a path or a URL", fix)
        if self.guidance_scale_2 is not None:
            require_number("guidance_scale_2", self.guidance_scale_2, 0)
        if self.strength is not None:
            require_number("strength", self.strength, 0, 1)
            require(self.strength > 0, "strength", self.strength, "must be more than 0, which would change nothing")
        scales = self.conditioning_scale
        for scale in scales if isinstance(scales, (list, tuple)) else () if scales is None else (scales,):
            require_number("conditioning_scale", scale, 0)
        require(self.mode in (None, *MODES), "mode", self.mode, f"must be one of {', '.join(MODES)}")
        for name in ("segment_frame_length", "prev_segment_conditioning_frames", "motion_encode_batch_size"):
            if getattr(self, name) is not None:
                require_whole(name, getattr(self, name), 1)

    def check_inputs(self, media: Collection[str], model: "type[SamplingParam]") -> None:
        """Check that the request has what `model`, the class that a model is registered with, needs and no more.

        Args:
            media: the names in `MEDIA` of what is given.
            model: says what is needed and taken.

        Raises:
            ValueError: what is missing or would be ignored, and what to do.
        """
        for name in media:
            if name not in (*model.needs, *model.takes):
                what = ", ".join((*model.needs, *(one for one in model.takes if one in MEDIA))) or "text alone"
                raise ValueError(
                    f"{name}: this model takes none; leave it out, or choose another model (it takes {what})"
                )
        for first, second in (("image", "last_image"), *((of, mask) for mask, of in MASKS.items())):
            if second in media and first not in media:
                raise ValueError(f"{second}: without {first}; give {first} too")
        if self.strength is not None and "video" not in media and "strength" in model.takes:
            raise ValueError(f"strength={self.strength!r}: does nothing without a video; give one, or leave it out")
        for name in model.needs:
            if name not in media:
                raise ValueError(f"{name}: this model needs one; give {name}=..., {MEDIA[name]} or its flag")
        model.check_together(self, media)
        for name in OPTIONS:
            if getattr(self, name) is not None and name not in model.takes:
                raise ValueError(f"{name}={getattr(self, name)!r}: this model would ignore it; leave it out")

    @classmethod
    def check_together(cls, sampling: "SamplingParam", media: Collection[str]) -> None:
        """Check what this model requires of the media, by their names in `MEDIA`, and of the fields together.

        Raises:
            ValueError: what is missing or would be ignored, and what to do.
        """

    def given_media(self) -> tuple[str, ...]:
        """The names in `MEDIA` of what the request has a path of."""
        return tuple(name for name, field in MEDIA.items() if getattr(self, field) is not None)

    def check_sizes(self, spatial: int, temporal: int) -> None:
        """Check the size against a pipeline: multiples of `spatial` pixels, and `temporal * k + 1` frames.

        Raises:
            ValueError: the field, its value, the rule, and the nearest value that fits.
        """
        for name in ("height", "width"):
            value = getattr(self, name)
            fit = max(spatial, round(value / spatial) * spatial)
            require(value % spatial == 0, name, value, f"must be a multiple of {spatial}", f"try {fit}")
        fit = (self.num_frames - 1) // temporal * temporal + 1
        rule = f"must be {temporal}k+1"
        require(self.num_frames == fit, "num_frames", self.num_frames, rule, f"try {fit} or {fit + temporal}")
