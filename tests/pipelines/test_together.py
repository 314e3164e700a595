"""Requests that are denoised together: the bits that each gets alone, or else one by one."""

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvideo import SamplingParam
from fastvideo.models.dits.wanvideo import WanTransformer3DModel
from fastvideo.models.schedulers import build_scheduler
from fastvideo.pipelines.composed_pipeline_base import ComposedPipelineBase
from fastvideo.pipelines.pipeline_batch_info import Cancelled, CancelToken, Control, ForwardBatch, MediaInputs, Progress
from fastvideo.pipelines.stages import together
from fastvideo.platforms.cpu import CPUPlatform
from tests.pipelines.wan_pairs import load, picture, request

PROMPTS = ("kite", "a photo of a cat, looking up at the sky", "two blue stars")
NEGATIVES = ("", "blurry, and far too dark", "noise")
Outcome = ForwardBatch | Exception


@pytest.fixture(autouse=True)
def _always_quicker(monkeypatch: pytest.MonkeyPatch) -> None:
    """How long passes take decides nothing here."""
    monkeypatch.setattr(together, "GAIN", math.inf)


@pytest.fixture(scope="module")
def loaded(wan_repo: Path) -> ComposedPipelineBase:
    """Ours."""
    return load(wan_repo)


@pytest.fixture
def pipeline(loaded: ComposedPipelineBase) -> ComposedPipelineBase:
    """One that has seen no requests together."""
    loaded._knowledge = together.Knowledge()
    return loaded


def batches(count: int = 3, controls: dict[int, Control] | None = None, **fields: Any) -> list[ForwardBatch]:
    """Requests that differ in all that may differ."""
    media = {name: torch.from_numpy(np.array(value)) for name, value in fields.pop("media", {}).items()}
    usual = {"num_frames": 5, "height": 32, "width": 48, "num_inference_steps": 4, "guidance_scale": 3.0}
    made = []
    for number in range(count):
        own = {**usual, **fields, "seed": number}
        if own["guidance_scale"] > 1:
            own["guidance_scale"] += number
        shown = MediaInputs(**{name: value.roll(number, 0) for name, value in media.items()})
        made.append(
            ForwardBatch(
                prompts=[PROMPTS[number % 3]], negative_prompts=[NEGATIVES[number % 3]],
                sampling=SamplingParam(**request(**own)), media=shown,
                control=(controls or {}).get(number, Control()),
            )
        )  # fmt: skip
    return made


def at_once(pipeline: ComposedPipelineBase, made: list[ForwardBatch]) -> dict[int, Any]:
    """What becomes of each."""
    outcomes: dict[int, Any] = {}
    pipeline.forward_together(made, outcomes.__setitem__)
    return outcomes


def check_equal(pipeline: ComposedPipelineBase, outcomes: dict[int, Outcome], **fields: Any) -> None:
    """Check that those that were made are bit for bit what each is alone."""
    for number, one in enumerate(batches(**{"count": max(outcomes) + 1, **fields})):
        outcome = outcomes[number]
        if isinstance(outcome, ForwardBatch):
            expected = pipeline.forward(one)
            assert expected.video is not None
            assert outcome.video is not None
            assert torch.equal(outcome.video, expected.video), number
            assert outcome.block_runs == expected.block_runs


class Counted:
    """How many clips the passes of a model had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, change: Callable[[torch.Tensor], torch.Tensor] | None = None):
        """`change` is applied to what passes together predict."""
        self.sizes: list[int] = []
        inner = WanTransformer3DModel.together

        def run(model: Any, passes: Any) -> Any:
            self.sizes.append(len(passes))
            predictions = inner(model, passes)
            return predictions if change is None else [change(one) for one in predictions]

        monkeypatch.setattr(WanTransformer3DModel, "together", run)


class TestEqual:
    @pytest.mark.parametrize(
        "fields",
        [{}, {"guidance_scale": 1.0, "count": 2}, {"guidance_rescale": 0.5, "num_frames": 1},
         {"cfg_gate_step": 0.5, "cfg_zero_star": True}, {"num_videos_per_prompt": 2, "count": 2}],
        ids=["guided", "unguided", "one-frame", "guidance-options", "two-videos"],
    )  # fmt: skip
    def test_bit_for_bit(
        self, pipeline: ComposedPipelineBase, fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counted, count = Counted(monkeypatch), fields.get("count", 3)
        outcomes = at_once(pipeline, batches(**fields))
        assert list(outcomes) == list(range(count))
        assert {outcome.together for outcome in outcomes.values()} == {count}
        assert len(counted.sizes) > 2
        assert set(counted.sizes) == {count}
        check_equal(pipeline, outcomes, **fields)

    @pytest.mark.parametrize(
        ("fixture", "fields"),
        [
            ("wan22_repo", {"guidance_scale_2": 1.7}),
            ("ti2v_repo", {"media": {"image": picture(64, 64)}, "height": 64, "width": 64}),
            ("i2v_repo", {"media": {"image": picture(32, 48)}}),
            ("dmd_repo", {"guidance_scale": 1.0, "num_inference_steps": 3}),
            pytest.param("rcm_repo", {"guidance_scale": 1.0}, marks=pytest.mark.slow),
            ("vace_repo", {"media": {"video": np.stack([picture(32, 48)] * 5)}}),
            pytest.param("fun_control_repo", {"media": {"video": np.stack([picture(32, 48)] * 5)}},
                         marks=pytest.mark.slow),
        ],
    )  # fmt: skip
    def test_other_pipelines(
        self, fixture: str, fields: dict[str, Any], request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counted, pipeline = Counted(monkeypatch), load(request.getfixturevalue(fixture))
        outcomes = at_once(pipeline, batches(2, **fields))
        assert [outcome.together for outcome in outcomes.values()] == [2, 2]
        assert counted.sizes
        check_equal(pipeline, outcomes, **fields)

    def test_models_that_go_chunk_by_chunk_or_in_segments_run_one_by_one(self, causal_repo: Path) -> None:
        pipeline = load(causal_repo)
        fields = {"guidance_scale": 1.0, "num_frames": 9}
        outcomes = at_once(pipeline, batches(2, **fields))
        assert [outcome.together for outcome in outcomes.values()] == [1, 1]
        check_equal(pipeline, outcomes, **fields)

    def test_what_was_equal_once_is_not_tried_again(
        self, pipeline: ComposedPipelineBase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        at_once(pipeline, batches())
        runs: list[int] = []
        inner = together.Crowd._alone
        monkeypatch.setattr(together.Crowd, "_alone", lambda *args: runs.append(1) or inner(*args))
        at_once(pipeline, batches())
        assert runs == []
        pipeline._knowledge = together.Knowledge()
        at_once(pipeline, batches())
        # the first pass, for its time and memory, and each of the two kinds of pass
        assert len(runs) == 3

    def test_schedulers_of_the_reference_keep_apart_where_each_request_is(self) -> None:
        scheduler = build_scheduler("UniPCMultistepScheduler", {"prediction_type": "flow_prediction",
                                    "use_flow_sigmas": True, "solver_order": 3, "flow_shift": 3.0})  # fmt: skip
        assert type(scheduler).__name__ == "DiffusersScheduler"
        noise = torch.randn(2, 1, 4, 1, 2, 2, generator=torch.Generator().manual_seed(0))

        def walked(latents: torch.Tensor) -> Iterator[torch.Tensor]:
            for t in scheduler.timesteps:
                latents = scheduler.step(latents.sin(), t, latents)
                yield latents

        alone = []
        for one in noise:
            scheduler.set_timesteps(5)
            alone.append(list(walked(one))[-1])
        scheduler.set_timesteps(5)
        states = [scheduler.fork() for _ in noise]
        walks = [walked(one) for one in noise]
        for _ in range(5):
            last = []
            for state, walk in zip(states, walks, strict=True):
                scheduler.resume(state)
                last.append(next(walk))
        assert torch.equal(torch.stack(last), torch.stack(alone))


class TestOneByOne:
    def test_where_bits_differ(self, pipeline: ComposedPipelineBase, monkeypatch: pytest.MonkeyPatch) -> None:
        counted = Counted(monkeypatch, lambda one: one.nextafter(torch.tensor(math.inf)))
        outcomes = at_once(pipeline, batches())
        assert [outcome.together for outcome in outcomes.values()] == [1, 1, 1]
        assert counted.sizes == [3], "one try"
        check_equal(pipeline, outcomes)
        # the first pass was for its time; so the one without a negative prompt has still to be tried
        assert at_once(pipeline, batches())[0].together == 1
        assert at_once(pipeline, batches())[0].together == 1
        assert counted.sizes == [3, 3], "what was seen is remembered"

    def test_the_sign_of_a_zero_is_a_bit(self) -> None:
        zero = torch.zeros(2)
        assert not together.same_bits(zero, -zero)
        assert together.same_bits(torch.full((2,), math.nan), torch.full((2,), math.nan))

    def test_where_it_is_not_quicker(self, pipeline: ComposedPipelineBase, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(together, "GAIN", 0.0)
        counted = Counted(monkeypatch)
        outcomes = at_once(pipeline, batches(num_inference_steps=8))
        assert [outcome.together for outcome in outcomes.values()] == [1, 1, 1]
        assert counted.sizes == [3] * together.TRIALS
        check_equal(pipeline, outcomes, num_inference_steps=8)
        at_once(pipeline, batches())
        assert counted.sizes == [3] * together.TRIALS, "nor the next time"

    def test_the_first_is_done_before_the_second_goes_on(
        self, pipeline: ComposedPipelineBase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(together, "why_alone", lambda model: "a test")
        seen: list[tuple[int, str, int]] = []
        controls = {
            number: Control(report=lambda p, number=number: seen.append((number, p.stage, p.step)))
            for number in range(2)
        }
        at_once(pipeline, batches(2, controls))
        assert seen.index((0, "decoding", 1)) < seen.index((1, "denoising", 2))

    def test_attention_that_leaves_keys_out(
        self, pipeline: ComposedPipelineBase, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        transformer = pipeline.components["transformer"]
        assert isinstance(transformer, WanTransformer3DModel)
        assert together.why_alone(transformer) is None
        monkeypatch.setattr(type(transformer.blocks[0].self_attn.attention.backend), "exact", False)  # type: ignore[union-attr]
        assert "TORCH_SDPA" in str(together.why_alone(transformer))
        monkeypatch.undo()
        monkeypatch.setattr(transformer, "compiled", True)
        assert "compiled" in str(together.why_alone(transformer))


class TestMemory:
    @pytest.mark.parametrize(
        ("room", "expected"), [(0.5, [1, 1, 1]), (1.5, [1, 1, 1]), (2.5, [2, 2, 1]), (99, [3] * 3)]
    )
    def test_as_many_as_there_is_room_for(
        self, pipeline: ComposedPipelineBase, room: float, expected: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        at_once(pipeline, batches())
        size = next(iter(pipeline._knowledge.bytes))
        pipeline._knowledge.bytes[size] = 1000
        monkeypatch.setattr(CPUPlatform, "available_memory", lambda self: int(room * 1000 * together.ROOM))
        counted = Counted(monkeypatch)
        outcomes = at_once(pipeline, batches())
        assert [outcome.together for outcome in outcomes.values()] == expected
        assert set(counted.sizes) == ({max(expected)} if max(expected) > 1 else set())
        check_equal(pipeline, outcomes)

    def test_one_pass_is_measured(self, pipeline: ComposedPipelineBase, monkeypatch: pytest.MonkeyPatch) -> None:
        peaks = iter([500, 100, 180])
        monkeypatch.setattr(CPUPlatform, "peak_memory", lambda self: next(peaks, 0))
        outcomes = at_once(pipeline, batches(2))
        assert list(pipeline._knowledge.bytes.values()) == [80]
        assert outcomes[0].peak_memory == 500, "the peak from before is not lost"

    @pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
    def test_where_it_is_not_enough_after_all(
        self, pipeline: ComposedPipelineBase, error: Exception, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def run(model: Any, passes: Any) -> Any:
            raise error

        monkeypatch.setattr(WanTransformer3DModel, "together", run)
        outcomes = at_once(pipeline, batches())
        assert [outcome.together for outcome in outcomes.values()] == [1, 1, 1]
        check_equal(pipeline, outcomes)

    def test_other_errors_are_not_hidden(self, pipeline: ComposedPipelineBase, monkeypatch: pytest.MonkeyPatch) -> None:
        def run(model: Any, passes: Any) -> Any:
            raise RuntimeError("shapes do not match")

        monkeypatch.setattr(WanTransformer3DModel, "together", run)
        with pytest.raises(RuntimeError, match="do not match"):
            at_once(pipeline, batches())


class TestOneOfThem:
    @pytest.mark.parametrize("where", [("text_encoding", 1), ("denoising", 0), ("denoising", 2), ("decoding", 0)])
    def test_is_cancelled(
        self, pipeline: ComposedPipelineBase, where: tuple[str, int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        counted, token = Counted(monkeypatch), CancelToken()

        def stop(progress: Progress) -> None:
            if (progress.stage, progress.step) == where:
                token.cancel()

        outcomes = at_once(pipeline, batches(controls={1: Control(cancel=token, report=stop)}))
        assert isinstance(outcomes[1], Cancelled)
        check_equal(pipeline, outcomes)
        if where[0] == "denoising":
            assert counted.sizes[-1] == 2, "the others go on together"

    def test_is_not_finite(self, pipeline: ComposedPipelineBase) -> None:
        made = batches()
        made[2].sampling.guidance_scale = 1e39
        outcomes = at_once(pipeline, made)
        assert isinstance(outcomes[2], FloatingPointError)
        assert "step" in str(outcomes[2])
        check_equal(pipeline, outcomes)

    def test_has_its_own_progress_and_previews(self, pipeline: ComposedPipelineBase) -> None:
        seen: list[list[Progress]] = [[], [], []]
        controls = {n: Control(report=seen[n].append, preview_every=n) for n in range(3)}
        outcomes = at_once(pipeline, batches(controls=controls))
        check_equal(pipeline, outcomes)
        for number, mine in enumerate(seen):
            steps = [p.step for p in mine if p.stage == "denoising"]
            assert steps == [0, 1, 2, 3, 4]
            assert sum(p.preview is not None for p in mine) == (0, 3, 1)[number]
            assert outcomes[number].stage_times["denoising"] > 0


def test_requests_that_are_not_alike_are_refused(pipeline: ComposedPipelineBase) -> None:
    with pytest.raises(ValueError, match="must be alike"):
        at_once(pipeline, batches(1) + batches(1, num_inference_steps=5))
    with pytest.raises(ValueError, match="must be alike"):
        at_once(pipeline, batches(2, cache="fbcache"))
