"""Each stage by itself."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from fastvideo.configs.sample import SamplingParam
from fastvideo.layers.residence import OnDevice
from fastvideo.models.encoders.base import TextEmbeddings
from fastvideo.pipelines.pipeline_batch_info import Cancelled, Control, Progress
from fastvideo.pipelines.stages.decoding import DecodingStage
from fastvideo.pipelines.stages.denoising import DenoisingStage
from fastvideo.pipelines.stages.input_validation import InputValidationStage
from fastvideo.pipelines.stages.latent_preparation import LatentPreparationStage
from fastvideo.pipelines.stages.prediction import Guidance
from fastvideo.pipelines.stages.text_encoding import TextEncodingStage, select_rows
from fastvideo.pipelines.stages.timestep_preparation import TimestepPreparationStage
from tests.pipelines.stand_ins import ARGS, CountDown, WordEncoder, make_batch


class TestInputValidation:
    def run(self, **request: Any) -> None:
        stage = InputValidationStage(lambda sampling: sampling.check_sizes(16, 4))
        stage.forward(make_batch(**request), ARGS)

    def test_a_good_request_passes(self) -> None:
        self.run(prompts=["a", "b"], negatives=["", "x"], guidance_scale=3.0, guidance_rescale=0.5)

    @pytest.mark.parametrize(
        ("request_fields", "message"),
        [
            ({"prompts": []}, r"prompt=\[\]: at least one prompt; give a text"),
            ({"prompts": ["a", 3]}, "prompt=3: text"),
            ({"prompts": ["a", "b"], "negatives": [""]}, r"negative_prompts=\[''\]: one for each of the 2 prompts"),
            ({"height": 40}, "height=40: must be a multiple of 16; try 32"),
            ({"width": 8}, "width=8: must be a multiple of 16; try 16"),
            ({"num_frames": 50}, "num_frames=50: must be 4k.1; try 49 or 53"),
            ({"num_frames": 0}, "num_frames=0: must be a whole number, at least 1"),
            ({"num_inference_steps": 0}, "num_inference_steps=0: .*at least 1"),
            ({"guidance_scale": math.nan}, "guidance_scale=nan: must be a finite number"),
            ({"num_videos_per_prompt": 0}, "num_videos_per_prompt=0"),
            ({"guidance_rescale": 0.5}, "guidance_rescale=0.5: without guidance .* nothing; set it to 0"),
        ],
    )
    def test_a_bad_one_names_value_rule_and_fix(self, request_fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            self.run(**request_fields)


class TestTextEncoding:
    def test_every_text_goes_through_the_encoder_once(self) -> None:
        encoder = WordEncoder(text_len=10)
        batch = make_batch(
            ["one cat", "a", "one cat"], ["low quality now", "a", "a"], guidance_scale=3.0, num_videos_per_prompt=2
        )
        batch = TextEncodingStage(encoder).forward(batch, ARGS)
        assert encoder.calls == [["one cat", "a", "low quality now"]]
        assert batch.prompt_embeds is not None
        assert batch.negative_prompt_embeds is not None
        # prompt by prompt, each for its two videos, without the columns that only the negative prompt needs
        assert batch.prompt_embeds.states[..., 0].tolist() == [[3, 3], [3, 3], [1, 0], [1, 0], [3, 3], [3, 3]]
        assert batch.prompt_embeds.padding == 8
        assert batch.negative_prompt_embeds.states[..., 0].tolist() == [[3, 7, 3]] * 2 + [[1, 0, 0]] * 4
        assert batch.negative_prompt_embeds.padding == 7

    def test_without_guidance_the_negative_prompt_costs_nothing(self) -> None:
        encoder = WordEncoder()
        batch = TextEncodingStage(encoder).forward(make_batch(["a"], ["b"]), ARGS)
        assert encoder.calls == [["a"]]
        assert batch.negative_prompt_embeds is None

    def test_rows_keep_the_padded_length(self) -> None:
        states = torch.tensor([[[1.0], [2.0], [3.0]], [[4.0], [0.0], [0.0]]])
        embeddings = TextEmbeddings(states, states[..., 0] > 0, padding=4)
        only = select_rows(embeddings, [1])
        assert (only.states.shape[1], only.padding) == (1, 6)
        assert only.mask.tolist() == [[True]]
        both = select_rows(embeddings, [1, 0])
        assert torch.equal(both.states, states.flip(0))
        assert both.padding == 4


class TestLatentPreparation:
    stage = LatentPreparationStage(lambda sampling: (16, 2, sampling.height // 8, sampling.width // 8))

    def test_the_noise_is_one_draw_of_the_seed(self) -> None:
        batch = self.stage.forward(make_batch(["a", "b"], num_videos_per_prompt=2, seed=7), ARGS)
        expected = torch.randn(4, 16, 2, 2, 4, generator=torch.Generator("cpu").manual_seed(7))
        assert batch.latents is not None
        assert torch.equal(batch.latents, expected)

    def test_it_leaves_the_global_generator_alone(self) -> None:
        before = torch.get_rng_state()
        self.stage.forward(make_batch(), ARGS)
        assert torch.equal(before, torch.get_rng_state())


class TestTimestepPreparation:
    def test_the_schedule_starts_anew(self) -> None:
        batch = TimestepPreparationStage(CountDown()).forward(make_batch(num_inference_steps=3), ARGS)
        assert batch.timesteps is not None
        assert batch.timesteps.tolist() == [300, 200, 100]


class TestGuidance:
    def test_it_extrapolates_from_unconditional_to_conditional(self) -> None:
        conditional, unconditional = torch.randn(2, 2, 3, 4, 4, 4)
        guided = Guidance(3.0)(conditional, unconditional)
        torch.testing.assert_close(guided, 3 * conditional - 2 * unconditional)

    def test_rescaling_is_that_of_the_reference(self) -> None:
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

        conditional, unconditional = torch.randn(2, 2, 3, 4, 4, 4)
        expected = rescale_noise_cfg(Guidance(5.0)(conditional, unconditional), conditional, guidance_rescale=0.7)
        torch.testing.assert_close(Guidance(5.0, 0.7)(conditional, unconditional), expected)


class Model:
    """Predicts the mean of the text, and remembers its calls."""

    residence = OnDevice()

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor
        self.timesteps: list[int] = []

    def __call__(self, latents: torch.Tensor, timestep: torch.Tensor, *, text: torch.Tensor) -> torch.Tensor:
        assert timestep.shape == (latents.shape[0],)
        self.timesteps.append(int(timestep[0]))
        return torch.full_like(latents, self.factor * float(text.mean()))


class TestDenoising:
    def batch(self, control: Control | None = None, **fields: Any) -> Any:
        batch = make_batch(["bb"], ["aaaa"], control, **{"num_inference_steps": 4, **fields})
        TextEncodingStage(WordEncoder()).forward(batch, ARGS)
        batch.timesteps = torch.tensor([400, 300, 200, 100])
        batch.latents = torch.zeros(1, 2, 2, 2, 2)
        return batch

    def stage(self, pick: Any, **options: Any) -> DenoisingStage:
        return DenoisingStage(CountDown(), pick=pick, conditions=lambda text: {"text": text.states}, **options)

    def test_every_timestep_in_order(self) -> None:
        model = Model()
        batch = self.stage(lambda timestep: model).forward(self.batch(), ARGS)
        assert model.timesteps == [400, 300, 200, 100]
        assert torch.equal(batch.latents, torch.full((1, 2, 2, 2, 2), -8.0))

    def test_guidance_takes_both_predictions(self) -> None:
        model = Model()
        batch = self.stage(lambda timestep: model).forward(self.batch(guidance_scale=3.0), ARGS)
        assert model.timesteps == [400, 400, 300, 300, 200, 200, 100, 100]
        assert torch.equal(batch.latents, torch.full((1, 2, 2, 2, 2), -4 * (4.0 + 3 * (2 - 4))))

    def test_a_family_picks_its_model_and_guidance_by_timestep(self) -> None:
        high, low = Model(1.0), Model(10.0)

        def guide(sampling: SamplingParam, timestep: torch.Tensor) -> Guidance:
            return Guidance(sampling.guidance_scale if timestep >= 250 else 1.0)

        stage = self.stage(lambda timestep: high if timestep >= 250 else low, guide=guide)
        batch = stage.forward(self.batch(guidance_scale=2.0), ARGS)
        assert (set(high.timesteps), set(low.timesteps)) == ({400, 300}, {200, 100})
        assert batch.latents.flatten()[0] == -(2 * (4 + 2 * (2 - 4)) + 2 * 20)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_nan_says_at_which_step(self, bad: float) -> None:
        model = Model()

        def pick(timestep: torch.Tensor) -> Model:
            model.factor = bad if timestep == 200 else 1.0
            return model

        batch = self.batch()
        with pytest.raises(FloatingPointError, match=r"after step 3 of 4.*fp32"):
            self.stage(pick).forward(batch, ARGS)
        assert model.timesteps == [400, 300, 200]

    def test_it_stops_at_the_next_step(self) -> None:
        model = Model()
        control = Control(report=lambda progress: progress.step == 2 and control.cancel.cancel())  # type: ignore
        with pytest.raises(Cancelled):
            self.stage(lambda timestep: model).forward(self.batch(control), ARGS)
        assert model.timesteps == [400, 300]

    def test_every_step_is_reported(self) -> None:
        seen: list[Progress] = []
        batch = self.batch(Control(report=seen.append))
        seen.clear()
        self.stage(lambda timestep: Model()).forward(batch, ARGS)
        assert [(p.stage, p.step, p.total) for p in seen] == [("denoising", step, 4) for step in range(5)]
        assert seen[0].seconds_left is None
        assert all(p.seconds_left is not None and p.seconds_left >= 0 for p in seen[1:])


class ChunkDecoder:
    """Four frames a latent frame, of its first channel; two latent frames at a time."""

    chunk = 2
    residence = OnDevice()

    def __init__(self) -> None:
        self.decoded = 0

    def parts(self, latents: torch.Tensor) -> int:
        return -(-latents.shape[2] // self.chunk)

    def stream(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        for part in latents.split(self.chunk, dim=2):
            self.decoded += part.shape[2]
            yield part[:, :1].repeat_interleave(4, dim=2).expand(-1, 3, -1, -1, -1)


class TestDecoding:
    def test_video_is_in_zero_to_one(self) -> None:
        batch = make_batch()
        batch.latents = torch.linspace(-1.5, 1.5, 5).view(1, 1, 5, 1, 1).repeat(1, 4, 1, 2, 2)
        batch = DecodingStage(ChunkDecoder()).forward(batch, ARGS)
        assert batch.video is not None
        assert batch.video.shape == (1, 3, 20, 2, 2)
        assert batch.video.dtype == torch.float32
        torch.testing.assert_close(batch.video[0, 0, ::4, 0, 0], torch.tensor([0.0, 0.125, 0.5, 0.875, 1.0]))

    def test_low_precision_is_not_rounded_again(self) -> None:
        batch = make_batch()
        batch.latents = torch.full((1, 1, 1, 1, 1), 1 / 128, dtype=torch.bfloat16)
        batch = DecodingStage(ChunkDecoder()).forward(batch, ARGS)
        assert batch.video is not None
        assert batch.video.flatten()[0] == 0.5 + 1 / 256

    def test_nan_is_an_error(self) -> None:
        batch = make_batch()
        batch.latents = torch.full((1, 1, 1, 1, 1), math.nan)
        with pytest.raises(FloatingPointError, match=r"decoded frames.*vae_precision"):
            DecodingStage(ChunkDecoder()).forward(batch, ARGS)

    def test_it_stops_between_chunks_and_reports_each(self) -> None:
        seen: list[tuple[int, int]] = []
        control = Control(report=lambda progress: seen.append((progress.step, progress.total)))
        vae = ChunkDecoder()
        batch = make_batch(control=control)
        batch.latents = torch.zeros(1, 1, 5, 1, 1)
        DecodingStage(vae).forward(batch, ARGS)
        assert seen == [(0, 3), (1, 3), (2, 3), (3, 3)]
        vae = ChunkDecoder()
        stop = Control(report=lambda progress: progress.step == 1 and stop.cancel.cancel())  # type: ignore
        batch = make_batch(control=stop)
        batch.latents = torch.zeros(1, 1, 5, 1, 1)
        with pytest.raises(Cancelled):
            DecodingStage(vae).forward(batch, ARGS)
        assert vae.decoded == 2
