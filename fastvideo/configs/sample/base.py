"""`SamplingParam`: everything that a request may ask for beside its prompt."""

from dataclasses import dataclass
from pathlib import Path

from fastvideo.configs.base import Assignable, require_bool, require_number, require_whole
from fastvideo.utils import require


@dataclass(kw_only=True)
class SamplingParam(Assignable):
    """What to sample. Every field is assignable until a generator uses it; then `check` runs once."""

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
