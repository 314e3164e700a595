"""Text, and maybe a first frame or the frames of a video to go on from, to video chunk by chunk, with a causal Wan
transformer that was distilled by distribution matching.

Sources: Self-Forcing (arXiv 2506.08009), algorithm 2; its steps and their shift are those of its authors' published
config, and known frames go into the cache as `initial_latent` does in its `pipeline/causal_inference.py`. FastVideo
publishes such models as SFWan.
"""

import torch

from fastvideo.configs.pipelines.wan import SELF_FORCING_TIMESTEPS
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.configs.sample.wan import SFWanSampling
from fastvideo.configs.sample.wan_few_steps import SFWanI2VSampling
from fastvideo.layers.residence import ready
from fastvideo.models.dits.causal_wanvideo import CausalWanTransformer3DModel
from fastvideo.models.encoders.t5 import T5EncoderModel
from fastvideo.models.schedulers.flow import FlowScheduler, RenoisingFlow, warped
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.pipelines.basic.wan.wan_pipeline import WanPipeline, text_conditions
from fastvideo.pipelines.basic.wan.wan_ti2v_pipeline import first_frame
from fastvideo.pipelines.pipeline_batch_info import ForwardBatch, MediaInputs
from fastvideo.pipelines.stages import InputValidationStage, PipelineStage, RolloutStage, TextEncodingStage
from fastvideo.pipelines.stages.media import fit_video
from fastvideo.utils import require


class WanCausalDMDPipeline(WanPipeline):
    """Text to video a few frames at a time, each in as many steps as the model was distilled for."""

    def create_stages(self) -> tuple[PipelineStage, ...]:
        self.causal = self.component("transformer", CausalWanTransformer3DModel)
        self.transformer = self.causal
        self.vae = self.component("vae", AutoencoderKLWan)
        # of the repo's scheduler the shift counts, which the pipeline config may have set
        shift = self.component("scheduler", FlowScheduler).shift
        first = int(self.causal.arch.independent_first_frame)
        return (
            InputValidationStage(self.check_sampling, SFWanI2VSampling if first else SFWanSampling, self.check_media),
            TextEncodingStage(self.component("text_encoder", T5EncoderModel)),
            RolloutStage(
                RenoisingFlow(warped(SELF_FORCING_TIMESTEPS, shift), shift),
                model=self.causal,
                vae=self.vae,
                conditions=text_conditions,
                latent_shape=self.latent_shape,
                new_memory=self.causal.new_memory,
                chunk=self.causal.arch.num_frames_per_block,
                first=first,
                given=self.known,
                preview=self.preview,
            ),
        )

    def check_sampling(self, sampling: SamplingParam) -> None:
        """A video is whole chunks; the number of steps is the model's, and guidance is in its weights."""
        super().check_sampling(sampling)
        self._check_chunks("num_frames", sampling.num_frames, "try")
        rate, chunk = self.vae.arch.scale_factor_temporal, self.causal.arch.num_frames_per_block
        frames, first = self.latent_shape(sampling)[1], int(self.causal.arch.independent_first_frame)
        most = (self.causal.arch.rope_max_seq_len - first) // chunk * chunk + first
        require(frames <= most, "num_frames", sampling.num_frames,
                f"this model has places for {most} latent frames", f"try {rate * (most - 1) + 1}")  # fmt: skip
        steps = len(SELF_FORCING_TIMESTEPS)
        require(sampling.num_inference_steps == steps, "num_inference_steps", sampling.num_inference_steps,
                f"this model is distilled for {steps} steps", f"set it to {steps}")  # fmt: skip
        require(sampling.guidance_scale <= 1, "guidance_scale", sampling.guidance_scale,
                "this model has guidance in its weights", "set it to 1")  # fmt: skip
        require(sampling.cache == "none", "cache", sampling.cache,
                "the steps of a chunk are too few to skip one", "leave it 'none'")  # fmt: skip

    def check_media(self, media: MediaInputs) -> None:
        """Frames to go on from are whole chunks."""
        if media.start_video is not None:
            self._check_chunks("start_video", len(media.start_video), "give frames, its last ones:")

    def known(self, batch: ForwardBatch, device: torch.device) -> torch.Tensor | None:
        """The latents [1, z, t, h, w] of what the video begins with; None where it is all made."""
        clip = batch.media.start_video
        if clip is None:
            return first_frame(self.vae, batch, device)
        with ready(self.vae):
            return self.vae.encode(fit_video(clip, batch.sampling.height, batch.sampling.width)[None].to(device))

    def _check_chunks(self, name: str, count: int, fix: str) -> None:
        """Raise a `ValueError` unless `count` frames are whole chunks."""
        rate, chunk = self.vae.arch.scale_factor_temporal, self.causal.arch.num_frames_per_block
        first = int(self.causal.arch.independent_first_frame)
        each = rate * chunk
        rest = 1 if first else each - rate + 1
        fewer = (count - rest) // each * each + rest
        near = " or ".join(str(frames) for frames in (fewer, fewer + each) if frames > 0)
        rule = f"{each}k+1" if first else f"{each}k-{rate - 1}"
        require(count == fewer, name, count, f"must be {rule}, as the model makes {chunk} latent frames at once",
                f"{fix} {near}")  # fmt: skip
