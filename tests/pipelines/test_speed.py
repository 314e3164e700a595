"""Step caches and guidance computed less often, on the whole tiny pipeline: against the reference where it has them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvideo.configs.sample import SamplingParam
from fastvideo.configs.sample.speed import CACHES
from fastvideo.pipelines.basic.wan.wan_pipeline import WanPipeline
from fastvideo.pipelines.pipeline_batch_info import BlockRuns, ForwardBatch
from tests.pipelines.test_wan_pipeline import CAT, LEVEL, load, load_reference

LAYERS = 3
STEPS = 10
EXACT = 2 * STEPS * LAYERS
FIELDS: dict[str, Any] = {
    "height": 32, "width": 48, "num_frames": 5, "num_inference_steps": STEPS, "guidance_scale": 4.0, "seed": 3,
}  # fmt: skip
RATIOS = tuple(1 + 0.03 * (-1) ** step * step / STEPS for step in range(STEPS))


@pytest.fixture(scope="module")
def pair(wan_repo: Path) -> tuple[WanPipeline, Any]:
    """Ours and the reference."""
    return load(wan_repo), load_reference(wan_repo)


Pair = tuple[WanPipeline, Any]


def make(pipeline: WanPipeline, **fields: Any) -> tuple[torch.Tensor, BlockRuns]:
    """The video and the block runs of one request."""
    sampling = SamplingParam(**{**FIELDS, **fields})
    batch = pipeline.forward(ForwardBatch(prompts=[CAT], negative_prompts=["blurry"], sampling=sampling))
    assert batch.video is not None
    assert batch.block_runs is not None
    return batch.video, batch.block_runs


@contextmanager
def counted(transformer: Any) -> Iterator[list[int]]:
    """The numbers of the reference's blocks, in the order in which they run."""
    ran: list[int] = []
    handles = [
        block.attn1.register_forward_hook(lambda *_, number=number: ran.append(number))
        for number, block in enumerate(transformer.blocks)
    ]
    yield ran
    for handle in handles:
        handle.remove()


def reference(pipeline: Any, config: Any) -> tuple[torch.Tensor, int]:
    """The reference's video with the cache of `config`, and how many blocks it ran."""
    fields = {**FIELDS, "generator": torch.Generator("cpu").manual_seed(FIELDS["seed"])}
    del fields["seed"]
    pipeline.transformer.enable_cache(config)
    try:
        with counted(pipeline.transformer) as ran:
            made = pipeline(prompt=[CAT], negative_prompt=["blurry"], output_type="np", **fields)
    finally:
        pipeline.transformer.disable_cache()
    return torch.from_numpy(made.frames).permute(0, 4, 1, 2, 3), len(ran)


# ---- Caches ----


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("order", [0, 1])
def test_a_threshold_of_zero_is_exact(pair: Pair, cache: str, order: int) -> None:
    exact, all_runs = make(pair[0])
    numbers = (1.0,) if cache == "magcache" else None
    video, runs = make(pair[0], cache=cache, cache_threshold=0, cache_order=order, cache_retention=0,
                       cache_coefficients=numbers)  # fmt: skip
    assert torch.equal(video, exact)
    assert all_runs == runs == BlockRuns(EXACT, 0)


@pytest.mark.parametrize("threshold", [0.05, 0.1, 0.15, 0.3])
def test_first_block_cache_is_that_of_the_reference(pair: Pair, threshold: float) -> None:
    from diffusers.hooks import FirstBlockCacheConfig

    expected, ran = reference(pair[1], FirstBlockCacheConfig(threshold=threshold))
    video, runs = make(pair[0], cache="fbcache", cache_threshold=threshold)
    assert (runs.made, sum(runs)) == (ran, EXACT)
    assert float((video - expected).abs().max()) < LEVEL


@pytest.mark.parametrize(("threshold", "skips", "retention"), [(0.06, 3, 0.2), (0.2, 2, 0.1), (1.0, 4, 0.3)])
@pytest.mark.parametrize("ratios", [RATIOS, RATIOS[::3]], ids=["as-many-as-steps", "fewer"])
def test_mag_cache_is_that_of_the_reference(
    pair: Pair, threshold: float, skips: int, retention: float, ratios: tuple[float, ...]
) -> None:
    from diffusers.hooks import MagCacheConfig

    config = MagCacheConfig(
        threshold=threshold, max_skip_steps=skips, retention_ratio=retention, num_inference_steps=STEPS,
        mag_ratios=list(ratios),
    )  # fmt: skip
    expected, ran = reference(pair[1], config)
    video, runs = make(
        pair[0], cache="magcache", cache_threshold=threshold, cache_max_skips=skips, cache_retention=retention,
        cache_coefficients=ratios,
    )  # fmt: skip
    assert (runs.made, sum(runs)) == (ran, EXACT)
    assert runs.saved > 0
    assert float((video - expected).abs().max()) < LEVEL


def published_tea_cache(
    signals: list[torch.Tensor], coefficients: tuple[float, ...], threshold: float, first: int
) -> list[bool]:
    """Which steps compute, by the published rule: `signals` are the modulations at each step."""
    rescale = np.poly1d(coefficients)
    accumulated, computed = 0.0, []
    for step, signal in enumerate(signals):
        if step < first:
            computed.append(True)
            accumulated = 0.0
            continue
        before = signals[step - 1]
        accumulated += float(rescale(((signal - before).abs().mean() / before.abs().mean()).item()))
        computed.append(accumulated >= threshold)
        accumulated = 0.0 if computed[-1] else accumulated
    return computed


@pytest.mark.parametrize("coefficients", [(1.0, 0.0), (3.0, -1.5, 0.7, 0.01)])
@pytest.mark.parametrize("threshold", [0.5, 1.0, 1.5])
def test_tea_cache_skips_where_the_published_rule_does(
    pair: Pair, coefficients: tuple[float, ...], threshold: float
) -> None:
    pipeline, theirs = pair
    theirs.scheduler.set_timesteps(STEPS)
    with torch.no_grad():
        signals = [theirs.transformer.condition_embedder(t[None], torch.zeros(1, 1, 36))[1]
                   for t in theirs.scheduler.timesteps]  # fmt: skip
    expected = published_tea_cache(signals, coefficients, threshold, first=2)
    ran: list[int] = []
    handle = pipeline.transformer.blocks[0].register_forward_hook(lambda *_: ran.append(len(steps)))
    steps: list[int] = []
    counter = pipeline.transformer.time_proj.register_forward_hook(lambda *_: steps.append(0))
    _, runs = make(
        pipeline, cache="teacache", cache_threshold=threshold, cache_retention=0.2, cache_coefficients=coefficients
    )
    handle.remove()
    counter.remove()
    assert 2 < sum(expected) < STEPS
    assert runs.made == 2 * sum(expected) * LAYERS
    # the passes that ran blocks, two a step
    assert sorted({(number - 1) // 2 for number in ran}) == [step for step, runs_ in enumerate(expected) if runs_]


def test_states_are_of_one_request(pair: Pair) -> None:
    fields = {"cache": "fbcache", "cache_threshold": 0.2, "cache_order": 1, "cfg_gate_step": 0.5}
    first, runs = make(pair[0], **fields)
    make(pair[0], **fields, height=48, seed=4)
    assert torch.equal(make(pair[0], **fields)[0], first)
    assert make(pair[0])[1] == BlockRuns(EXACT, 0)
    assert runs.saved > 0


def test_limits_of_skipping(pair: Pair) -> None:
    free = {"cache": "fbcache", "cache_threshold": 1e9}
    # the first block runs at every step, the others at the first alone
    assert make(pair[0], **free)[1].made == 2 * (STEPS + LAYERS - 1)
    assert make(pair[0], **free, cache_retention=0.3)[1].made == 2 * (STEPS + 3 * (LAYERS - 1))
    assert make(pair[0], **free, cache_max_skips=1)[1].made == 2 * (STEPS + STEPS // 2 * (LAYERS - 1))
    assert make(pair[0], **free, cache_max_skips=4)[1].made == 2 * (STEPS + 2 * (LAYERS - 1))


def test_without_guidance_there_is_one_state(pair: Pair) -> None:
    runs = make(pair[0], guidance_scale=1.0, cache="fbcache", cache_threshold=1e9)[1]
    assert runs == BlockRuns(STEPS + LAYERS - 1, STEPS * LAYERS - (STEPS + LAYERS - 1))


# ---- Guidance ----


def test_outside_its_interval_guidance_is_off(pair: Pair) -> None:
    exact = make(pair[0])[0]
    video, runs = make(pair[0], guidance_interval=(0.2, 0.8))
    assert runs == BlockRuns((STEPS + 6) * LAYERS, 4 * LAYERS)
    assert not torch.equal(video, exact)
    assert torch.equal(make(pair[0], guidance_interval=(0.0, 1.0))[0], exact)


def test_the_gate_counts_what_it_saves(pair: Pair) -> None:
    exact = make(pair[0])[0]
    video, runs = make(pair[0], cfg_gate_step=0.5)
    assert runs == BlockRuns(EXACT - 5 * LAYERS, 5 * LAYERS)
    assert not torch.equal(video, exact)
    # of the five steps after the gate the second and the fourth are computed
    assert make(pair[0], cfg_gate_step=0.5, cfg_gate_refresh=2)[1].saved == 3 * LAYERS
    # the first step has nothing to reuse
    assert make(pair[0], cfg_gate_step=0.0)[1].saved == 9 * LAYERS
    assert torch.equal(make(pair[0], cfg_gate_step=1.0)[0], exact)


def test_steps_from_zero_run_nothing(pair: Pair) -> None:
    _, runs = make(pair[0], cfg_zero_star=True)
    assert runs == BlockRuns(EXACT - 2 * LAYERS, 2 * LAYERS)
    assert make(pair[0], cfg_zero_star=True, zero_init_steps=0)[1] == BlockRuns(EXACT, 0)
    assert make(pair[0], cfg_zero_star=True, zero_init_steps=3)[1].saved == 6 * LAYERS


def test_all_of_it_together(pair: Pair) -> None:
    _, runs = make(pair[0], cache="fbcache", cache_threshold=1e9, cfg_zero_star=True, cfg_gate_step=0.5,
                   guidance_interval=(0.2, 1.0))  # fmt: skip
    # conditional: nothing at step 0, all blocks at step 1, the first one after; unconditional: steps 2, 3 and 4
    assert runs.made == (LAYERS + 8) + (LAYERS + 2)
    assert sum(runs) == EXACT


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cfg_gate_step": 0.5, "guidance_scale": 1.0}, r"cfg_gate_step=0.5: without guidance .* would do nothing"),
        ({"cfg_zero_star": True, "guidance_scale": 0.0}, "cfg_zero_star=True: without guidance"),
        ({"guidance_interval": (0.1, 1.0), "guidance_scale": 1.0}, r"guidance_interval=\(0.1, 1.0\): without guidance"),
        ({"cache": "magcache"}, "cache='magcache': needs the ratios of this model.*run fastvideo tune"),
        ({"quality": "high"}, "quality='high': stands for other fields; let a VideoGenerator look them up"),
    ],
)
def test_what_would_do_nothing_is_refused(pair: Pair, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(pair[0], **fields)


def test_a_model_that_does_not_ask_the_cache_is_found_out(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    def run_blocks(self: Any, tokens: torch.Tensor, context: Any) -> torch.Tensor:
        for block in self.blocks:
            tokens = block(tokens, context)
        return tokens

    monkeypatch.setattr(type(pair[0].transformer), "run_blocks", run_blocks)
    make(pair[0])
    with pytest.raises(RuntimeError, match="cache='fbcache': WanTransformer3DModel runs its blocks without asking it"):
        make(pair[0], cache="fbcache", cache_threshold=0.1)
