"""`fastvideo tune`: what it measures, what it chooses, and what it writes."""

import ast
import dataclasses
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo import VideoGenerator
from fastvideo.configs.sample import SamplingParam
from fastvideo.entrypoints.cli.main import main
from fastvideo.entrypoints.quality import find_tuned, in_words, machine_of
from fastvideo.entrypoints.tune import loadings, measure, plot, search
from fastvideo.entrypoints.tune.measure import MOST_DB, Bench, Clip, Point, Recorder, psnr
from fastvideo.entrypoints.tune.prompts import prompts_for
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.models.loader.weights import weight_hashes
from fastvideo.pipelines.pipeline_batch_info import BlockRuns
from fastvideo.platforms import current_platform
from tests.pipelines.test_wan_pipeline import CAT, load, load_reference

STEPS = 6
SMALL = SamplingParam(height=32, width=32, num_frames=5, num_inference_steps=STEPS, guidance_scale=4.0)


def point(saved: float, *values: float, **fields: object) -> Point:
    """A measurement."""
    return Point(fields=dict(fields), psnr=values, saved=saved)


def test_psnr_is_that_of_the_mean_square() -> None:
    exact = torch.rand(1, 3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert psnr(exact + 0.1, exact) == pytest.approx(20, abs=1e-4)
    assert psnr(exact, exact) == MOST_DB


def test_the_ratios_are_those_that_the_reference_measures(wan_repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from diffusers.hooks import MagCacheConfig

    reference = load_reference(wan_repo)
    reference.transformer.enable_cache(MagCacheConfig(calibrate=True, num_inference_steps=STEPS))
    reference(
        prompt=[CAT], negative_prompt=[""], height=32, width=32, num_frames=5, num_inference_steps=STEPS,
        guidance_scale=4.0, generator=torch.Generator("cpu").manual_seed(7), output_type="latent",
    )  # fmt: skip
    printed = [ast.literal_eval(line) for line in re.findall(r"^\[[\d., ]+\]$", capsys.readouterr().out, re.M)]
    assert len(printed) == 2
    expected = [sum(values) / 2 for values in zip(*printed, strict=True)]
    bench = Bench(load(wan_repo), SMALL)
    with Recorder(bench.pipeline, passes=2, steps=STEPS) as recorder:
        bench.exact(CAT, 7)
    found = recorder.coefficients()
    assert found["magcache"] == pytest.approx(expected, abs=2e-5)
    assert max(abs(ratio - 1) for ratio in expected) > 0.01
    assert len(found["teacache"]) == 5
    # nothing of it is left in the model
    assert not bench.pipeline.components["transformer"].blocks[0]._forward_pre_hooks  # type: ignore[attr-defined]


def test_a_point_is_against_the_exact_clip(wan_repo: Path) -> None:
    bench = Bench(load(wan_repo), SMALL)
    clips = [bench.exact(CAT, 1), bench.exact("kite", 2)]
    exact = bench.measure({"cache": "fbcache", "cache_threshold": 0.0}, clips)
    assert (exact.mean, exact.lowest, exact.saved) == (MOST_DB, MOST_DB, 0.0)
    gated = bench.measure({"cfg_gate_step": 0.5}, clips)
    assert gated.saved == 0.25
    assert gated.lowest < gated.mean < MOST_DB
    assert gated.mean == pytest.approx(sum(gated.psnr) / 2)


def test_the_choice_saves_most_within_the_budget() -> None:
    budget = search.BUDGETS["high"] + search.MARGIN
    points = [
        point(0.3, budget + 9, budget + 2), point(0.5, budget, budget + 1), point(0.6, budget - 0.1, budget + 20),
        point(0.7, 3.0), point(0.0, 99.0),
    ]  # fmt: skip
    chosen = search.choose(points)
    assert (chosen["high"], chosen["fast"]) == (points[1], points[2])
    assert search.choose(points[-2:]) == {}


def test_the_best_are_combined() -> None:
    seen: list[dict[str, object]] = []

    def measure(fields: dict[str, object]) -> Point:
        seen.append(fields)
        # fbcache and then magcache are good, and so are refreshed gates
        good = {"fbcache": 50.0, "magcache": 45.0}.get(str(fields.get("cache")), 10.0)
        good = good if "cache" in fields else 60.0 if "cfg_gate_refresh" in fields else 20.0
        return Point(fields=fields, psnr=(good,), saved=0.1)

    points = search.search(measure, True, {"teacache": [1.0, 0.0], "magcache": [1.0]})
    together = [p.fields for p in points if "cache" in p.fields and "cfg_gate_step" in p.fields]
    assert len(seen) == len(points)
    assert {fields["cache"] for fields in together} == {"fbcache", "magcache"}
    assert all("cfg_gate_refresh" in fields for fields in together)
    assert all(fields["cache_coefficients"] == (1.0,) for fields in together if fields["cache"] == "magcache")
    alone = search.search(measure, False, {"teacache": [1.0, 0.0], "magcache": [1.0]})
    assert all("cache" in p.fields and "cfg_gate_step" not in p.fields for p in alone)
    for p in points:
        SamplingParam(**p.fields).check()


@pytest.mark.parametrize("model", ["shapes-t2v", "wan2.1-t2v-1.3b"])
def test_prompts_are_all_different(model: str) -> None:
    prompts = prompts_for(model, 40)
    assert len(set(prompts)) == 40
    assert prompts_for(model, 40) == prompts
    assert prompts_for(model, 10) == prompts[:10]
    assert ("background" in prompts[0]) == (model == "shapes-t2v")


def test_prompts_of_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("a cat\n\na dog\na cat\n a kite \n")
    assert prompts_for("any", 3, str(file)) == ["a cat", "a dog", "a kite"]
    with pytest.raises(ValueError, match="has 3 prompts, and 4 are needed; add some, or lower --clips or --held-out"):
        prompts_for("any", 4, str(file))
    with pytest.raises(ValueError, match="cannot be read"):
        prompts_for("any", 1, str(tmp_path / "none.txt"))


def options(step: float, mean: float, levels: dict[str, tuple[float, float]], **given: str) -> loadings.Loading:
    """A loading whose steps take so long, and with the fields of `levels` so long with that PSNR."""
    return loadings.Loading(
        options=dict(given), alone=Point(fields={}, psnr=(mean,), saved=0.0, step=step), times=1.0 / step,
        levels={level: Point(fields={}, psnr=(psnr,), saved=0.5, step=one) for level, (one, psnr) in levels.items()},
    )  # fmt: skip


def test_a_precision_is_picked_where_it_is_quicker_and_keeps_the_budget() -> None:
    high, fast = (search.BUDGETS[level] + search.MARGIN for level in ("high", "fast"))
    chosen = {level: Point(fields={"cache": "fbcache"}, psnr=(60.0,), saved=0.5, step=0.5) for level in search.BUDGETS}
    bf16 = options(0.7, 50, {"high": (0.35, high), "fast": (0.3, high)}, precision="bf16")
    int8 = options(0.5, 40, {"high": (0.25, high - 0.1), "fast": (0.2, fast)}, quantization="int8_dynamic")
    slow = options(1.2, 60, {}, quantization="nf4")
    assert loadings.pick([slow, bf16, int8], chosen, own=1.0) == {"high": bf16, "fast": int8}
    assert (bf16.keeps, int8.keeps, slow.keeps) == (["high", "fast"], ["fast"], [])
    # what is not clearly quicker than the fields alone is left, and without fields a step is as long as an exact one
    near = options(0.7, 50, {"high": (0.48, high), "fast": (0.97, high)}, precision="bf16")
    assert loadings.pick([near], {"high": chosen["high"]}, own=1.0) == {}
    assert loadings.pick([near], {}, own=1.0) == {"high": near}
    rows = loadings.loading_rows([bf16, int8, slow], {"high": bf16, "fast": int8}, {"fast": int8.levels["fast"]}, 1.0)
    assert rows[2] == ("precision='bf16'", "0.700", "1.43", "50.0", "50.0", f"{high:.1f}", f"{high:.1f}", "high")
    assert rows[-1][-1] == "fast, on 1 other clips"


def test_a_step_takes_as_long_as_its_one_thread_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Busy:
        """A pipeline that took 5 seconds, 4 of them for 2 steps, on a processor that was half taken by others."""

        args = FastVideoArgs(model="m", device="cpu")

        def forward(self, batch: Any) -> Any:
            batch.video, batch.block_runs, batch.stage_times = torch.zeros(1), BlockRuns(1, 0), {"denoising": 4.0}
            return batch

    steps = []
    for threads in (1, 2):
        monkeypatch.setattr(measure.torch, "get_num_threads", lambda threads=threads: threads)
        monkeypatch.setattr(measure.time, "perf_counter", iter([0.0, 5.0]).__next__)
        monkeypatch.setattr(measure.time, "process_time", iter([0.0, 2.5]).__next__)
        bench = Bench(Busy(), dataclasses.replace(SMALL, num_inference_steps=2))  # type: ignore[arg-type]
        steps.append(bench.make(CAT, 1, {})[2])
        monkeypatch.undo()
    assert steps == [1.0, 2.0]  # of several threads it cannot be told


def test_what_is_not_quicker_is_measured_alone_and_on_few_clips() -> None:
    seen: list[tuple[str, str, int]] = []

    class Timed(Bench):
        """A bench of a model that takes so long."""

        def __init__(self, name: str, step: float, value: float) -> None:
            self.name, self.step, self.value = name, step, value

        def measure(self, fields: dict[str, object], clips: Any, floor: float = 0.0) -> Point:
            seen.append((self.name, str(fields.get("cache", "")), len(clips)))
            return Point(fields=fields, psnr=(self.value,) * len(clips), saved=0.0, step=self.step)

    speed = {"bf16": (0.7, 50.0), "int8": (0.8, 55.0), "int8_dynamic": (0.5, 45.0), "fp8": (0.1, 20.0),
             0.5: (0.4, 40.0), 0.8: (0.3, 20.0)}  # fmt: skip

    def load(given: dict[str, Any]) -> Bench:
        name = given.get("VSA_sparsity", given.get("quantization", given["precision"]))
        assert given["precision"] == "bf16"  # the quicker of the two
        assert (
            "VSA_sparsity" not in given or given["quantization"] == "int8_dynamic"
        )  # the quickest that is near enough
        return Timed(str(name), *speed[name])

    def why_not(given: dict[str, Any]) -> str | None:
        return None if given.get("quantization", "bf16") in speed else "does not run here"

    clips = [Clip(CAT, seed, torch.zeros(1), 1.0) for seed in range(3)]
    chosen = {"fast": point(0.5, 60.0, cache="fbcache")}
    found = loadings.search_loadings(load, why_not, clips, chosen, own=1.0)
    assert [in_words(one.options) for one in found[::3]] == ["precision='bf16'", "precision='bf16', quantization='fp8'"]
    alone = [name for name, cache, _ in seen if not cache]
    assert alone == ["bf16", "bf16", "int8", "int8_dynamic", "int8_dynamic", "fp8", "0.5", "0.5", "0.8"]
    assert [(name, count) for name, cache, count in seen if cache] == [("bf16", 3), ("int8_dynamic", 3), ("0.5", 3)]
    # int8 is no quicker than whole weights in bf16, and fp8 too far away, as is a fifth of the keys
    assert [sorted(one.levels) for one in found] == [["fast", "high"], [], ["fast", "high"], [], ["fast", "high"], []]
    assert found[2].times == 2.0
    assert found[4].options == {"precision": "bf16", "quantization": "int8_dynamic", **loadings.SPARSE[0]}


def test_the_command(
    wan_repo: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    caplog.set_level("INFO", "fastvideo")
    monkeypatch.setenv("FASTVIDEO_CACHE_ROOT", str(tmp_path))
    monkeypatch.setattr(search, "CACHES", {"fbcache": (1e-6, 0.3), "magcache": (0.5,)})
    monkeypatch.setattr(search, "GUIDANCE", ({"cfg_gate_step": 0.5}, {"guidance_interval": (0.5, 1.0)}))
    monkeypatch.setattr(search, "BUDGETS", {"high": 10.0, "fast": 5.0})
    monkeypatch.setattr(loadings, "BUDGETS", {"high": 10.0, "fast": 5.0})
    monkeypatch.setattr(loadings, "METHODS", ("int8_dynamic",))
    monkeypatch.setattr(loadings, "SPARSE", ({"attention_backend": "VIDEO_SPARSE_ATTN", "VSA_sparsity": 0.5},
                                             {"attention_backend": "SAGE_ATTN"}))  # fmt: skip
    monkeypatch.setattr(loadings, "QUICKER", 100.0)  # a model this small is quicker in nothing
    flags = "--size 32x32 --frames 5 --steps 6 --guidance 4 --clips 1 --held-out 2 --device cpu"
    assert main(["tune", str(wan_repo), *flags.split()]) == 0
    out = capsys.readouterr().out
    weights = weight_hashes(resolve_repo(wan_repo))
    tuned = find_tuned(weights)
    assert tuned is not None
    assert tuned["weights"] == weights
    assert tuned["request"] == {
        "num_inference_steps": 6, "guidance_scale": 4.0, "height": 32, "width": 32, "num_frames": 5,
    }  # fmt: skip
    # three caches alone, two ways to save guidance, and each with each
    assert len(tuned["points"]) == 3 + 2 + 2 * 3
    high = tuned["levels"]["high"]
    assert high["saved"] > 0.2
    assert high["held_out"]["clips"] == 2
    assert math.isfinite(high["held_out"]["lowest"])
    assert "high, on 2 other clips" in out
    assert len(list((tmp_path / "tuned").glob("*.png"))) == 1
    # the precision goes with the level: it is the quicker one, and the two together keep to the budget
    sparse = {"quantization": "int8_dynamic", "attention_backend": "VIDEO_SPARSE_ATTN", "VSA_sparsity": 0.5}
    assert [one["options"] for one in tuned["loadings"]] == [
        {"quantization": "int8_dynamic"},
        sparse,
    ]  # in bf16, its own
    assert all(one["levels"]["high"]["lowest"] >= 15 for one in tuned["loadings"])
    assert "quantization='int8_dynamic', attention_backend='SAGE_ATTN' is not measured: " in caplog.text
    assert tuned["machine"] == machine_of(current_platform("cpu"))
    loading = high["loading"]
    assert loading["options"] in ({"quantization": "int8_dynamic"}, sparse)  # whichever was the quicker
    assert loading["held_out"]["clips"] == 2
    assert re.search(r"quantization='int8_dynamic'.* (high|fast)\b", out)
    with VideoGenerator.from_pretrained(wan_repo, device="cpu", quality="high") as generator:
        assert generator.args.quantization == "int8_dynamic"
    with VideoGenerator.from_pretrained(wan_repo, device="cpu", precision="fp32") as generator:
        small = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 6, "guidance_scale": 4.0,
                 "save_video": False, "return_frames": True}  # fmt: skip
        fast = generator.generate_video(CAT, quality="high", **small)
        same = generator.generate_video(CAT, **small, **high["fields"])
    assert not isinstance(fast, list)
    assert not isinstance(same, list)
    assert torch.equal(fast.samples, same.samples)
    assert fast.saved_block_runs == same.saved_block_runs > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--clips 0", "--clips=0: must be 1 or more"),
        ("--held-out -1", "--held-out=-1: must be 0 or more"),
        ("--size 32", "--size='32': must be WIDTHxHEIGHT"),
        ("--size 32x32 --steps 0", "num_inference_steps=0: must be a whole number, at least 1"),
        ("--precision int4", "precision='int4': must be one of"),
        ("--no-plot --plot x.png", "--plot='x.png': does nothing with --no-plot; leave one of them out"),
    ],
)
def test_flags_are_checked(wan_repo: Path, capsys: pytest.CaptureFixture[str], flags: str, message: str) -> None:
    assert main(["tune", str(wan_repo), *flags.split()]) == 1
    assert message in capsys.readouterr().err


def test_without_matplotlib_nothing_is_measured(
    wan_repo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    assert main(["tune", str(wan_repo)]) == 1
    assert "matplotlib is missing; pip install 'fastvideo[tune]', or use --no-plot" in capsys.readouterr().err


def test_the_picture(tmp_path: Path) -> None:
    points = [point(0.4, 41.0, 36.0, cache="fbcache", cfg_gate_step=0.5), point(0.2, 50.0, cfg_gate_step=0.5)]
    bf16 = options(0.7, 50, {"high": (0.35, 44.0)}, precision="bf16")
    plot.draw(points, {"high": points[0]}, "a model", tmp_path / "new" / "curve.png", [bf16])
    assert (tmp_path / "new" / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert [plot.kind_of(one) for one in points] == [("fbcache", True), ("guidance alone", False)]


def test_files_are_json(tmp_path: Path) -> None:
    text = json.dumps(point(0.123456, 40.123, cache="fbcache").to_json())
    assert json.loads(text) == {
        "fields": {"cache": "fbcache"},
        "mean": 40.12,
        "lowest": 40.12,
        "saved": 0.1235,
        "clips": 1,
    }
