"""What a LoRA's keys mean for a model, which file is meant, and what is refused; no pipeline runs here."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.distributed.groups import ONE_RANK
from fastvideo.models.loader.adapt import Adapted
from fastvideo.models.loader.component_loader import Blueprint, load_component
from fastvideo.models.loader.files import LocalFiles
from fastvideo.models.loader.lora import Adapter, LoraSet, load_adapter, transformers_of
from fastvideo.models.loader.lora_files import find_lora, mark_of
from fastvideo.models.loader.repo import Repo, resolve_repo
from tests import loras, tiny_repos

PAIRS = loras.make_pairs(1)
FIRST = "transformer.blocks.0.attn1.to_q"
Models = dict[str, Blueprint]


@pytest.fixture(scope="module")
def repo(wan_repo: Path) -> Repo:
    """A model with one transformer."""
    return resolve_repo(wan_repo)


@pytest.fixture(scope="module")
def models(repo: Repo) -> Models:
    """Its transformer."""
    return transformers_of(repo)


@pytest.fixture(scope="module")
def pair_of_models(models: Models) -> Models:
    """Two transformers, as some models have them."""
    return {"transformer": models["transformer"], "transformer_2": models["transformer"]}


def counts(adapter: Adapter) -> dict[str, int]:
    """How many changes each component gets."""
    return {name: len(changes) for name, changes in adapter.changes.items()}


def error_of(path: Any, models: Models) -> str:
    """The one line that says why `path` is refused."""
    with pytest.raises(ValueError) as error:
        load_adapter("style", str(path), models)
    assert "\n" not in str(error.value)
    return str(error.value)


class TestKeys:
    def test_a_third_of_a_stacked_matrix(self, models: Models, tmp_path: Path) -> None:
        path = loras.write(tmp_path / "a.safetensors", loras.peft(loras.make_pairs(1, 1, ("attn1.to_v",))))
        (change,) = load_adapter("a", path, models).changes["transformer"]
        assert (change.target.name, change.target.part, change.target.parts) == ("blocks.0.self_attn.qkv.weight", 2, 3)

    def test_each_key_that_is_not_applied_is_named(self, models: Models, tmp_path: Path) -> None:
        others = {
            "transformer.blocks.7.attn1.to_q.lora_A.weight": torch.ones(3, 60),
            "transformer.blocks.7.attn1.to_q.lora_B.weight": torch.ones(60, 3),
            "text_encoder.layers.0.q.lora_A.weight": torch.ones(3, 36),
            "transformer_2.blocks.0.attn1.to_q.lora_A.weight": torch.ones(3, 60),
            "transformer.blocks.1.attn1.norm_q.alpha": torch.tensor(1.0),
            "epoch": torch.tensor(3.0),
            "transformer.scale_shift_table.diff_b": torch.ones(1, 2, 60),
        }
        adapter = load_adapter("a", loras.write(tmp_path / "a.safetensors", loras.peft(PAIRS) | others), models)
        assert set(adapter.not_applied) == set(others)
        assert adapter.applied == 60
        lines = str(adapter).splitlines()
        assert lines[0] == f"LoRA 'a' of {tmp_path}/a.safetensors: 60 of 67 keys applied, to transformer"
        assert len(lines) == 8
        assert "  not applied: epoch (it is no part of a LoRA)" in lines
        assert (
            "  not applied: text_encoder.layers.0.q.lora_A.weight (the model has no 'text_encoder.layers.0.q')" in lines
        )

    def test_none_applied(self, models: Models, tmp_path: Path) -> None:
        state = {key.replace("blocks", "layers"): value for key, value in loras.peft(PAIRS).items()}
        message = error_of(loras.write(tmp_path / "a.safetensors", state), models)
        assert "none of its 60 keys is of a weight of the model (the first, 'transformer.layers.0.attn1" in message
        assert message.endswith("use a LoRA that was made for this model")

    def test_one_for_another_model(self, models: Models, tmp_path: Path) -> None:
        wide = loras.make_pairs(1, dim=48)
        message = error_of(loras.write(tmp_path / "a.safetensors", loras.peft(wide)), models)
        assert message.startswith(f"lora_path='{tmp_path}/a.safetensors': in a.safetensors, ")
        assert "have shapes [48, 3] and [3, 48], and the model's weight is [60, 60]: it is for another model" in message
        state = {"diffusion_model.patch_embedding.diff": torch.ones(60, 36, 1, 2, 2)}
        message = error_of(loras.write(tmp_path / "b.safetensors", state), models)
        assert "has shape [60, 36, 1, 2, 2], and the model's weight is [60, 16, 1, 2, 2]" in message

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({f"{FIRST}.lora_A.weight": None}, "'transformer.blocks.0.attn1.to_q.lora_B.weight' lacks the other half"),
            ({f"{FIRST}.lora_magnitude_vector": torch.ones(60)}, "is of DoRA, and low-rank pairs and differences"),
            ({f"{FIRST}.lokr_w1": torch.ones(2, 2)}, "is of LoKr"),
            ({f"{FIRST}.hada_w1_a": torch.ones(2, 2)}, "is of LoHa"),
            ({f"{FIRST}.alpha": torch.ones(2)}, "has shape [2], must be one number"),
            ({f"{FIRST}.lora_A.weight": torch.ones(3, 60, dtype=torch.int8)}, "is torch.int8, must be a floating"),
            ({f"{FIRST}.lora_down.weight": torch.ones(3, 60)}, "are both of 'blocks.0.attn1.to_q'; remove one of them"),
        ],
    )  # fmt: skip
    def test_broken_files(self, models: Models, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        state = {key: value for key, value in (loras.peft(PAIRS) | change).items() if value is not None}
        assert message in error_of(loras.write(tmp_path / "a.safetensors", state), models)

    def test_settings_beside_a_file_of_peft(self, models: Models, tmp_path: Path) -> None:
        loras.write(tmp_path / "adapter_model.safetensors", loras.peft(PAIRS, "base_model.model."))
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 3, "lora_alpha": 12}))
        for path in (tmp_path, tmp_path / "adapter_model.safetensors"):
            changes = load_adapter("a", str(path), models).changes["transformer"]
            assert {change.scale for change in changes} == {4.0}
        (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 3, "lora_alpha": 12, "use_dora": True}))
        assert "is of DoRA" in error_of(tmp_path, models)
        (tmp_path / "adapter_config.json").write_text("[]")
        assert "must be a JSON object" in error_of(tmp_path, models)


class TestFiles:
    def test_what_is_no_file_of_weights(self, models: Models, tmp_path: Path) -> None:
        assert "there is no such file, folder or Hub repo" in error_of(tmp_path / "none.safetensors", models)
        assert "there is no such file, folder or Hub repo" in error_of("none", models)
        for name in ("a.pt", "a.ckpt", "a.txt"):
            (tmp_path / name).write_bytes(b"x")
            message = error_of(tmp_path / name, models)
            assert "must be a .safetensors file" in message
            assert message.endswith("save its tensors as .safetensors")
        (tmp_path / "text.safetensors").write_text("not weights at all, but long enough for a header")
        assert "weight file is truncated or broken" in error_of(tmp_path / "text.safetensors", models)
        whole = Path(loras.write(tmp_path / "whole.safetensors", loras.peft(PAIRS)))
        (tmp_path / "half.safetensors").write_bytes(whole.read_bytes()[:2000])
        assert "weight file is truncated or broken" in error_of(tmp_path / "half.safetensors", models)

    def test_a_folder(self, models: Models, tmp_path: Path) -> None:
        assert "holds no .safetensors file" in error_of(tmp_path, models)
        loras.write(tmp_path / "a.safetensors", loras.peft(PAIRS))
        assert load_adapter("a", str(tmp_path), models).applied == 60
        loras.write(tmp_path / "b.safetensors", loras.peft(PAIRS))
        message = error_of(tmp_path, models)
        assert "holds 2 .safetensors files (a.safetensors, b.safetensors), must hold one" in message
        assert message.endswith(f"name one, as in {tmp_path}/a.safetensors")

    def test_a_hub_repo(self, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        loras.write(tmp_path / "v1" / "a.safetensors", loras.peft(PAIRS))
        asked = []

        def hub_files(repo_id: str, what: str) -> LocalFiles:
            asked.append((repo_id, what))
            return LocalFiles.of(tmp_path)

        monkeypatch.setattr("fastvideo.models.loader.lora_files.hub_files", hub_files)
        for path in ("someone/style", "someone/style/v1/a.safetensors"):
            assert load_adapter("a", path, models).applied == 60
        assert asked == [("someone/style", "lora_path")] * 2
        assert "the repo has no file 'b.safetensors'; it has v1/a.safetensors" in error_of(
            "someone/style/b.safetensors", models
        )

    def test_a_hub_repo_without_a_network(self, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
        message = error_of("someone/style", models)
        assert message.startswith("lora_path='someone/style': is not in the local cache, and the Hub cannot be reached")


class TestTwoTransformers:
    @pytest.mark.parametrize(
        ("name", "mark"),
        [
            ("high_noise_model.safetensors", 0), ("low_noise_model.safetensors", 1), ("Style-LOW.safetensors", 1),
            ("wan22_A14B_HIGH_lightning.safetensors", 0), ("high_noise_model/lora.safetensors", 0),
            ("low-noise/lora.safetensors", 1), ("transformer_2/a.safetensors", 1), ("transformer/a.safetensors", 0),
            ("style.safetensors", None), ("highlands.safetensors", None), ("high_to_low.safetensors", None),
            ("low/style.safetensors", None), ("slow_motion.safetensors", None),
        ],
    )  # fmt: skip
    def test_names_of_files(self, name: str, mark: int | None) -> None:
        assert mark_of(name) == mark

    def test_a_file_for_each(self, pair_of_models: Models, models: Models, tmp_path: Path) -> None:
        few = loras.make_pairs(2, names=("attn1.to_q",))
        loras.write(tmp_path / "style_high_noise.safetensors", loras.peft(PAIRS))
        low = loras.write(tmp_path / "style_low_noise.safetensors", loras.peft(few))
        assert counts(load_adapter("a", str(tmp_path), pair_of_models)) == {"transformer": 30, "transformer_2": 3}
        assert counts(load_adapter("a", low, pair_of_models)) == {"transformer": 0, "transformer_2": 3}
        assert counts(load_adapter("a", low, models)) == {"transformer": 3}
        assert "holds 2 .safetensors files" in error_of(tmp_path, models)
        loras.write(tmp_path / "third.safetensors", loras.peft(few))
        assert "must hold one for each transformer" in error_of(tmp_path, pair_of_models)

    def test_one_file_for_both(self, pair_of_models: Models, tmp_path: Path) -> None:
        few = loras.make_pairs(2, names=("attn1.to_q",))
        state = loras.peft(PAIRS) | loras.peft(few, "transformer_2.")
        adapter = load_adapter("a", loras.write(tmp_path / "a.safetensors", state), pair_of_models)
        assert counts(adapter) == {"transformer": 30, "transformer_2": 3}
        assert (adapter.applied, adapter.not_applied) == (66, {})
        path = loras.write(tmp_path / "b.safetensors", loras.comfy(few))
        assert counts(load_adapter("b", path, pair_of_models)) == {"transformer": 3, "transformer_2": 3}

    def test_each_gets_its_own(self, repo: Repo, pair_of_models: Models, tmp_path: Path) -> None:
        sources = {"transformer": repo.components["transformer"], "transformer_2": repo.components["transformer"]}
        two = Repo(model=repo.model, entry=repo.entry, model_index={}, components=sources, files=repo.files)
        components = {name: load_component(source) for name, source in sources.items()}
        adapted = Adapted(two, components, ONE_RANK, torch.device("cpu"))
        state = loras.peft(PAIRS) | loras.peft(loras.make_pairs(2, names=("attn1.to_q",)), "transformer_2.")
        adapter = load_adapter("a", loras.write(tmp_path / "a.safetensors", state), pair_of_models)
        before = {name: {k: v.clone() for k, v in model.state_dict().items()} for name, model in components.items()}
        adapted.adapt(LoraSet(((adapter, 1.0),), merged=True))
        changed = {
            name: sum(not torch.equal(value, before[name][key]) for key, value in model.state_dict().items())
            for name, model in components.items()
        }
        assert changed == {"transformer": 3 * 7, "transformer_2": 3}
        adapted.adapt(LoraSet())
        for name, model in components.items():
            assert all(torch.equal(value, before[name][key]) for key, value in model.state_dict().items())


class TestAdapted:
    def make(self, repo: Repo) -> tuple[Any, Adapted]:
        """The transformer of `repo`, and what adapts it."""
        model = load_component(repo.components["transformer"], dtype=torch.bfloat16)
        return model, Adapted(repo, {"transformer": model}, ONE_RANK, torch.device("cpu"))

    def test_a_sum_is_rounded_once(self, repo: Repo, models: Models, tmp_path: Path) -> None:
        model, adapted = self.make(repo)
        paths = [loras.write(tmp_path / f"{n}.safetensors", loras.peft(loras.make_pairs(n))) for n in (1, 2)]
        adapters = [load_adapter(path, path, models) for path in paths]
        weight = model.blocks[1].ffn.fc_in.weight
        exact = weight.float().clone()
        adapted.adapt(LoraSet(tuple(zip(adapters, (0.3, 0.6), strict=True)), merged=True))
        for number, strength in ((1, 0.3), (2, 0.6)):
            down, up = loras.make_pairs(number)["blocks.1.ffn.net.0.proj"]
            exact += strength * (up @ down)
        torch.testing.assert_close(weight, exact.bfloat16(), rtol=0, atol=0)

    def test_after_an_error_all_is_as_before(self, repo: Repo, models: Models, tmp_path: Path) -> None:
        model, adapted = self.make(repo)
        good = load_adapter("good", loras.write(tmp_path / "good.safetensors", loras.peft(PAIRS)), models)
        bad = load_adapter("bad", loras.write(tmp_path / "bad.safetensors", loras.comfy(loras.make_pairs(3))), models)
        adapted.adapt(LoraSet(((good, 1.0),), merged=True))
        before = {name: value.clone() for name, value in model.state_dict().items()}
        (tmp_path / "bad.safetensors").unlink()
        for merged in (True, False):
            with pytest.raises(ValueError, match=r"bad\.safetensors: file is missing; put it back"):
                adapted.adapt(LoraSet(((bad, 1.0), (good, 1.0)), merged))
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
            assert not any("lora" in name for name, _ in model.named_modules())

    def test_weights_that_changed_since(self, models: Models, tmp_path: Path, wan_repo: Path) -> None:
        shutil.copytree(wan_repo, tmp_path / "model")
        _, adapted = self.make(resolve_repo(tmp_path / "model"))
        adapter = load_adapter("a", loras.write(tmp_path / "a.safetensors", loras.peft(PAIRS)), models)
        adapted.adapt(LoraSet(((adapter, 1.0),), merged=True))
        file = tmp_path / "model" / "transformer" / "diffusion_pytorch_model.safetensors"
        file.write_bytes(file.read_bytes())
        with pytest.raises(ValueError, match=r"have changed since the model was loaded, .*; load the model again"):
            adapted.adapt(LoraSet())

    def test_quantized_weights_are_refused(self, repo: Repo, models: Models, tmp_path: Path) -> None:
        model, adapted = self.make(repo)
        layer = model.blocks[0].ffn.fc_in
        layer.weight = torch.nn.Parameter(layer.weight.to(torch.int8), requires_grad=False)
        adapter = load_adapter("a", loras.write(tmp_path / "a.safetensors", loras.peft(PAIRS)), models)
        with pytest.raises(ValueError, match=r"blocks\.0\.ffn\.fc_in\.weight \(torch\.int8\): adapters of quantized"):
            adapted.adapt(LoraSet(((adapter, 1.0),)))

    @pytest.mark.parametrize("method", ["int8", "fp8"])
    def test_quantized_weights_that_look_like_others(
        self, repo: Repo, models: Models, tmp_path: Path, method: str
    ) -> None:
        pytest.importorskip("torchao")
        model = load_component(repo.components["transformer"], dtype=torch.bfloat16, quantization=method)
        adapted = Adapted(repo, {"transformer": model}, ONE_RANK, torch.device("cpu"))
        adapter = load_adapter("a", loras.write(tmp_path / "a.safetensors", loras.peft(PAIRS)), models)
        with pytest.raises(ValueError, match=r"LoRA on blocks\.0\..*: adapters of quantized weights are not available"):
            adapted.adapt(LoraSet(((adapter, 1.0),)))
        assert not any("lora" in name for name, _ in model.named_modules())

    def test_branches_move_with_the_model(self, repo: Repo, models: Models, tmp_path: Path) -> None:
        model, adapted = self.make(repo)
        adapter = load_adapter("a", loras.write(tmp_path / "a.safetensors", loras.peft(PAIRS)), models)
        adapted.adapt(LoraSet(((adapter, 1.0),)))
        down = model.blocks[0].self_attn.qkv.lora.down
        assert (down.dtype, list(down.shape)) == (torch.bfloat16, [9, 60])
        assert not any("lora" in name for name in model.state_dict())
        assert torch.nn.Module.to(model, "meta").blocks[0].self_attn.qkv.lora.down.is_meta


def test_a_model_of_another_size(tmp_path: Path) -> None:
    """Blocks that the model lacks are named, not dropped."""
    folder = tiny_repos.make_wan_repo(tmp_path / "small", transformer={"num_layers": 2})
    adapter = load_adapter(
        "a", loras.write(tmp_path / "a.safetensors", loras.kohya(PAIRS)), transformers_of(resolve_repo(folder))
    )
    assert (adapter.applied, len(adapter.not_applied)) == (60, 30)
    assert set(adapter.not_applied.values()) >= {"the model has no 'lora_unet_blocks_2_self_attn_q'"}


def test_the_same_file_by_another_name(tmp_path: Path) -> None:
    path = Path(loras.write(tmp_path / "a.safetensors", loras.peft(PAIRS)))
    assert find_lora(str(path)) == find_lora(str(tmp_path / "." / "a.safetensors"))
