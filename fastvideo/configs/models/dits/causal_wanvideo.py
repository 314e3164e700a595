"""Arch config of the causal Wan video transformer, whose weights are those of the other under the same names."""

from dataclasses import dataclass

from fastvideo.configs.models.dits.wanvideo import WanVideoArchConfig


@dataclass(frozen=True, kw_only=True)
class CausalWanVideoArchConfig(WanVideoArchConfig):
    """Fields of a `CausalWanTransformer3DModel` `config.json`; published ones leave out those here, whose defaults are
    those of FastVideo's self-forcing models."""

    num_frames_per_block: int = 3
    """Latent frames of a chunk."""
    local_attn_size: int = -1
    """Latent frames that a chunk sees, its own included; -1 is `sliding_window_num_frames`."""
    sliding_window_num_frames: int = 21
    """Latent frames of the longest clip that the model was trained on."""
    sink_size: int = 0
    """Of the frames that a chunk sees, so many are the first of the video."""
    independent_first_frame: bool = False
    """Whether the first frame is a chunk of its own, which may be a given image; a key of Self-Forcing's config."""

    @property
    def window(self) -> int:
        """Latent frames that a chunk sees, its own included."""
        return self.sliding_window_num_frames if self.local_attn_size == -1 else self.local_attn_size

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_frames_per_block < 1:
            raise ValueError(f"num_frames_per_block={self.num_frames_per_block}: must be at least 1")
        if self.sink_size < 0:
            raise ValueError(f"sink_size={self.sink_size}: must be at least 0")
        if self.window < self.sink_size + self.num_frames_per_block:
            name = "sliding_window_num_frames" if self.local_attn_size == -1 else "local_attn_size"
            raise ValueError(
                f"{name}={self.window}: must be at least sink_size + num_frames_per_block = "
                f"{self.sink_size + self.num_frames_per_block}, or a chunk could not see itself"
            )
        if self.patch_size[0] != 1:
            raise ValueError(f"patch_size={self.patch_size}: must be of one frame, as chunks are of single frames")
        if self.gate_compress:
            raise ValueError("gate_compress=True: a causal model with the gates of sparse attention is not supported")
        if self.image_dim is not None:
            raise ValueError(f"image_dim={self.image_dim}: a causal model that is shown images is not supported")
