"""Text, and maybe a first frame, to video chunk by chunk, with a causal Wan transformer that was distilled by
distribution matching.

Sources: Self-Forcing (arXiv 2506.08009), algorithm 2; its steps and their shift are those of its authors' published
config. FastVideo publishes such models as SFWan.
"""

from fastvideo.configs.pipelines.wan import SELF_FORCING_TIMESTEPS
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.configs.sample.wan import SFWanSampling
from fastvideo.configs.sample.wan_few_steps import SFWanI2VSampling
from fastvideo.models.dits.causal_wanvideo import CausalWanTransformer3DModel
from fastvideo.models.encoders.t5 import T5EncoderModel
from fastvideo.models.schedulers.flow import FlowScheduler, RenoisingFlow, warped
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from fastvideo.pipelines.basic.wan.wan_pipeline import WanPipeline, text_conditions
from fastvideo.pipelines.basic.wan.wan_ti2v_pipeline import first_frame
from fastvideo.pipelines.stages import InputValidationStage, PipelineStage, RolloutStage, TextEncodingStage
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
            InputValidationStage(self.check_sampling, SFWanI2VSampling if first else SFWanSampling),
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
                given=lambda batch, device: first_frame(self.vae, batch, device),
                preview=self.preview,
            ),
        )

    def check_sampling(self, sampling: SamplingParam) -> None:
        """A video is whole chunks; the number of steps is the model's, and guidance is in its weights."""
        super().check_sampling(sampling)
        rate, chunk = self.vae.arch.scale_factor_temporal, self.causal.arch.num_frames_per_block
        frames, first = self.latent_shape(sampling)[1], int(self.causal.arch.independent_first_frame)
        most = (self.causal.arch.rope_max_seq_len - first) // chunk * chunk + first
        fewer = (frames - first) // chunk * chunk + first
        near = " or ".join(str(rate * (count - 1) + 1) for count in (fewer, fewer + chunk) if count)
        rule = f"{rate * chunk}k+1" if first else f"{rate * chunk}k-{rate - 1}"
        require((frames - first) % chunk == 0, "num_frames", sampling.num_frames,
                f"must be {rule}, as the model makes {chunk} latent frames at once", f"try {near}")  # fmt: skip
        require(frames <= most, "num_frames", sampling.num_frames,
                f"this model has places for {most} latent frames", f"try {rate * (most - 1) + 1}")  # fmt: skip
        steps = len(SELF_FORCING_TIMESTEPS)
        require(sampling.num_inference_steps == steps, "num_inference_steps", sampling.num_inference_steps,
                f"this model is distilled for {steps} steps", f"set it to {steps}")  # fmt: skip
        require(sampling.guidance_scale <= 1, "guidance_scale", sampling.guidance_scale,
                "this model has guidance in its weights", "set it to 1")  # fmt: skip
        require(sampling.cache == "none", "cache", sampling.cache,
                "the steps of a chunk are too few to skip one", "leave it 'none'")  # fmt: skip
