"""Wan 2.1 and 2.2 video VAEs: causal in time, 8x and 16x smaller in space and 4x in time (the first frame stands
alone).

Sources: arXiv 2503.20314, section 4.1; the reference that results are compared with is
`diffusers/models/autoencoders/autoencoder_kl_wan.py`. The reference runs one latent frame at a time and hands feature
caches on; here a whole chunk of frames goes through at once, which gives the same numbers. What layers see beyond it
comes from a `Neighbourhood`: frames of the chunk before, and rows on other ranks when the decoder's work is spread.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.configs.models.vaes.wanvae import WanVAEArchConfig
from fastvideo.layers.convolution import conv3d
from fastvideo.layers.norm import rms_norm
from fastvideo.models.vaes.base import BaseVAE, Neighbourhood, Past, Prepare
from fastvideo.models.vaes.tiling import Mosaic, Tiling
from fastvideo.utils import require


class CausalConv3d(nn.Conv3d):
    """A convolution that sees the present and past frames only; before the first frame there are zeros."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int, int]) -> None:
        kernel = (kernel_size,) * 3 if isinstance(kernel_size, int) else kernel_size
        super().__init__(in_channels, out_channels, kernel, padding=(0, kernel[1] // 2, kernel[2] // 2))

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, past: Neighbourhood, prepare: Prepare | None = None
    ) -> torch.Tensor:
        """The convolution of `x` [B, C, T, H, W], to which `prepare` is done first."""
        time, height, width = self.kernel_size
        y, padding = past.extend(self, x, frames=time - 1, rows=height // 2, prepare=prepare)
        if not x.shape[2]:
            return x.new_empty(x.shape[0], self.out_channels, *x.shape[2:])
        return conv3d(y, self.weight, self.bias, padding=(0, padding, width // 2))


class FrameConv2d(nn.Conv2d):
    """A convolution of single frames [N, C, H, W] that keeps their size."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def forward(self, x: torch.Tensor, past: Neighbourhood) -> torch.Tensor:  # type: ignore[override]
        height, width = self.kernel_size
        x, padding = past.extend(self, x, frames=0, rows=height // 2)
        return F.conv2d(x, self.weight, self.bias, padding=(padding, width // 2))


class ChannelNorm(nn.Module):
    """Each position's channels scaled to unit root mean square, times `gamma`; no epsilon matters (RMSNorm)."""

    def __init__(self, dim: int, spatial_dims: int = 3) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(dim, *(1,) * spatial_dims))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [B, C, ...]: reduced over C, which is the contiguous dimension of a channels-last tensor."""
        return rms_norm(x.movedim(1, -1), self.gamma.flatten(), eps=1e-24).movedim(-1, 1)

    def activated(self, x: torch.Tensor, out: torch.Tensor | None) -> torch.Tensor:
        """SiLU of the norm of `x` [B, C, ...], in `out` if that is given."""
        place = None if out is None else out.movedim(1, -1)
        return rms_norm(x.movedim(1, -1), self.gamma.flatten(), eps=1e-24, silu=True, out=place).movedim(-1, 1)


class ResidualBlock(nn.Module):
    """Two normalised, activated causal convolutions beside a shortcut."""

    def __init__(self, in_dim: int, out_dim: int) -> None:
        super().__init__()
        self.norm1 = ChannelNorm(in_dim)
        self.conv1 = CausalConv3d(in_dim, out_dim, 3)
        self.norm2 = ChannelNorm(out_dim)
        self.conv2 = CausalConv3d(out_dim, out_dim, 3)
        self.conv_shortcut = CausalConv3d(in_dim, out_dim, 1) if in_dim != out_dim else None

    def forward(self, x: torch.Tensor, past: Neighbourhood) -> torch.Tensor:
        shortcut = x if self.conv_shortcut is None else self.conv_shortcut(x, past)
        h = self.conv1(x, past, self.norm1.activated)
        return self.conv2(h, past, self.norm2.activated).add_(shortcut)


class AttentionBlock(nn.Module):
    """Single-head attention among the positions of each frame."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(dim, spatial_dims=2)
        self.to_qkv = nn.Conv2d(dim, 3 * dim, 1)
        self.proj = nn.Conv2d(dim, dim, 1)

    def forward(self, x: torch.Tensor, past: Neighbourhood) -> torch.Tensor:
        frames = _frames(x)
        n, c, h, w = frames.shape
        q, kv = self.to_qkv(self.norm(frames)).flatten(2).mT.unsqueeze(1).split((c, 2 * c), dim=-1)
        k, v = past.whole(kv).chunk(2, dim=-1)
        y = F.scaled_dot_product_attention(q, k, v).squeeze(1).mT.reshape(n, c, h, w)
        return x + _clip(self.proj(y), x.shape[0])


def _frames(x: torch.Tensor) -> torch.Tensor:
    """[B, C, T, H, W] as single frames [B * T, C, H, W]."""
    return x.transpose(1, 2).flatten(0, 1)


def _clip(frames: torch.Tensor, batch: int) -> torch.Tensor:
    """The inverse of `_frames`."""
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)


class Downsample(nn.Module):
    """Half the height and width and, if `temporal`, half the frames after the first, which stands alone."""

    def __init__(self, dim: int, temporal: bool) -> None:
        super().__init__()
        # the convolution sits at index 1 in the checkpoints
        self.resample = nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(dim, dim, 3, stride=2))
        self.time_conv = nn.Conv3d(dim, dim, (3, 1, 1), stride=(2, 1, 1)) if temporal else None

    def forward(self, x: torch.Tensor, past: Neighbourhood) -> torch.Tensor:
        x = _clip(self.resample(_frames(x)), x.shape[0])
        if self.time_conv is None:
            return x
        started = past.started(self)
        y, _ = past.extend(self, x, frames=1, rows=0)
        if started:
            return self.time_conv(y)
        return torch.cat((x[:, :, :1], self.time_conv(x)), dim=2) if x.shape[2] > 1 else x


class Upsample(nn.Module):
    """Twice the height and width at `out_dim` channels and, if `temporal`, twice the frames after the first."""

    def __init__(self, dim: int, out_dim: int, temporal: bool) -> None:
        super().__init__()
        self.resample = nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest-exact"), FrameConv2d(dim, out_dim, 3))
        self.time_conv = CausalConv3d(dim, 2 * dim, (3, 1, 1)) if temporal else None

    def forward(self, x: torch.Tensor, past: Neighbourhood) -> torch.Tensor:
        if self.time_conv is not None:
            # the first frame is neither doubled nor seen by the frames after it
            first, later = x.tensor_split((0 if past.started(self.time_conv) else 1,), dim=2)
            # each position's channels stay together: a copy into another layout would be made twice, the second time of
            # the enlarged frames
            pairs = self.time_conv(later, past).movedim(1, -1).unflatten(-1, (2, -1))
            doubled = pairs.permute(0, 1, 4, 2, 3, 5).flatten(1, 2).movedim(-1, 1)
            x = torch.cat((first, doubled), dim=2)
        frames = self.resample[0](_frames(x))
        return _clip(self.resample[1](frames, past), x.shape[0])


class MidBlock(nn.Module):
    """Residual, attention, residual."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.resnets = nn.ModuleList((ResidualBlock(dim, dim), ResidualBlock(dim, dim)))
        self.attentions = nn.ModuleList((AttentionBlock(dim),))

    def forward(self, x: torch.Tensor, past: Neighbourhood) -> torch.Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x, past), past), past)


def average_down(x: torch.Tensor, channels: int, time: int, space: int) -> torch.Tensor:
    """`x` [B, C, T, H, W] with `time` * `space` * `space` neighbours moved into channels, and means of groups of those:
    [B, channels, ceil(T / time), H / space, W / space]. A frame that stands alone comes behind zeros."""
    x = F.pad(x, (0, 0, 0, 0, -x.shape[2] % time, 0))
    x = x.unflatten(4, (-1, space)).unflatten(3, (-1, space)).unflatten(2, (-1, time))
    b, _, t, _, h, _, w, _ = x.shape
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).reshape(b, channels, -1, t, h, w).mean(dim=2)


def repeat_up(x: torch.Tensor, channels: int, time: int, space: int) -> torch.Tensor:
    """The way back of `average_down`, each channel repeated: `x` [B, C, T, H, W] as [B, channels, time * T, space * H,
    space * W]."""
    repeats = channels * time * space * space // x.shape[1]
    x = x.repeat_interleave(repeats, dim=1).unflatten(1, (channels, time, space, space))
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).flatten(6, 7).flatten(4, 5).flatten(2, 3)


class ResidualDownBlock(nn.Module):
    """One level of the Wan 2.2 encoder: residual blocks and a downsampling, beside a shortcut without parameters."""

    def __init__(self, in_dim: int, out_dim: int, num_res_blocks: int, downsample: Downsample | None) -> None:
        super().__init__()
        dims = [in_dim, *(out_dim,) * num_res_blocks]
        self.out_dim = out_dim
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in zip(dims[:-1], dims[1:], strict=True))
        self.downsampler = downsample
        self.space = 1 if downsample is None else 2
        self.time = 1 if downsample is None or downsample.time_conv is None else 2

    def forward(self, x: torch.Tensor, past: Neighbourhood) -> torch.Tensor:
        shortcut = average_down(x, self.out_dim, self.time, self.space)
        for block in self.resnets:
            x = block(x, past)
        return shortcut + (x if self.downsampler is None else self.downsampler(x, past))


class Encoder(nn.Module):
    """Video [B, 3, T, H, W] to the moments of the latents [B, 2 z, t, h, w]."""

    def __init__(self, arch: WanVAEArchConfig) -> None:
        super().__init__()
        dims = [arch.base_dim * mult for mult in (1, *arch.dim_mult)]
        self.conv_in = CausalConv3d(arch.in_channels, dims[0], 3)
        self.down_blocks = nn.ModuleList()
        last = len(arch.dim_mult) - 1
        for level, (in_dim, out_dim) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
            if arch.is_residual:
                down = Downsample(out_dim, arch.temperal_downsample[level]) if level < last else None
                self.down_blocks.append(ResidualDownBlock(in_dim, out_dim, arch.num_res_blocks, down))
                continue
            for block in range(arch.num_res_blocks):
                self.down_blocks.append(ResidualBlock(in_dim if block == 0 else out_dim, out_dim))
            if level < last:
                self.down_blocks.append(Downsample(out_dim, arch.temperal_downsample[level]))
        self.mid_block = MidBlock(dims[-1])
        self.norm_out = ChannelNorm(dims[-1])
        self.conv_out = CausalConv3d(dims[-1], 2 * arch.z_dim, 3)

    def forward(self, x: torch.Tensor, past: Neighbourhood) -> torch.Tensor:
        x = self.conv_in(x, past)
        for block in self.down_blocks:
            x = block(x, past)
        x = self.mid_block(x, past)
        return self.conv_out(x, past, self.norm_out.activated)


class UpBlock(nn.Module):
    """One level of the decoder."""

    def __init__(self, in_dim: int, out_dim: int, num_res_blocks: int, upsample: Upsample | None) -> None:
        super().__init__()
        dims = [in_dim, *(out_dim,) * (num_res_blocks + 1)]
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in zip(dims[:-1], dims[1:], strict=True))
        self.upsamplers = nn.ModuleList(() if upsample is None else (upsample,))

    def forward(self, x: torch.Tensor, past: Neighbourhood) -> torch.Tensor:
        for block in (*self.resnets, *self.upsamplers):
            x = block(x, past)
        return x


class ResidualUpBlock(nn.Module):
    """One level of the Wan 2.2 decoder: residual blocks and an upsampling, beside a shortcut without parameters."""

    def __init__(self, in_dim: int, out_dim: int, num_res_blocks: int, upsample: Upsample | None) -> None:
        super().__init__()
        dims = [in_dim, *(out_dim,) * (num_res_blocks + 1)]
        self.out_dim = out_dim
        self.resnets = nn.ModuleList(ResidualBlock(a, b) for a, b in zip(dims[:-1], dims[1:], strict=True))
        self.upsampler = upsample

    def forward(self, x: torch.Tensor, past: Neighbourhood) -> torch.Tensor:
        given = x
        for block in self.resnets:
            x = block(x, past)
        if self.upsampler is None:
            return x
        time_conv = self.upsampler.time_conv
        shortcut = repeat_up(given, self.out_dim, 1 if time_conv is None else 2, 2)
        if time_conv is not None and not past.started(time_conv):
            shortcut = shortcut[:, :, 1:]  # the first frame is not doubled
        return self.upsampler(x, past) + shortcut


class Decoder(nn.Module):
    """Latents [B, z, t, h, w] to video [B, 3, T, H, W]."""

    def __init__(self, arch: WanVAEArchConfig) -> None:
        super().__init__()
        base = arch.decoder_base_dim or arch.base_dim
        dims = [base * mult for mult in (arch.dim_mult[-1], *arch.dim_mult[::-1])]
        temporal = arch.temperal_downsample[::-1]
        self.conv_in = CausalConv3d(arch.z_dim, dims[0], 3)
        self.mid_block = MidBlock(dims[0])
        self.up_blocks = nn.ModuleList()
        for level, (in_dim, out_dim) in enumerate(zip(dims[:-1], dims[1:], strict=True)):
            upsamples = level < len(arch.dim_mult) - 1
            if arch.is_residual:
                up = Upsample(out_dim, out_dim, temporal[level]) if upsamples else None
                self.up_blocks.append(ResidualUpBlock(in_dim, out_dim, arch.num_res_blocks, up))
                continue
            # each upsampling halves the channels
            up = Upsample(out_dim, out_dim // 2, temporal[level]) if upsamples else None
            self.up_blocks.append(UpBlock(in_dim // 2 if level else in_dim, out_dim, arch.num_res_blocks, up))
        self.norm_out = ChannelNorm(dims[-1])
        self.conv_out = CausalConv3d(dims[-1], arch.out_channels, 3)

    def forward(self, x: torch.Tensor, past: Neighbourhood) -> torch.Tensor:
        x = self.mid_block(self.conv_in(x, past), past)
        for block in self.up_blocks:
            x = block(x, past)
        return self.conv_out(x, past, self.norm_out.activated)


def space_to_channels(x: torch.Tensor, patch: int) -> torch.Tensor:
    """[B, C, T, H, W] as [B, C * patch * patch, T, H / patch, W / patch]; of a channel, columns count before rows."""
    if patch == 1:
        return x
    return x.unflatten(4, (-1, patch)).unflatten(3, (-1, patch)).permute(0, 1, 6, 4, 2, 3, 5).flatten(1, 3)


def channels_to_space(x: torch.Tensor, patch: int) -> torch.Tensor:
    """The inverse of `space_to_channels`."""
    if patch == 1:
        return x
    return x.unflatten(1, (-1, patch, patch)).permute(0, 1, 4, 5, 3, 6, 2).flatten(5, 6).flatten(3, 4)


class AutoencoderKLWan(BaseVAE):
    """The Wan VAE between video in [-1, 1] and latents of zero mean and unit variance."""

    def __init__(self, arch: WanVAEArchConfig) -> None:
        super().__init__()
        self.arch = arch
        self.encoder = Encoder(arch)
        self.quant_conv = CausalConv3d(2 * arch.z_dim, 2 * arch.z_dim, 1)
        self.post_quant_conv = CausalConv3d(arch.z_dim, arch.z_dim, 1)
        self.decoder = Decoder(arch)

    def encode(self, video: torch.Tensor) -> torch.Tensor:
        """Latents [B, z, 1 + (T - 1) / 4, H / s, W / s] fp32, the mode of the posterior, of `video` [B, 3, T, H, W].

        Raises:
            ValueError: T is not 4k + 1, or H or W is no multiple of s, 8 or 16.
        """
        time, space = self.arch.scale_factor_temporal, self.arch.scale_factor_spatial
        _, _, t, h, w = video.shape
        if (t - 1) % time:
            raise ValueError(f"video of {t} frames: must be {time}k+1; try {(t - 1) // time * time + 1}")
        if h % space or w % space:
            raise ValueError(f"video of {h}x{w}: height and width must be multiples of {space}")
        moments = self._clip_moments(video) if self.tiling is None else self._tiled_moments(video, self.tiling)
        mean, std = self._statistics(moments.device)
        return (moments.chunk(2, dim=1)[0] - mean) / std

    def cut(self, tiling: Tiling) -> None:
        """See `BaseVAE`."""
        patch = self.arch.patch_size
        require(patch is None, "vae_tiling", True, f"is not there for a VAE of patches (patch_size={patch})",
                "leave it False")  # fmt: skip
        super().cut(tiling)

    def _clip_moments(self, video: torch.Tensor) -> torch.Tensor:
        """`moments` of a whole clip."""
        past = Past()
        parts = [video[:, :, :1], *video[:, :, 1:].split(self.arch.scale_factor_temporal * self.chunk, dim=2)]
        return torch.cat([self.moments(part, past) for part in parts if part.shape[2]], dim=2)

    def _tiled_moments(self, video: torch.Tensor, tiling: Tiling) -> torch.Tensor:
        """`moments` of a whole clip, tile by tile."""
        time, space = self.arch.scale_factor_temporal, self.arch.scale_factor_spatial
        b, _, t, h, w = video.shape
        small = tiling.over(space)
        tiles = small.tiles(h // space, w // space)
        if len(tiles) == 1:
            return self._clip_moments(video)
        shape = (b, 2 * self.arch.z_dim, 1 + (t - 1) // time, h // space, w // space)
        mosaic = Mosaic(video.new_empty(shape, dtype=self.quant_conv.weight.dtype), small)
        for tile in tiles:
            mosaic.put(self._clip_moments(tile.scaled(space).of(video)), tile, 0)
        return mosaic.frames

    def moments(self, video: torch.Tensor, past: Neighbourhood) -> torch.Tensor:
        """Mean and log variance [B, 2 z, t, h, w] of the posterior, not scaled, of the frames that follow `past`."""
        patches = space_to_channels(video, self.arch.patch_size or 1)
        return self.quant_conv(self.encoder(self._layout(patches), past), past)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Video [B, 3, 4 (t - 1) + 1, s h, s w] in [-1, 1] of `latents` [B, z, t, h, w]."""
        return torch.cat(list(self.stream(latents)), dim=2)

    def parts(self, latents: torch.Tensor) -> int:
        """How many parts `stream` gives."""
        return self.decoder_split(self.arch.scale_factor_spatial).parts(latents, self.chunk)

    def stream(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """The frames of `decode`, a chunk at a time; where the work is split, on rank 0, and no frames on others. Of a
        tiled video the frames come last, and before them parts without any."""
        mean, std = self._statistics(latents.device)
        time, space = self.arch.scale_factor_temporal, self.arch.scale_factor_spatial
        b, _, _, h, w = latents.shape
        dtype = self.post_quant_conv.weight.dtype
        colours = self.arch.out_channels // (self.arch.patch_size or 1) ** 2
        nothing = latents.new_empty(b, colours, 0, h * space, w * space, dtype=dtype)
        for part in self.decoder_split(space).stream(self.frames, latents * std + mean, self.chunk, time, nothing):
            yield part.clamp_(-1, 1)

    def first_frame(self, latents: torch.Tensor) -> torch.Tensor:
        """The first frame [B, 3, s h, s w] of `decode`, on this rank alone; it depends on no later latents."""
        return self.following(latents[:, :, :1], Past())[:, :, 0]

    def following(self, latents: torch.Tensor, past: Neighbourhood) -> torch.Tensor:
        """The frames [B, 3, T, s h, s w] of `latents` that follow `past`, on this rank alone, all at once: those that
        `decode` has of a clip whose earlier latents went through `past`."""
        mean, std = self._statistics(latents.device)
        return self.frames(latents * std + mean, past).clamp_(-1, 1)

    def frames(self, latents: torch.Tensor, past: Neighbourhood) -> torch.Tensor:
        """Frames, not clamped, of unscaled `latents` that follow `past`."""
        patches = self.decoder(self.post_quant_conv(self._layout(latents), past), past)
        return channels_to_space(patches, self.arch.patch_size or 1)

    def _layout(self, x: torch.Tensor) -> torch.Tensor:
        # convolutions and the channel norm both run over contiguous channels
        return x.to(self.post_quant_conv.weight.dtype, memory_format=torch.channels_last_3d)

    def _statistics(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and standard deviation [1, z, 1, 1, 1] of unscaled latents, fp32: rounded, they shift every latent."""
        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=device).view(1, -1, 1, 1, 1)
            for values in (self.arch.latents_mean, self.arch.latents_std)
        )
        return mean, std
