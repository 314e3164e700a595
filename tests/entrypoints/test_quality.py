"""`quality`, and what else stands for fields: looked up before anything is computed, and told in the clip's file."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo import PipelineConfig, VideoGenerator
from fastvideo.configs.registry import MODELS
from fastvideo.configs.sample import SamplingParam
from fastvideo.entrypoints.cli.main import main
from fastvideo.entrypoints.media import read_metadata
from fastvideo.entrypoints.quality import (
    FORMAT,
    MEASURED_AT,
    Loaded,
    Tuned,
    file_of,
    find_tuned,
    in_plain_fields,
    loaded_for,
    machine_of,
)
from fastvideo.entrypoints.result import GenerationResult
from fastvideo.entrypoints.tune.measure import psnr
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.models.loader.weights import weight_hashes
from fastvideo.platforms import current_platform

CAT = "a red cat walks over the sea"
SMALL: dict[str, Any] = {
    "height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 6, "guidance_scale": 4.0, "negative_prompt": "",
}  # fmt: skip
CHOSEN: dict[str, Any] = {
    "cache": "fbcache",
    "cache_threshold": 0.3,
    "cfg_gate_step": 0.5,
    "guidance_interval": [0.2, 1.0],
}
TUNED: Tuned = {
    "format": FORMAT,
    "request": {name: SMALL[name] for name in MEASURED_AT},
    "coefficients": {"magcache": [1.0, 0.9], "teacache": [2.0, 0.0]},
    "levels": {"high": {"fields": CHOSEN}},
}
PICKED = {"precision": "bf16", "quantization": "int8_dynamic"}
HERE = machine_of(current_platform("cpu"))
WITH_PRECISION: Tuned = {
    **TUNED,
    "pipeline_config": PipelineConfig().to_dict(),
    "machine": HERE,
    "loadings": [],
    "levels": {
        "high": {"fields": CHOSEN, "loading": None},
        "fast": {"fields": CHOSEN, "loading": {"options": PICKED, "times_as_fast": 1.5, "keeps": ["fast"]}},
    },
}
"""A measurement in which a precision is picked for one level."""
ENTRIES = {entry.name: entry for entry in MODELS}


@pytest.fixture(scope="module")
def generator(wan_repo: Path) -> Any:
    with VideoGenerator.from_pretrained(wan_repo, device="cpu", precision="fp32") as generator:
        yield generator


def make(generator: VideoGenerator, **fields: Any) -> GenerationResult:
    """One clip, not saved unless `fields` say so."""
    made = generator.generate_video(CAT, **{**SMALL, "save_video": False, "return_frames": True, **fields})
    assert not isinstance(made, list)
    return made


def plain(name: str = "wan2.1-t2v", tuned: Tuned | None = None, **fields: Any) -> SamplingParam:
    """The plain fields of a request."""
    return in_plain_fields(SamplingParam(**{**SMALL, **fields}), "some/model", ENTRIES[name], lambda: tuned)


def test_a_model_that_nobody_measured_has_no_quality(generator: VideoGenerator) -> None:
    with pytest.raises(ValueError, match=r"quality='high': .* was not measured yet; run fastvideo tune "):
        make(generator, quality="high")
    with pytest.raises(ValueError, match="cache='magcache': needs the ratios of this model, which nobody measured"):
        make(generator, cache="magcache")


def test_quality_is_the_fields_that_were_chosen(
    generator: VideoGenerator, wan_repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FASTVIDEO_CACHE_ROOT", str(tmp_path))
    file = file_of(weight_hashes(resolve_repo(wan_repo)))
    file.parent.mkdir()
    file.write_text(json.dumps(TUNED))
    high, same, exact = make(generator, quality="high"), make(generator, **CHOSEN), make(generator)
    assert torch.equal(high.samples, same.samples)
    assert not torch.equal(high.samples, exact.samples)
    assert torch.equal(make(generator, quality="exact").samples, exact.samples)
    assert (exact.block_runs, exact.saved_block_runs) == (2 * 6 * 3, 0)
    assert high.block_runs + high.saved_block_runs == exact.block_runs
    assert high.saved_block_runs > 0
    with pytest.raises(ValueError, match="quality='fast': nothing that saves block runs keeps to its error budget"):
        make(generator, quality="fast")
    assert generator.check_request(CAT, **SMALL, quality="high", save_video=False).cache == "fbcache"
    file.write_text(json.dumps({**TUNED, "format": FORMAT + 1}))
    with pytest.raises(ValueError, match=r"is of another version; run fastvideo tune again"):
        make(generator, quality="high")


def loaded(repo: Path, tuned: Tuned, *explicit: str, **options: Any) -> tuple[FastVideoArgs, PipelineConfig, Loaded]:
    """What `tuned` makes of a load for "fast" with these options."""
    args = FastVideoArgs(model=str(repo), device="cpu", **{"quality": "fast", **options})
    file = file_of(weight_hashes(resolve_repo(repo)))
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(tuned))
    return loaded_for(resolve_repo(repo), args, args.resolved_pipeline_config(PipelineConfig()), explicit)


def test_a_quality_picks_the_precision_that_was_measured_here(
    wan_repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("FASTVIDEO_CACHE_ROOT", str(tmp_path))
    caplog.set_level("INFO", "fastvideo")
    args, config, found = loaded(wan_repo, WITH_PRECISION)
    assert (args.precision, args.quantization, config.dit_precision) == ("bf16", "int8_dynamic", "bf16")
    assert found == Loaded("fast", PICKED, ("fast",))
    assert "precision='bf16', quantization='int8_dynamic', a step 1.50 times as fast" in caplog.text
    level = WITH_PRECISION["levels"]["fast"]
    nothing = {**WITH_PRECISION, "levels": {"fast": {**level, "loading": None}}}
    other = {**PipelineConfig().to_dict(), "dit_precision": "fp16"}
    for tuned, explicit, options, reason in (
        (nothing, (), {}, "none that was measured is quicker and keeps to the error budget"),
        ({**WITH_PRECISION, "machine": "a toaster"}, (), {}, "it was measured on another machine (a toaster)"),
        ({**TUNED, "format": 1, "pipeline_config": {}, "levels": {"fast": {"fields": CHOSEN}}}, (), {},
         "none was measured; run fastvideo tune"),
        (WITH_PRECISION, ("precision",), {"precision": "fp32"}, "precision is given"),
        (WITH_PRECISION, ("quantization",), {"quantization": "int8"}, "quantization is given"),
        (WITH_PRECISION, ("attention_backend",), {"attention_backend": "VMOBA_ATTN"}, "attention_backend is given"),
        ({**WITH_PRECISION, "pipeline_config": other}, (), {}, "it was measured against another one"),
        (WITH_PRECISION, ("lora_path",), {"lora_path": "a.safetensors"}, "does not go with quantization="),
        (WITH_PRECISION, ("num_gpus",), {"num_gpus": 2}, "it was measured on one device"),
    ):  # fmt: skip
        caplog.clear()
        args, _, found = loaded(wan_repo, tuned, *explicit, **options)
        assert found == Loaded("fast")
        assert (args.precision, args.quantization) == (options.get("precision", "auto"), options.get("quantization"))
        assert "quality='fast': the model is loaded as it is: " in caplog.text
        assert reason in caplog.text
    # and a level that is nothing but the precision is refused without it
    alone = {**WITH_PRECISION, "machine": "a toaster", "levels": {"fast": {**level, "fields": {}}}}
    with pytest.raises(ValueError, match=r"quality='fast': is a precision alone on .*, and it was measured on another"):
        loaded(wan_repo, alone)
    with pytest.raises(ValueError, match="quality='high': nothing that saves block runs keeps to its error budget"):
        loaded(wan_repo, nothing, quality="high")


def test_requests_have_the_quality_that_the_model_was_loaded_for() -> None:
    def of(loaded: Loaded, **fields: Any) -> SamplingParam:
        return in_plain_fields(SamplingParam(**{**SMALL, **fields}), "m", ENTRIES["wan2.1-t2v"], lambda: WITH_PRECISION,
                               loaded)  # fmt: skip

    picked, plainly = Loaded("fast", PICKED, ("fast",)), Loaded("fast")
    assert (of(picked).cache_threshold, of(plainly).cache_threshold, of(Loaded()).cache) == (0.3, 0.3, "none")
    # constants of the user's stay as they are
    assert (of(picked, cache="fbcache").cache_threshold, of(picked, cache="fbcache").cfg_gate_step) == (None, None)
    assert of(plainly, quality="exact").cache == "none"
    assert of(plainly, quality="high").cache == "fbcache"
    for quality in ("exact", "high"):
        with pytest.raises(ValueError, match=f"quality='{quality}': the weights were loaded for quality='fast', with "
                           f"precision='bf16', .*; load the model with quality='{quality}'"):  # fmt: skip
            of(picked, quality=quality)
    assert of(dataclasses.replace(picked, keeps=("high", "fast")), quality="high").cache == "fbcache"
    assert of(picked).quality == of(Loaded()).quality == "exact"  # as a file has it


def test_a_model_that_is_loaded_for_a_quality(
    wan_repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FASTVIDEO_CACHE_ROOT", str(tmp_path))
    loaded(wan_repo, WITH_PRECISION)
    with VideoGenerator.from_pretrained(wan_repo, device="cpu", quality="fast") as generator:
        fast = make(generator)
    with VideoGenerator.from_pretrained(wan_repo, device="cpu", **PICKED) as generator:
        same = make(generator, **CHOSEN)
    assert torch.equal(fast.samples, same.samples)
    assert fast.saved_block_runs == same.saved_block_runs > 0
    clip = tmp_path / "clip.gif"
    size = ["--size", "32x32", "--frames", "5", "--steps", "6", "--guidance", "4", "--generator.device", "cpu"]
    assert main(["generate", CAT, "--model", str(wan_repo), *size, "--quality", "fast", "-o", str(clip)]) == 0
    metadata = read_metadata(clip)
    assert {name: metadata[name] for name in PICKED} == PICKED
    assert (metadata["request"]["quality"], metadata["request"]["cache"]) == ("exact", "fbcache")
    assert main(["replay", str(clip), "-o", str(tmp_path / "again.gif")]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out


def test_what_was_measured_elsewhere_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    plain(tuned=TUNED, quality="high")
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []
    plain(tuned=TUNED, quality="high", num_inference_steps=9)
    assert "quality='high' was measured at num_inference_steps=6, and this is 9" in caplog.text


def test_without_guidance_the_cache_is_left() -> None:
    fields = plain(tuned=TUNED, quality="high", guidance_scale=1.0)
    assert (fields.cache, fields.cache_threshold) == ("fbcache", 0.3)
    assert (fields.cfg_gate_step, fields.guidance_interval) == (None, (0.0, 1.0))


def test_coefficients_are_the_users_or_measured_or_published() -> None:
    assert plain(cache="magcache", cache_coefficients=(0.5,), tuned=TUNED).cache_coefficients == (0.5,)
    assert plain(cache="magcache", tuned=TUNED).cache_coefficients == (1.0, 0.9)
    assert plain("wan2.1-t2v-1.3b", cache="teacache", tuned=TUNED).cache_coefficients == (2.0, 0.0)
    published = plain("wan2.1-t2v-1.3b", cache="teacache").cache_coefficients
    assert published is not None
    assert (len(published), published[0]) == (5, -5.21862437e04)
    assert len(plain("wan2.1-t2v-14b", cache="magcache").cache_coefficients or ()) == 50
    assert plain(cache="teacache").cache_coefficients is None
    assert plain(cache="fbcache", tuned=TUNED).cache_coefficients is None


def test_the_environment_is_for_requests_that_do_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTVIDEO_CFG_GATE_STEP", "0.5")
    assert plain().cfg_gate_step == 0.5
    assert plain(cfg_gate_step=0.25).cfg_gate_step == 0.25
    assert plain(guidance_scale=1.0).cfg_gate_step is None
    with pytest.raises(ValueError, match=r"FASTVIDEO_CFG_GATE_STEP=0.5: quality='high' picks the gate; unset it"):
        plain(quality="high", tuned=TUNED)


def test_a_file_tells_and_replays_what_was_saved(
    generator: VideoGenerator, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "fastvideo")
    clip = tmp_path / "clip.gif"
    made = make(generator, cache="teacache", cache_threshold=0.5, cfg_zero_star=True, guidance_interval=(0.2, 1.0),
                save_video=True, output_path=str(clip))  # fmt: skip
    assert f"block runs: {made.block_runs} made, {made.saved_block_runs} saved" in caplog.text
    metadata = read_metadata(clip)
    assert metadata["block_runs"] == {"made": made.block_runs, "saved": made.saved_block_runs}
    assert metadata["request"]["cache"] == "teacache"
    assert metadata["request"]["guidance_interval"] == [0.2, 1.0]
    assert main(["replay", str(clip), "-o", str(tmp_path / "again.gif")]) == 0
    assert "the same, bit for bit" in capsys.readouterr().out
    assert read_metadata(tmp_path / "again.gif")["block_runs"] == metadata["block_runs"]


def test_the_model_in_the_package_is_measured_and_keeps_to_its_bar() -> None:
    repo = resolve_repo("shapes-t2v")
    weights = weight_hashes(repo)
    tuned = find_tuned(weights)
    assert tuned is not None, "the weights are others: run fastvideo tune shapes-t2v, see docs/speed_and_quality.md"
    assert tuned["weights"] == weights
    high, fast = tuned["levels"]["high"], tuned["levels"]["fast"]
    assert high["held_out"]["clips"] >= 24
    assert high["held_out"]["mean"] > high["held_out"]["lowest"] >= 30
    assert high["held_out"]["saved"] >= 0.4
    assert fast["held_out"]["saved"] > high["held_out"]["saved"]
    with VideoGenerator.from_pretrained("shapes-t2v", device="cpu") as generator:
        fields = {"save_video": False, "return_frames": True, "seed": 77}
        exact, made = (
            generator.generate_video("a green star moving up on a pink background", quality=quality, **fields)
            for quality in ("exact", "high")
        )
    assert not isinstance(exact, list)
    assert not isinstance(made, list)
    assert exact.samples is not None
    assert made.samples is not None
    assert psnr(made.samples, exact.samples) >= 30
    assert made.saved_block_runs >= 0.4 * exact.block_runs
