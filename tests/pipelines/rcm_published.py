"""The sampler of rCM (arXiv 2510.08431), restated step by step with the models of `diffusers`.

Source: `rcm/inference/wan2pt1_t2v_rcm_infer.py` and `wan2pt2_i2v_rcm_infer.py` of NVlabs/rcm.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from tests.pipelines.wan_pairs import CAT


@torch.no_grad()
def published(
    reference: Any, fields: dict[str, Any], media: dict[str, Any], prompts: Sequence[str] = (CAT,)
) -> torch.Tensor:
    """The videos [B, 3, T, H, W] in [0, 1], one of each prompt; an image is of their size."""
    vae, experts = reference.vae, getattr(reference, "transformer_2", None)
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    height, width = fields["height"], fields["width"]
    grid = ((fields["num_frames"] - 1) // 4 + 1, height // 8, width // 8)
    text = reference.encode_prompt(list(prompts), do_classifier_free_guidance=False, max_sequence_length=512)[0]
    shown = None
    if "image" in media:
        clip = torch.zeros(1, 3, fields["num_frames"], height, width)
        clip[0, :, 0] = torch.from_numpy(np.array(media["image"])).permute(2, 0, 1) / 127.5 - 1
        latents = (vae.encode(clip).latent_dist.mode() - mean) / std
        mask = torch.zeros(1, 4, *grid)
        mask[:, :, 0] = 1
        shown = torch.cat((mask, latents), dim=1).expand(len(prompts), -1, -1, -1, -1)
    middle = [1.5, 1.4, 1.0][: fields["num_inference_steps"] - 1]
    angles = torch.tensor([math.atan(80 if shown is None else 200), *middle, 0], dtype=torch.float64)
    levels = angles.sin() / (angles.cos() + angles.sin())
    generator = torch.Generator("cpu").manual_seed(fields["seed"])
    x = torch.randn(len(prompts), 16, *grid, generator=generator).double() * levels[0]
    for now, following in zip(levels[:-1], levels[1:], strict=True):
        model = experts if experts is not None and now < 0.9 else reference.transformer
        given = x.float() if shown is None else torch.cat((x.float(), shown), dim=1)
        velocity = model(given, (now.float() * 1000).expand(len(prompts)), text, return_dict=False)[0].double()
        noise = torch.randn(x.shape, generator=generator)
        x = (1 - following) * (x - now * velocity) + following * noise
    video: torch.Tensor = vae.decode(x.float() * std + mean, return_dict=False)[0]
    return (video / 2 + 0.5).clamp(0, 1)
