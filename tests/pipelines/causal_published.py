"""Self-Forcing (arXiv 2506.08009), algorithm 2, by the models of `diffusers` and without a cache."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.models.block_causal import mask, predict
from tests.pipelines.wan_pairs import CAT

STEPS = torch.tensor([1000.0, 937.5, 2500 / 3, 625.0])
"""1000, 750, 500 and 250 in a schedule with a shift of 5: s -> 5 s / (1 + 4 s)."""


def load_models(repo: Path) -> Any:
    """The models of a causal repo as a pipeline of `diffusers`, which has no class for it; it embeds prompts."""
    from diffusers import AutoencoderKLWan, WanPipeline, WanTransformer3DModel
    from transformers import AutoTokenizer, UMT5EncoderModel

    return WanPipeline(
        tokenizer=AutoTokenizer.from_pretrained(repo / "tokenizer"),
        text_encoder=UMT5EncoderModel.from_pretrained(repo / "text_encoder").eval(),
        transformer=WanTransformer3DModel.from_pretrained(repo, subfolder="transformer").eval(),
        vae=AutoencoderKLWan.from_pretrained(repo, subfolder="vae").eval(),
        scheduler=None,
    )


def published(
    models: Any, fields: dict[str, Any], media: dict[str, Any], prompts: Sequence[str] = (CAT,)
) -> torch.Tensor:
    """The videos [B, 3, T, H, W] in [0, 1], one of each prompt: for each step of each chunk a pass over all frames so
    far, those before the chunk clean and at timestep 0, under the mask of what each chunk sees. Where the first frame
    is a chunk of its own, it may be the image. The first chunks may be those of `start_video`."""
    transformer, vae = models.transformer, models.vae
    window, sink = transformer.config.get("sliding_window_num_frames", 21), transformer.config.get("sink_size", 0)
    frames, height, width = (fields["num_frames"] - 1) // 4 + 1, fields["height"] // 8, fields["width"] // 8
    tokens = height // 2 * (width // 2)
    generator = torch.Generator("cpu").manual_seed(fields["seed"])
    first = int(transformer.config.get("independent_first_frame", False))
    mean, std = (
        torch.tensor(values).view(1, -1, 1, 1, 1) for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    done = torch.zeros(len(prompts), 16, 0, height, width)
    with torch.no_grad():
        text = models.encode_prompt(list(prompts), do_classifier_free_guidance=False, max_sequence_length=512)[0]
        size = fields["height"], fields["width"]
        shown: torch.Tensor | None = None
        if "image" in media:
            shown = models.video_processor.preprocess(media["image"], *size).unsqueeze(2)
        if "start_video" in media:
            shown = models.video_processor.preprocess_video(media["start_video"], *size)
        if shown is not None:
            known = (vae.encode(shown).latent_dist.mode() - mean) / std
            done = known.expand(len(prompts), -1, -1, -1, -1)
        while done.shape[2] < frames:
            start = done.shape[2]
            count = 1 if first and not start else 3
            chunk = torch.randn(len(prompts), 16, count, height, width, generator=generator)
            for number, time in enumerate(STEPS):
                times = torch.cat((torch.zeros(start), time.expand(count)))
                seen = mask(start + count, 3, window, sink, tokens, first)
                velocity = predict(transformer, torch.cat((done, chunk), dim=2), times, text, seen)[:, :, start:]
                data = chunk - time / 1000 * velocity
                if number < len(STEPS) - 1:
                    level = STEPS[number + 1] / 1000
                    chunk = (1 - level) * data + level * torch.randn(data.shape, generator=generator)
            done = torch.cat((done, data), dim=2)
        video: torch.Tensor = vae.decode(done * std + mean, return_dict=False)[0]
    return (video / 2 + 0.5).clamp(0, 1)
