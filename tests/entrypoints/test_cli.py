"""The command line, as a user has it: what it says, where the files are, and its exit codes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from fastvideo.entrypoints import media
from fastvideo.entrypoints.cli.generate import job_of
from fastvideo.entrypoints.cli.main import main
from fastvideo.entrypoints.cli.parser import parse
from tests.entrypoints.processes import SMALL, start

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs the command line; gives the exit code, standard output and the last line of standard error."""

    def run(*argv: str) -> tuple[int, str, str]:
        code = main(argv)
        out, err = capsys.readouterr()
        return code, out, err.splitlines()[-1] if err else ""

    return run


def request_of(*argv: str) -> Any:
    """The sampling of a `generate` call."""
    return job_of(parse(["generate", *argv])[1])


class TestUsage:
    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            ((), "no command given; there are generate, replay, models, inspect, plan, verify, tune, bench, serve"),
            (("generat",), "'generat': no such command; did you mean 'generate'?"),
            (("generate", "--sede", "3"), "--sede: no such flag; did you mean --seed?"),
            (("generate", "x", "--see", "3"), "--see: no such flag; did you mean --seed?"),
            (("generate", "x", "--request.sampling.sede=3"), "did you mean --request.sampling.seed?"),
            (("generate", "x", "--seed", "many"), "--seed=many: must be a whole number"),
            (("generate", "x", "--seed", "1.5"), "--seed=1.5: must be a whole number"),
            (("generate", "x", "--guidance", "nan"), "--guidance=nan: must be a number"),
            (("generate", "x", "--request.sampling.seed", "y"), "request.sampling.seed=y: must be a whole number"),
            (("generate", "x", "--seed"), "--seed: expected one argument"),
            (("generate", "x", "--size", "832"), "--size=832: must be WIDTHxHEIGHT, such as 832x480"),
            (("generate", "x", "--contact-sheet", "a.jpg"), "--contact-sheet=a.jpg: must end in .png"),
            (("generate", "a", "red circle"), "'red circle': one argument too many; put a prompt of several words in"),
            (("generate",), "no prompt; give one in quotes"),
            (("generate", "x", "--config", "none.yaml"), "--config=none.yaml: cannot be read: No such file"),
            (("replay",), "CLIP is missing"),
            (("inspect",), "MODEL is missing"),
            (("models", "--all"), "--all: no such flag"),
        ],
    )
    def test_wrong_usage_is_one_line_and_exit_code_2(self, run: Run, in_folder: Path, argv: Any, message: str) -> None:
        code, out, err = run(*argv)
        assert (code, out) == (2, "")
        assert err.startswith("fastvideo: ")
        assert message in err
        assert "--help)" in err

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (("--steps", "0"), "num_inference_steps=0: must be a whole number, at least 1"),
            (("--seed", "-1"), "seed=-1: must be a whole number, at least 0"),
            (("--model", "Wan-AI/Wan2.1-T2V-1.3B-Difusers"), "did you mean 'Wan-AI/Wan2.1-T2V-1.3B-Diffusers'?"),
            (("--generator.tp_size", "2"), "tp_size=2: must divide num_gpus=1; set num_gpus=2 or a multiple"),
            (("--generator.precision", "fp3"), "precision='fp3': must be one of auto, fp32, bf16, fp16"),
            (("--generator.pipeline_config.vae_tile_size", "64"), "vae_tile_size=64: does nothing without vae_tiling"),
            (("-o", "clip.avi"), "clip.avi: .avi cannot be written; use one of .mp4, .gif, .webp"),
            (("-o", "a.png"), "a.png: one PNG holds one frame"),
        ],
    )
    def test_a_broken_rule_is_one_line_and_exit_code_1(
        self, run: Run, in_folder: Path, argv: Any, message: str
    ) -> None:
        code, out, err = run("generate", "x", *argv)
        assert (code, out) == (1, "")
        assert message in err
        assert list(in_folder.iterdir()) == []

    def test_debug_shows_the_traceback(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FASTVIDEO_LOGGING_LEVEL", "DEBUG")
        with pytest.raises(ValueError, match="num_inference_steps=0"):
            main(["generate", "x", "--steps", "0"])

    def test_a_wrong_environment_is_one_line(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FASTVIDEO_LOGGING_LEVEL", "LOUD")
        code, _, err = run("models")
        assert code == 1
        assert "FASTVIDEO_LOGGING_LEVEL='LOUD': must be one of DEBUG, INFO, WARNING, ERROR" in err


class TestConfig:
    def test_flags_beat_dotted_flags_beat_the_file_beats_defaults(self, in_folder: Path) -> None:
        Path("run.yaml").write_text(
            "generator: {model: shapes-t2v, precision: fp32, pipeline_config: {flow_shift: 2}}\n"
            "request:\n  prompt: a kite\n  negative_prompt: fog\n  output_path: o/\n"
            "  sampling: {seed: 1, num_inference_steps: 1, num_frames: 9, guidance_scale: 1.5}\n"
        )
        job = request_of(
            "--request.sampling.seed", "2", "--request.sampling.num_inference_steps=2", "--config", "run.yaml",
            "--steps", "3", "--request.sampling.num_inference_steps=4",
        )  # fmt: skip
        sampling = job.sampling
        assert (job.prompts, job.model, job.engine["precision"]) == (["a kite"], "shapes-t2v", "fp32")
        assert job.engine["pipeline_config"].flow_shift == 2
        assert job.engine["pipeline_config"].dit_precision == "fp32", "what is not given is the model's own"
        assert (sampling.seed, sampling.num_inference_steps, sampling.num_frames) == (2, 3, 9)
        assert (sampling.guidance_scale, sampling.negative_prompt, sampling.output_path) == (1.5, "fog", "o/")
        assert (sampling.height, sampling.width, sampling.fps) == (96, 96, 12), "the model's own defaults"

    def test_short_flags(self, in_folder: Path) -> None:
        sampling = request_of("x", "--size", "64x32", "--frames=5", "--guidance", "2", "--negative", "").sampling
        assert (sampling.width, sampling.height, sampling.num_frames) == (64, 32, 5)
        assert (sampling.guidance_scale, sampling.negative_prompt) == (2.0, "")

    @pytest.mark.parametrize("prompt", ["a: b", "null", "[1, 2]", "007", "{}", "yes", "-1", "猫 😀"])
    def test_a_prompt_is_taken_as_it_is(self, prompt: str) -> None:
        assert request_of(prompt).prompts == [prompt]

    def test_several_prompts(self, in_folder: Path) -> None:
        Path("run.yaml").write_text("request: {prompt: [a kite, 'a: b']}")
        assert request_of("--config=run.yaml").prompts == ["a kite", "a: b"]
        assert request_of("--config=run.yaml", "a star").prompts == ["a star"]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("request: {sampling: {sede: 3}}", "'request.sampling.sede': unknown key; did you mean 'request.sampling."),
            ("request.sampling.sede: 3", "'request.sampling.sede': unknown key; did you mean 'request.sampling.seed'?"),
            ("request: {sampling: {negative_prompt: x}}", "did you mean 'request.negative_prompt'?"),
            ("generator: {num_gpu: 1}", "'generator.num_gpu': unknown key; did you mean 'generator.num_gpus'?"),
            ("generator: {pipeline_config: {shift: 1}}", "did you mean 'generator.pipeline_config.flow_shift'?"),
            ("generatr: {num_gpus: 1}", "'generatr.num_gpus': unknown key; did you mean 'generator.num_gpus'?"),
            ("server: {port: 1}", "'server.port': unknown key"),
            ("request: {sampling: {seed: many}}", "request.sampling.seed"),
            ("request: [1]", "'request': unknown key"),
            ("- a", "must hold the keys 'generator' and 'request'"),
            ("", "must hold the keys 'generator' and 'request'"),
            ("a: [", "is not YAML"),
        ],
    )
    def test_a_wrong_file_is_one_line_and_exit_code_2(self, run: Run, in_folder: Path, text: str, message: str) -> None:
        Path("run.yaml").write_text(text)
        code, out, err = run("generate", "x", "--config", "run.yaml")
        assert (code, out) == (2, "")
        assert message in err
        assert "run.yaml" in err or "seed" in err

    @pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"request: \x00"])
    def test_a_binary_file_is_no_config(self, run: Run, in_folder: Path, content: bytes) -> None:
        Path("run.yaml").write_bytes(content)
        code, _, err = run("generate", "x", "--config", "run.yaml")
        assert code == 2
        assert "run.yaml: is not YAML" in err


class TestGenerate:
    @pytest.mark.parametrize("output", ["new/clip.mp4", "clip.gif", "clip.webp", "frames", "frames/"])
    def test_every_format_and_replay(self, run: Run, in_folder: Path, wan_repo: Path, output: str) -> None:
        code, out, _ = run("generate", "a red kite", "--model", str(wan_repo), "-o", output, "--seed", "5", *SMALL)
        path = Path(output)
        assert code == 0
        assert out.startswith(f"{path}: 5 frames of 48x32, 16 a second, seed 5, in ")
        assert media.read_metadata(path)["request"]["seed"] == 5
        assert run("replay", str(path))[0] == 0
        again = path.with_name(f"{path.stem}_replay{path.suffix}")
        pairs = [(path, again)] if path.is_file() else [(png, again / png.name) for png in path.iterdir()]
        assert all(one.read_bytes() == other.read_bytes() for one, other in pairs)

    def test_what_the_file_says(self, run: Run, in_folder: Path, wan_repo: Path) -> None:
        run("generate", "a red kite", "--model", str(wan_repo), "-o", "a.mp4", "--negative", "fog", *SMALL)
        metadata = media.read_metadata("a.mp4")
        assert metadata["request"]["prompt"] == "a red kite"
        assert metadata["request"]["negative_prompt"] == "fog"
        assert metadata["request"]["num_inference_steps"] == 2
        assert metadata["model"]["name"] == str(wan_repo)
        hashes = metadata["model"]["weights"]
        assert all(len(sha256) == 64 for sha256 in hashes.values())
        assert len(hashes) == 3
        assert metadata["attention_backend"] == "TORCH_SDPA"
        assert (metadata["device"], metadata["precision"], metadata["index"]) == ("cpu", "auto", 0)
        assert {"python", "torch", "diffusers", "transformers", "av"} <= metadata["versions"].keys()

    def test_contact_sheet_and_several_videos(self, run: Run, in_folder: Path, wan_repo: Path) -> None:
        code, out, _ = run(
            "generate", "a red kite", "--model", str(wan_repo), "-o", "a.mp4", "--contact-sheet", "s/a.png",
            "--request.sampling.num_videos_per_prompt", "2", *SMALL,
        )  # fmt: skip
        assert code == 0
        assert [line.split(": ")[0] for line in out.splitlines()] == ["a.mp4", "s/a.png", "a_1.mp4", "s/a_1.png"]
        with Image.open("s/a_1.png") as sheet:
            assert sheet.width > 3 * 48
        assert run("replay", "a_1.mp4", "-o", "b.mp4")[0] == 0
        assert Path("b.mp4").read_bytes() == Path("a_1.mp4").read_bytes()
        assert sorted(path.name for path in in_folder.iterdir()) == ["a.mp4", "a_1.mp4", "b.mp4", "s"]

    def test_without_output_the_name_is_the_prompt(self, run: Run, in_folder: Path, wan_repo: Path) -> None:
        for _ in range(2):
            assert run("generate", "a/b: c?", "--model", str(wan_repo), *SMALL)[0] == 0
        assert sorted(path.name for path in Path("outputs").iterdir()) == ["ab c.mp4", "ab c_1.mp4"]

    def test_sizes_that_the_model_cannot_make(self, run: Run, in_folder: Path, wan_repo: Path) -> None:
        code, _, err = run("generate", "x", "--model", str(wan_repo), "--frames", "50", "-o", "a.mp4")
        assert code == 1
        assert "num_frames=50: must be 4k+1; try 49 or 53" in err
        assert list(in_folder.iterdir()) == []

    def test_a_folder_that_cannot_be_written(self, run: Run, in_folder: Path, wan_repo: Path) -> None:
        Path("file").touch()
        code, _, err = run("generate", "x", "--model", str(wan_repo), "-o", "file/a.mp4", *SMALL)
        assert code == 1
        assert err == "fastvideo: file: cannot be written: File exists; choose another output path"


class TestReplay:
    @pytest.fixture
    def clip(self, run: Run, in_folder: Path, wan_repo: Path) -> Path:
        """A clip of the tiny model: a folder of PNGs, which hold their pixels exactly."""
        run("generate", "a red kite", "--model", str(wan_repo), "-o", "a", *SMALL)
        return Path("a")

    def changed(self, clip: Path, change: Callable[[dict[str, Any]], None]) -> None:
        """Change the clip's metadata."""
        metadata = media.read_metadata(clip)
        change(metadata)
        media.write_video(media.read_frames(clip), clip, 16, metadata)

    def test_other_weights_are_refused(self, run: Run, clip: Path, wan_repo: Path) -> None:
        self.changed(clip, lambda metadata: metadata["model"]["weights"].update({"vae/other.safetensors": "0"}))
        code, _, err = run("replay", "a")
        assert code == 1
        assert f"{wan_repo}: not the weights that made the clip (vae/other.safetensors)" in err
        assert not Path("a_replay").exists()
        assert run("replay", "a", "--force")[:2] == (0, "a_replay: the same, bit for bit, as a\n")

    def test_other_versions_are_a_warning(self, clip: Path) -> None:
        self.changed(clip, lambda metadata: metadata["versions"].update(torch="1.0"))
        process = start("replay", "a")
        out, err = process.communicate(timeout=200)
        assert "WARNING torch was 1.0 and is " in err
        assert (process.returncode, out) == (0, "a_replay: the same, bit for bit, as a\n")

    def test_a_clip_that_is_not_the_same_is_exit_code_1(self, run: Run, clip: Path) -> None:
        self.changed(clip, lambda metadata: metadata["request"].update(seed=6))
        assert run("replay", "a")[:2] == (1, "a_replay: NOT the same as a\n")

    def test_a_model_that_moved(self, run: Run, clip: Path, wan_repo: Path) -> None:
        self.changed(clip, lambda metadata: metadata["model"].update(name="/nowhere"))
        code, _, err = run("replay", "a")
        assert code == 1
        assert "/nowhere" in err
        assert run("replay", "a", "--model", str(wan_repo), "-o", "b.mp4")[:2] == (0, "b.mp4: made as a\n")

    def test_it_shares_the_work_as_the_clip_was_shared(self, run: Run, in_folder: Path, wan_repo: Path) -> None:
        run("generate", "a red kite", "--model", str(wan_repo), "-o", "a", "--generator.num_gpus", "2", *SMALL)
        devices = media.read_metadata(Path("a"))["devices"]
        assert (devices["num_gpus"], devices["cfg_size"]) == (2, 2)
        assert run("replay", "a")[:2] == (0, "a_replay: the same, bit for bit, as a\n")
        assert media.read_metadata(Path("a_replay"))["devices"] == devices

    def test_files_without_metadata(self, run: Run, in_folder: Path) -> None:
        Image.new("RGB", (8, 8)).save("plain.gif")
        code, _, err = run("replay", "plain.gif")
        said = "fastvideo: plain.gif: carries no FastVideo metadata; only files that fastvideo wrote do"
        assert (code, err) == (1, said)
        assert run("replay", "none.mp4")[::2] == (1, "fastvideo: none.mp4: no such file")

    def test_metadata_of_another_version(self, run: Run, clip: Path) -> None:
        self.changed(clip, lambda metadata: metadata.pop("pipeline_config"))
        code, _, err = run("replay", "a")
        assert code == 1
        assert "its metadata has no 'pipeline_config'; it is from another version of fastvideo" in err


class TestReports:
    def test_models(self, run: Run) -> None:
        code, out, _ = run("models")
        assert code == 0
        assert "832x480x81               16   50     3" in out
        assert "Wan-AI/Wan2.1-T2V-14B-Diffusers" in out

    def test_inspect(self, run: Run, wan_repo: Path) -> None:
        code, out, _ = run("inspect", str(wan_repo))
        assert code == 0
        assert f"{wan_repo}: WanPipeline, registered as wan2.1-t2v" in out
        row = next(line for line in out.splitlines() if line.startswith("vae "))
        assert row.split()[1:4] == ["diffusers.AutoencoderKLWan", "vaes.wanvae.AutoencoderKLWan", "vae/config.json"]
        row = next(line for line in out.splitlines() if line.startswith("blocks.*.attn1.to_k.weight "))
        assert row.split() == [
            "blocks.*.attn1.to_k.weight",
            "blocks.*.self_attn.qkv.weight",
            "[2",
            "of",
            "3]",
            "60x60",
            "float32",
            "3",
        ]

    def test_inspect_quantized(self, run: Run, wan_repo: Path) -> None:
        rows = []
        for flags in ((), ("--quantization", "int8")):
            _, out, _ = run("inspect", str(wan_repo), *flags)
            rows.append(next(line for line in out.splitlines() if line.startswith("transformer ")).split())
        assert rows[0][:6] == rows[1][:6]
        assert int(rows[1][6].replace(",", "")) < int(rows[0][6].replace(",", ""))

    def test_inspect_what_is_no_repo(self, run: Run, in_folder: Path) -> None:
        code, _, err = run("inspect", str(in_folder))
        assert code == 1
        assert "has no model_index.json" in err

    def test_verify(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        from fastvideo.entrypoints import verify

        good = verify.Row(component="vae", precision="fp32", error=1e-6, bound=1e-5)
        bad = verify.Row(component="transformer", precision="fp32", error=None, bound=1e-5, note="too large")
        monkeypatch.setattr(verify, "verify", lambda _: [good])
        assert run("verify", "x")[0] == 0
        monkeypatch.setattr(verify, "verify", lambda _: [good, bad])
        code, out, _ = run("verify", "x")
        assert code == 1
        assert out.splitlines()[-1].split() == ["transformer", "fp32", "-", "1.00e-05", "FAIL", "too", "large"]


def test_metadata_is_plain_json(run: Run, in_folder: Path, wan_repo: Path) -> None:
    run("generate", "猫", "--model", str(wan_repo), "-o", "frames", *SMALL)
    with Image.open("frames/0000.png") as image:
        assert json.loads(image.info["fastvideo"])["request"]["prompt"] == "猫"
