"""`VideoGenerator`: what it makes, what it refuses, how it stops."""

import copy
import logging
import math
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvideo import PipelineConfig, SamplingParam, VideoGenerator
from fastvideo.entrypoints.media import read_metadata
from fastvideo.pipelines.pipeline_batch_info import Cancelled, CancelToken, Progress

CAT = "a red cat walks over the sea"
SMALL: dict[str, Any] = {
    "height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 3, "guidance_scale": 4.0, "seed": 5,
    "negative_prompt": "blurry", "save_video": False, "return_frames": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def generator(wan_repo: Path) -> Iterator[VideoGenerator]:
    """A generator of the tiny model in fp32."""
    with VideoGenerator.from_pretrained(wan_repo, precision="fp32", device="cpu") as made:
        yield made


def files(folder: Path) -> list[str]:
    """Everything in `folder`, hidden files too."""
    return sorted(path.name for path in folder.rglob("*"))


class TestResults:
    def test_pixels_equal_the_reference(self, generator: VideoGenerator, wan_repo: Path) -> None:
        from diffusers import WanPipeline

        reference = WanPipeline.from_pretrained(wan_repo)
        reference.set_progress_bar_config(disable=True)
        prompts = [CAT, "kite"]
        results = generator.generate_video(prompts, **SMALL, num_videos_per_prompt=2)
        assert len(results) == 4
        for index, result in enumerate(results):
            expected = reference(
                prompt=prompts[index // 2], negative_prompt="blurry", height=32, width=48, num_frames=5,
                num_inference_steps=3, guidance_scale=4.0, num_videos_per_prompt=2,
                generator=torch.Generator("cpu").manual_seed(5), output_type="np",
            ).frames[index % 2]  # fmt: skip
            mine = result.samples[0].permute(1, 2, 3, 0).numpy()
            assert np.abs(mine - expected).max() < 1 / 255
            assert np.abs(np.stack(result.frames) - expected * 255).max() < 1
        assert [result.prompts for result in results] == [CAT, CAT, "kite", "kite"]

    def test_everything_is_an_attribute_and_a_key(self, generator: VideoGenerator) -> None:
        result = generator.generate_video(CAT, **SMALL)
        assert not isinstance(result, list)
        for name in result:
            assert result[name] is getattr(result, name)
        assert set(result) == {
            "frames", "samples", "audio", "audio_sample_rate", "video_path", "prompts", "seed", "size",
            "generation_time", "stage_times", "peak_memory_mb", "block_runs", "saved_block_runs", "batch_size",
        }  # fmt: skip
        assert len(result) == 14
        assert "size" in result
        assert result.get("nothing") is None
        with pytest.raises(KeyError, match=r"nothing.*a result has frames"):
            result["nothing"]
        assert result.size == (32, 48, 5)
        assert result.seed == 5
        assert result.prompts == CAT
        assert result.audio is None
        assert result.video_path is None
        assert result.samples.shape == (1, 3, 5, 32, 48)
        assert result.samples.dtype == torch.float32
        assert len(result.frames) == 5
        assert {(frame.shape, frame.dtype.name) for frame in result.frames} == {((32, 48, 3), "uint8")}
        assert result.generation_time >= sum(result.stage_times.values()) > 0
        assert result.peak_memory_mb > 0
        assert CAT in repr(result)
        assert "array" not in repr(result)

    def test_frames_only_when_asked_for(self, generator: VideoGenerator) -> None:
        result = generator.generate_video(CAT, **SMALL | {"return_frames": False})
        assert not isinstance(result, list)
        assert (result.frames, result.samples) == (None, None)

    def test_one_gives_one_and_a_list_a_list(self, generator: VideoGenerator) -> None:
        one = generator.generate_video(CAT, **SMALL)
        listed = generator.generate_video([CAT], **SMALL)
        assert isinstance(listed, list)
        assert not isinstance(one, list)
        assert torch.equal(one.samples, listed[0].samples)
        several = generator.generate_video(CAT, **SMALL, num_videos_per_prompt=2)
        assert isinstance(several, list)
        assert not torch.equal(several[0].samples, several[1].samples)

    def test_a_prompt_does_not_depend_on_its_neighbours(self, generator: VideoGenerator) -> None:
        alone = generator.generate_video("kite", **SMALL)
        assert not isinstance(alone, list)
        assert torch.equal(generator.generate_video([CAT, "kite"], **SMALL)[1].samples, alone.samples)

    def test_the_generator_is_that_of_a_training_program(self, generator: VideoGenerator) -> None:
        result = generator.generate_video(CAT, **SMALL)
        assert not isinstance(result, list)
        weight = torch.ones(1, requires_grad=True)
        (result.samples.mean() * weight).backward()
        assert weight.grad is not None
        assert torch.is_grad_enabled()


class TestSamplingParam:
    def test_keywords_beat_it_and_it_stays_as_it_was(self, generator: VideoGenerator) -> None:
        sampling = SamplingParam(**SMALL)
        before = copy.deepcopy(sampling)
        result = generator.generate_video(CAT, sampling, seed=9, num_frames=9)
        assert not isinstance(result, list)
        assert (result.seed, result.size) == (9, (32, 48, 9))
        assert sampling == before

    def test_none_gives_the_defaults_of_the_model(self, generator: VideoGenerator, wan_repo: Path) -> None:
        seen: list[Progress] = []
        token = CancelToken()

        def stop(progress: Progress) -> None:
            seen.append(progress)
            if progress.stage == "denoising":
                token.cancel()

        defaults = SamplingParam.from_pretrained(wan_repo)
        with pytest.raises(Cancelled):
            generator.generate_video(CAT, progress=stop, cancel=token, save_video=False, height=16, width=16)
        assert seen[-1].total == defaults.num_inference_steps


class TestSaving:
    def test_a_folder_gets_a_file_named_after_the_prompt(self, generator: VideoGenerator, tmp_path: Path) -> None:
        request = SMALL | {"save_video": True, "output_path": str(tmp_path / "new")}
        paths = [generator.generate_video(CAT, **request).video_path for _ in range(2)]  # type: ignore[union-attr]
        assert paths == [str(tmp_path / "new" / f"{CAT}.mp4"), str(tmp_path / "new" / f"{CAT}_1.mp4")]
        assert files(tmp_path / "new") == [f"{CAT}.mp4", f"{CAT}_1.mp4"]

    def test_the_file_says_how_it_was_made(self, generator: VideoGenerator, wan_repo: Path, tmp_path: Path) -> None:
        path = tmp_path / "clip.webp"
        results = generator.generate_video(
            CAT, **SMALL | {"save_video": True, "output_path": path, "num_videos_per_prompt": 2}
        )
        assert isinstance(results, list)
        assert [result.video_path for result in results] == [str(path), str(tmp_path / "clip_1.webp")]
        said = [read_metadata(str(result.video_path)) for result in results]
        assert [one["index"] for one in said] == [0, 1]
        request = said[0]["request"]
        assert (request["prompt"], request["seed"], request["num_videos_per_prompt"]) == (CAT, 5, 2)
        assert said[0]["model"]["name"] == str(wan_repo)
        assert {len(digest) for digest in said[0]["model"]["weights"].values()} == {64}
        assert len(said[0]["model"]["weights"]) == 3
        assert said[0]["attention_backend"] == "TORCH_SDPA"
        assert said[0]["device"] == "cpu"
        assert said[0]["precision"] == "fp32"
        assert said[0]["pipeline_config"]["dit_precision"] == "fp32"

    def test_one_file_name_for_several_prompts_is_numbered(self, generator: VideoGenerator, tmp_path: Path) -> None:
        results = generator.generate_video(
            [CAT, "kite"], **SMALL | {"save_video": True, "output_path": str(tmp_path / "clip.gif")}
        )
        assert [Path(str(result.video_path)).name for result in results] == ["clip.gif", "clip_1.gif"]
        assert read_metadata(tmp_path / "clip_1.gif")["request"]["prompt"] == "kite"

    def test_the_same_prompt_twice_overwrites_nothing(self, generator: VideoGenerator, tmp_path: Path) -> None:
        request = SMALL | {"save_video": True, "output_path": str(tmp_path)}
        results = generator.generate_video(["kite", "kite"], **request)
        assert [Path(str(result.video_path)).name for result in results] == ["kite.mp4", "kite_1.mp4"]


class TestBadRequests:
    """Each is found before anything is computed: no progress is reported and no file is left."""

    @pytest.mark.parametrize(
        ("prompt", "fields", "message"),
        [
            ([], {}, r"prompt=\[\]: at least one prompt"),
            (3, {}, r"prompt=3: text; give a text, or a list of texts"),
            ([CAT, None], {}, "prompt=None: text"),
            (CAT, {"height": 40}, "height=40: must be a multiple of 16; try 32"),
            (CAT, {"width": 50}, "width=50: must be a multiple of 16; try 48"),
            (CAT, {"num_frames": 50}, r"num_frames=50: must be 4k\+1; try 49"),
            (CAT, {"num_inference_steps": 0}, "num_inference_steps=0: must be a whole number, at least 1"),
            (CAT, {"num_inference_steps": -3}, "num_inference_steps=-3"),
            (CAT, {"guidance_scale": math.nan}, "guidance_scale=nan: must be a finite number"),
            (CAT, {"guidance_scale": 1.0, "guidance_rescale": 0.7}, "guidance_rescale=0.7: without guidance"),
            (CAT, {"num_videos_per_prompt": 0}, "num_videos_per_prompt=0"),
            (CAT, {"seed": -1}, "seed=-1"),
            (CAT, {"num_inference_step": 3}, "'num_inference_step': unknown keyword .*'num_inference_steps'"),
            (CAT, {"sampling_params": None}, "'sampling_params': unknown keyword .*'sampling_param'"),
            (CAT, {"output_path": "clip.avi", "save_video": True}, "clip.avi: .avi cannot be written"),
            (CAT, {"sampling_param": {"seed": 3}}, "sampling_param=.*must be a SamplingParam"),
        ],
    )
    def test_value_rule_and_fix(
        self, generator: VideoGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
        prompt: Any, fields: dict[str, Any], message: str,
    ) -> None:  # fmt: skip
        monkeypatch.chdir(tmp_path)
        seen: list[Progress] = []
        with pytest.raises(ValueError, match=message) as caught:
            generator.generate_video(prompt, **{"progress": seen.append, **SMALL, **fields})
        assert "\n" not in str(caught.value)
        assert seen == []
        assert files(tmp_path) == []

    def test_a_folder_that_cannot_be_written(self, generator: VideoGenerator, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        seen: list[Progress] = []
        fields = SMALL | {"save_video": True, "output_path": str(tmp_path / "file" / "inside")}
        with pytest.raises(OSError, match="cannot be written") as caught:
            generator.generate_video(CAT, progress=seen.append, **fields)
        assert "\n" not in str(caught.value)
        assert seen == []
        assert files(tmp_path) == ["file"]

    def test_a_negative_prompt_without_guidance_is_said(
        self, generator: VideoGenerator, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(logging.getLogger("fastvideo"), "propagate", True)
        generator.generate_video(CAT, **SMALL | {"guidance_scale": 1.0})
        assert "negative_prompt does nothing without guidance" in caplog.text

    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"num_gpu": 1}, "'num_gpu': unknown keyword .*'num_gpus'"),
            ({"tp_size": 2}, "tp_size=2"),
            ({"lora_path": "x"}, "lora_path='x'"),
            ({"attention_backend": "FLASH_ATTN"}, "FLASH_ATTN.*TORCH_SDPA"),
            ({"precision": "fp8"}, "precision='fp8'"),
            ({"pipeline_config": {"flow_shift": 1}}, "must be a PipelineConfig"),
        ],
    )
    def test_from_pretrained(self, wan_repo: Path, fields: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            VideoGenerator.from_pretrained(wan_repo, **fields)

    def test_a_full_disk_leaves_nothing(
        self, generator: VideoGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(frames: Any, path: Path, fps: float, text: str) -> None:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("fastvideo.entrypoints.media.write_mp4", full)
        with pytest.raises(OSError, match=r"kite\.mp4.*No space left"):
            generator.generate_video("kite", **SMALL | {"save_video": True, "output_path": str(tmp_path)})
        assert files(tmp_path) == []


class TestPipelineConfig:
    def test_it_is_used_and_shows_in_the_video(self, generator: VideoGenerator, wan_repo: Path) -> None:
        config = PipelineConfig.from_pretrained(wan_repo)
        config.flow_shift = 9.0
        with VideoGenerator.from_pretrained(wan_repo, precision="fp32", device="cpu", pipeline_config=config) as other:
            assert other.pipeline_config.flow_shift == 9.0
            assert other.pipeline_config.dit_precision == "fp32"
            shifted = other.generate_video(CAT, **SMALL)
        usual = generator.generate_video(CAT, **SMALL)
        assert not isinstance(shifted, list)
        assert not isinstance(usual, list)
        assert not torch.equal(shifted.samples, usual.samples)

    def test_an_official_folder_gives_the_same(self, generator: VideoGenerator, official_repo: Path) -> None:
        with VideoGenerator.from_pretrained(official_repo, precision="fp32", device="cpu") as other:
            made = other.generate_video(CAT, **SMALL)
        usual = generator.generate_video(CAT, **SMALL)
        assert not isinstance(made, list)
        assert not isinstance(usual, list)
        assert torch.equal(made.samples, usual.samples)


class TestStopping:
    def usable(self, generator: VideoGenerator) -> bool:
        """Whether the generator still makes what it made before."""
        first = generator.generate_video(CAT, **SMALL)
        return not isinstance(first, list) and len(first.frames or ()) == 5

    def test_a_token_stops_it_from_another_thread(self, generator: VideoGenerator, tmp_path: Path) -> None:
        token, seen = CancelToken(), []
        at_step = threading.Event()

        def report(progress: Progress) -> None:
            seen.append(progress)
            if progress.stage == "denoising" and progress.step == 1:
                at_step.set()
                canceller.join()

        canceller = threading.Thread(target=lambda: at_step.wait(60) and token.cancel())
        canceller.start()
        with pytest.raises(Cancelled):
            generator.generate_video(
                CAT, progress=report, cancel=token, **SMALL | {"save_video": True, "output_path": str(tmp_path)}
            )
        assert (seen[-1].stage, seen[-1].step) == ("denoising", 1)
        assert files(tmp_path) == []
        assert self.usable(generator)

    def test_ctrl_c_stops_at_the_next_step(self, generator: VideoGenerator, tmp_path: Path) -> None:
        seen: list[Progress] = []

        def report(progress: Progress) -> None:
            seen.append(progress)
            if progress.stage == "denoising" and progress.step == 2:
                os.kill(os.getpid(), signal.SIGINT)

        request = SMALL | {"save_video": True, "output_path": str(tmp_path)}
        with pytest.raises(KeyboardInterrupt):
            generator.generate_video([CAT, "kite"], progress=report, **request)
        assert (seen[-1].stage, seen[-1].step) == ("denoising", 2)
        assert files(tmp_path) == []
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert self.usable(generator)

    def test_what_was_done_before_ctrl_c_stays(self, generator: VideoGenerator, tmp_path: Path) -> None:
        prompts_begun: list[str] = []

        def report(progress: Progress) -> None:
            if progress == Progress("text_encoding", 0, 1, None):
                prompts_begun.append("")
                if len(prompts_begun) == 2:
                    os.kill(os.getpid(), signal.SIGINT)

        request = SMALL | {"save_video": True, "output_path": str(tmp_path)}
        with pytest.raises(KeyboardInterrupt):
            generator.generate_video([CAT, "kite", "star"], progress=report, **request)
        assert files(tmp_path) == [f"{CAT}.mp4"]

    def test_ctrl_c_at_the_very_end_saves_nothing(self, generator: VideoGenerator, tmp_path: Path) -> None:
        def report(progress: Progress) -> None:
            if progress.stage == "decoding" and progress.step == progress.total:
                os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            generator.generate_video(CAT, progress=report, **SMALL | {"save_video": True, "output_path": str(tmp_path)})
        assert files(tmp_path) == []

    def test_an_error_in_the_listener_is_the_callers(self, generator: VideoGenerator) -> None:
        def report(progress: Progress) -> None:
            raise LookupError("mine")

        with pytest.raises(LookupError, match="mine"):
            generator.generate_video(CAT, progress=report, **SMALL)
        assert self.usable(generator)

    def test_two_threads_wait_for_each_other(self, generator: VideoGenerator) -> None:
        expected = {seed: generator.generate_video(CAT, **SMALL | {"seed": seed}) for seed in (1, 2)}
        made: dict[int, Any] = {}

        def work(seed: int) -> None:
            made[seed] = generator.generate_video(CAT, **SMALL | {"seed": seed})

        threads = [threading.Thread(target=work, args=(seed,)) for seed in expected]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        for seed, result in expected.items():
            assert torch.equal(made[seed].samples, result.samples)  # type: ignore[union-attr]


def test_nan_in_the_latents_says_at_which_step(wan_repo: Path, tmp_path: Path) -> None:
    with VideoGenerator.from_pretrained(wan_repo, precision="fp32", device="cpu") as generator:
        pipeline = generator._executor._pipeline  # type: ignore[union-attr]
        with torch.no_grad():
            pipeline.transformer.proj_out.bias[0] = math.nan
        with pytest.raises(FloatingPointError, match="after step 1 of 3"):
            generator.generate_video(CAT, **SMALL | {"save_video": True, "output_path": str(tmp_path)})
    assert files(tmp_path) == []


def test_a_closed_generator_says_so(wan_repo: Path) -> None:
    generator = VideoGenerator.from_pretrained(wan_repo, device="cpu")
    generator.shutdown()
    generator.shutdown()
    with pytest.raises(RuntimeError, match=r"shut down.*from_pretrained"):
        generator.generate_video(CAT, **SMALL)
