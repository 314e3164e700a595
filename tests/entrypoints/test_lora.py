"""LoRAs from Python and from the command line: what is set, what is refused, what files say, what replay makes."""

import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo import VideoGenerator
from fastvideo.entrypoints.cli.main import main
from fastvideo.entrypoints.media import read_metadata
from fastvideo.utils import sha256_file
from tests import loras

CAT = "a red cat walks over the sea"
SMALL: dict[str, Any] = {
    "height": 32, "width": 48, "num_frames": 5, "num_inference_steps": 2, "seed": 3, "save_video": False,
    "return_frames": True,
}  # fmt: skip
FLAGS = ("--size", "48x32", "--frames", "5", "--steps", "2")


@pytest.fixture
def generator(wan_repo: Path) -> Iterator[VideoGenerator]:
    """A new one, in fp32."""
    with VideoGenerator.from_pretrained(wan_repo, precision="fp32", device="cpu") as made:
        yield made


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Two LoRAs, and one for a larger model."""
    folder = tmp_path_factory.mktemp("loras")
    draws = torch.Generator().manual_seed(5)
    differences = {
        "diffusion_model.blocks.1.self_attn.k.diff": 0.2 * torch.randn(60, 60, generator=draws),
        "diffusion_model.blocks.0.modulation.diff": 0.2 * torch.randn(1, 6, 60, generator=draws),
        "diffusion_model.head.head.diff_b": 0.2 * torch.randn(64, generator=draws),
    }
    return {
        "differences": loras.write(folder / "differences.safetensors", differences),
        "one": loras.write(folder / "one.safetensors", loras.peft(loras.make_pairs(1))),
        "two": loras.write(folder / "two.safetensors", loras.comfy(loras.make_pairs(2))),
        "large": loras.write(folder / "large.safetensors", loras.peft(loras.make_pairs(1, dim=72))),
    }


def video(generator: VideoGenerator, **fields: Any) -> torch.Tensor:
    """What it makes of one request."""
    made = generator.generate_video(CAT, **SMALL | fields)
    assert not isinstance(made, list) and made.samples is not None
    return made.samples


class TestMethods:
    def test_strengths_are_of_the_last_call(self, generator: VideoGenerator, paths: dict[str, str]) -> None:
        plain = video(generator)
        generator.set_lora_adapter("one", paths["one"], strength=0.5)
        alone = video(generator)
        generator.set_lora_adapter("two", paths["two"], accumulate=True)
        both = video(generator)
        generator.set_lora_adapter("one", strength=0.5)
        assert torch.equal(video(generator), alone)
        generator.set_lora_adapter("one", strength=1.0, accumulate=True)
        assert not torch.equal(video(generator), alone)
        generator.set_lora_adapter("one", strength=0.5, accumulate=True)
        generator.set_lora_adapter("two", strength=1, accumulate=True)
        assert torch.equal(video(generator), both)
        generator.set_lora_adapter("two", strength=0)
        assert torch.equal(video(generator), plain)
        videos = [plain, alone, both]
        assert all(not torch.equal(videos[i], videos[j]) for i in range(3) for j in range(i))

    def test_merging_twice_is_the_same_as_once(self, generator: VideoGenerator, paths: dict[str, str]) -> None:
        generator.set_lora_adapter("one", paths["one"])
        beside = video(generator)
        generator.unmerge_lora_weights()
        generator.merge_lora_weights()
        merged = video(generator)
        generator.merge_lora_weights()
        assert torch.equal(video(generator), merged)
        generator.unmerge_lora_weights()
        generator.unmerge_lora_weights()
        assert torch.equal(video(generator), beside)

    def test_what_is_refused_changes_nothing(
        self, generator: VideoGenerator, paths: dict[str, str], tmp_path: Path
    ) -> None:
        generator.set_lora_adapter("one", paths["one"])
        before = video(generator)
        for arguments, message in (
            ({"lora_nickname": "one", "lora_path": paths["two"]}, "lora_nickname='one': is the LoRA of .*one.safet"
             "ensors, and lora_path='.*two.safetensors' is another; give it a name of its own"),
            ({"lora_nickname": "large", "lora_path": paths["large"]}, "it is for another model; use a LoRA that was"),
            ({"lora_nickname": "onee"}, "'onee': no LoRA has this name; did you mean 'one'\\? or give its lora_path"),
            ({"lora_nickname": ""}, "lora_nickname='': must be a name"),
            ({"lora_nickname": "one", "strength": float("nan")}, "strength=nan: must be a finite number"),
            ({"lora_nickname": "one", "strength": "1"}, "strength='1': must be a finite number"),
            ({"lora_nickname": "one", "accumulate": 1}, "accumulate=1: must be True or False"),
            ({"lora_nickname": "x", "lora_path": str(tmp_path / "x.safetensors")}, "there is no such file, folder"),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=message) as error:
                generator.set_lora_adapter(**arguments)  # type: ignore[arg-type]
            assert "\n" not in str(error.value)
            assert torch.equal(video(generator), before)
        generator.set_lora_adapter("one", os.path.relpath(paths["one"]))
        assert torch.equal(video(generator), before), "the same file by another name"

    def test_nothing_to_merge(self, generator: VideoGenerator, paths: dict[str, str]) -> None:
        for method in (generator.merge_lora_weights, generator.unmerge_lora_weights):
            with pytest.raises(ValueError, match=f"{method.__name__}: no LoRA works; call set_lora_adapter first"):
                method()
        generator.shutdown()
        with pytest.raises(RuntimeError, match="shut down"):
            generator.set_lora_adapter("one", paths["one"])

    @pytest.mark.parametrize("options", [{"disk_offload": True}, {"disk_offload": True, "dit_layerwise_offload": True}])
    def test_offloaded_weights(
        self, wan_repo: Path, generator: VideoGenerator, paths: dict[str, str], options: dict[str, Any]
    ) -> None:
        """The same bits as on the device, beside and merged, and afterwards those of the model alone."""
        path = paths["differences"]
        with VideoGenerator.from_pretrained(wan_repo, precision="fp32", device="cpu", **options) as made:
            plain = video(made)
            for call in (
                lambda one: one.set_lora_adapter("one", paths["one"], strength=0.5),
                lambda one: one.set_lora_adapter("differences", path, accumulate=True),
                lambda one: one.merge_lora_weights(),
                lambda one: one.set_lora_adapter("differences"),
                lambda one: one.unmerge_lora_weights(),
            ):
                call(made)
                call(generator)
                assert torch.equal(video(made), video(generator))
            made.set_lora_adapter("one", strength=0)
            assert torch.equal(video(made), plain)

    def test_a_quantized_transformer(self, wan_repo: Path, paths: dict[str, str]) -> None:
        pytest.importorskip("torchao")
        message = "lora_path='.*': does not go with quantization='int8': quantized weights cannot be changed any more"
        with pytest.raises(ValueError, match=message):
            VideoGenerator.from_pretrained(wan_repo, device="cpu", quantization="int8", lora_path=paths["one"])
        with (
            VideoGenerator.from_pretrained(wan_repo, device="cpu", quantization="int8") as made,
            pytest.raises(ValueError, match=message),
        ):
            made.set_lora_adapter("one", paths["one"])

    def test_a_file_that_changed_since(self, generator: VideoGenerator, paths: dict[str, str], tmp_path: Path) -> None:
        path = shutil.copy(paths["one"], tmp_path / "one.safetensors")
        generator.set_lora_adapter("one", str(path))
        shutil.copy(paths["two"], path)
        with pytest.raises(ValueError, match="was changed since it was set; make another generator for the new one"):
            generator.merge_lora_weights()

    def test_the_log_names_what_is_not_applied(
        self,
        generator: VideoGenerator,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        monkeypatch.setattr(logging.getLogger("fastvideo"), "propagate", True)
        state = loras.peft(loras.make_pairs(1)) | {"other.alpha": torch.tensor(1.0)}
        generator.set_lora_adapter("one", loras.write(tmp_path / "a.safetensors", state))
        records = [record for record in caplog.records if "LoRA" in record.message]
        assert {record.levelname for record in records} == {"WARNING"}
        caplog.clear()
        generator.set_lora_adapter("one", strength=0.5)
        assert "LoRA" not in caplog.text, "it is said once"
        assert "60 of 61 keys applied, to transformer\n  not applied: other.alpha (the model" in records[0].message

    def test_compiled_blocks(self, wan_repo: Path, generator: VideoGenerator, paths: dict[str, str]) -> None:
        """Code that was compiled before a LoRA came or went would not know of it."""
        options: dict[str, Any] = {"enable_torch_compile": True, "torch_compile_kwargs": {"backend": "eager"}}
        with VideoGenerator.from_pretrained(wan_repo, precision="fp32", device="cpu", **options) as compiled:
            small = {"num_inference_steps": 1, "num_frames": 1, "guidance_scale": 1.0}
            torch.testing.assert_close(video(compiled, **small), video(generator, **small), rtol=0, atol=2e-5)
            for nickname, strength, merged in (("one", 1.0, False), ("one", 0.3, True), ("two", 0.5, False)):
                for one in (generator, compiled):
                    one.set_lora_adapter(nickname, paths[nickname], strength=strength)
                    (one.merge_lora_weights if merged else one.unmerge_lora_weights)()
                torch.testing.assert_close(video(compiled, **small), video(generator, **small), rtol=0, atol=2e-5)

    def test_two_processes(self, wan_repo: Path, generator: VideoGenerator, paths: dict[str, str]) -> None:
        with VideoGenerator.from_pretrained(
            wan_repo, precision="fp32", device="cpu", num_gpus=2, lora_path=paths["one"] + ":0.5"
        ) as two:
            generator.set_lora_adapter("default", paths["one"], 0.5)
            assert (video(two) - video(generator)).abs().max() < 1 / 255
            for one in (two, generator):
                one.set_lora_adapter("two", paths["two"], accumulate=True)
                one.merge_lora_weights()
            assert (video(two) - video(generator)).abs().max() < 1 / 255


class TestFromPretrained:
    def test_it_is_refused_before_weights_are_read(
        self, wan_repo: Path, paths: dict[str, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(VideoGenerator, "_start", lambda *args: pytest.fail("loaded"))
        with pytest.raises(ValueError, match="it is for another model"):
            VideoGenerator.from_pretrained(wan_repo, lora_path=paths["large"])

    def test_several(self, wan_repo: Path, generator: VideoGenerator, paths: dict[str, str]) -> None:
        both = [paths["one"], paths["two"] + ":0.5"]
        with VideoGenerator.from_pretrained(wan_repo, precision="fp32", device="cpu", lora_path=both) as made:
            assert made._adapters.active == {"one": 1.0, "two": 0.5}
            generator.set_lora_adapter("one", paths["one"])
            generator.set_lora_adapter("two", paths["two"], 0.5, accumulate=True)
            assert torch.equal(video(made), video(generator))


class TestCommandLine:
    @pytest.fixture(autouse=True)
    def _in_folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)

    def generate(self, model: Path, *flags: str) -> int:
        """Run `fastvideo generate`."""
        return main(["generate", "a red kite", "--model", str(model), *FLAGS, *flags])

    def test_metadata_and_replay(
        self, wan_repo: Path, paths: dict[str, str], capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        moving = shutil.copy(paths["two"], tmp_path / "moving.safetensors")
        assert self.generate(wan_repo, "-o", "a.mp4", "--lora", paths["one"], "--lora", f"{moving}:0.5") == 0
        assert self.generate(wan_repo, "-o", "plain.mp4") == 0
        assert read_metadata("plain.mp4")["lora"] is None
        assert read_metadata("a.mp4")["lora"] == {
            "adapters": [
                {"nickname": "one", "path": paths["one"], "strength": 1.0,
                 "files": {"one.safetensors": sha256_file(paths["one"])}},
                {"nickname": "moving", "path": str(moving), "strength": 0.5,
                 "files": {"moving.safetensors": sha256_file(moving)}},
            ],
            "merged": False,
        }  # fmt: skip
        assert Path("a.mp4").read_bytes() != Path("plain.mp4").read_bytes()
        capsys.readouterr()
        assert main(["replay", "a.mp4"]) == 0
        assert capsys.readouterr().out == "a_replay.mp4: the same, bit for bit, as a.mp4\n"
        Path(moving).rename("there.safetensors")
        assert main(["replay", "a.mp4"]) == 1
        assert "LoRA 'moving' of the clip: lora_path=" in capsys.readouterr().err
        shutil.copy(paths["one"], moving)
        assert main(["replay", "a.mp4"]) == 1
        assert "is another file now; say with --lora where it is" in capsys.readouterr().err
        assert main(["replay", "a.mp4", "--lora", paths["large"]]) == 1
        assert "is no LoRA of the clip; it has one, moving" in capsys.readouterr().err
        assert main(["replay", "a.mp4", "--lora", "there.safetensors", "-o", "b.mp4"]) == 0
        assert capsys.readouterr().out == "b.mp4: the same, bit for bit, as a.mp4\n"

    def test_a_merged_clip_is_merged_again(
        self, wan_repo: Path, generator: VideoGenerator, paths: dict[str, str]
    ) -> None:
        generator.set_lora_adapter("one", paths["one"])
        generator.merge_lora_weights()
        video(generator, save_video=True, output_path="a.mp4")
        assert read_metadata("a.mp4")["lora"]["merged"] is True
        assert main(["replay", "a.mp4"]) == 0

    def test_a_config_file(self, wan_repo: Path, paths: dict[str, str]) -> None:
        Path("run.yaml").write_text(f"generator: {{lora_path: '{paths['one']}:0.5', lora_nickname: style}}\n")
        assert self.generate(wan_repo, "-o", "a.mp4", "--config", "run.yaml") == 0
        (adapter,) = read_metadata("a.mp4")["lora"]["adapters"]
        assert (adapter["nickname"], adapter["strength"]) == ("style", 0.5)
        Path("run.yaml").write_text(f"generator: {{lora_path: ['{paths['one']}', '{paths['two']}:0.5']}}\n")
        assert self.generate(wan_repo, "-o", "b.mp4", "--config", "run.yaml") == 0
        assert [one["strength"] for one in read_metadata("b.mp4")["lora"]["adapters"]] == [1.0, 0.5]

    def test_errors_in_one_line(
        self, wan_repo: Path, paths: dict[str, str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        for flags, message in (
            (["--lora", paths["large"]], "it is for another model; use a LoRA that was made for this one"),
            (["--lora", paths["one"], "--lora", paths["one"]], "has the nickname 'one', as has "),
            (["--lora", "none.safetensors"], "lora_path='none.safetensors': there is no such file, folder or Hub repo"),
        ):
            assert self.generate(wan_repo, "-o", "a.mp4", *flags) == 1
            assert message in capsys.readouterr().err.splitlines()[-1]
            assert not Path("a.mp4").exists()
