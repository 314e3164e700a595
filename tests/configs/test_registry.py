"""The registry: exact lookup, and an error that lists the choices."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from fastvideo.configs.models.base import ArchConfig
from fastvideo.configs.official import OfficialLayout
from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.registry import (
    COMPONENTS,
    MODELS,
    ComponentEntry,
    ModelEntry,
    entry_for,
    find_component,
    find_entry,
)
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.utils import resolve


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry.name)
def test_what_an_entry_names_is_there(entry: ModelEntry) -> None:
    assert issubclass(resolve(entry.pipeline_config), PipelineConfig)
    assert issubclass(resolve(entry.sampling), SamplingParam)
    assert import_module(entry.pipeline.split(":")[0])
    assert resolve(entry.pipeline).__name__ == entry.pipeline.split(":")[1]
    if entry.official_layout is not None:
        layout = resolve(entry.official_layout)
        assert isinstance(layout, OfficialLayout)
        assert layout.pipeline_class == entry.pipeline_class


@pytest.mark.parametrize("entry", COMPONENTS, ids=lambda entry: entry.class_name)
def test_what_a_component_names_is_there(entry: ComponentEntry) -> None:
    assert resolve(entry.model).__name__ == entry.model.split(":")[1]
    assert issubclass(resolve(entry.arch), ArchConfig)


def test_names_and_ids_are_unique_and_each_class_has_one_default() -> None:
    names = [entry.name for entry in MODELS]
    ids = [model_id for entry in MODELS for model_id in entry.model_ids]
    assert len(set(names)) == len(names)
    assert len(set(ids)) == len(ids)
    for pipeline_class in {entry.pipeline_class for entry in MODELS}:
        defaults = [entry for entry in MODELS if not entry.signature and not entry.components]
        assert sum(entry.pipeline_class == pipeline_class for entry in defaults) == 1


@pytest.mark.parametrize("entry", MODELS, ids=lambda entry: entry.name)
def test_every_id_finds_its_entry(entry: ModelEntry) -> None:
    for model_id in entry.model_ids:
        assert find_entry(model_id=model_id) is entry
        assert entry_for(model_id) is entry


def configs(**transformer: Any) -> dict[str, dict[str, Any]]:
    return {"transformer": transformer, "vae": {"z_dim": 16}}


@pytest.mark.parametrize(
    ("transformer", "name"),
    [
        ({"num_layers": 30, "ffn_dim": 8960, "num_attention_heads": 12}, "wan2.1-t2v-1.3b"),
        ({"num_layers": 30, "ffn_dim": 8960, "num_heads": 12, "dim": 1536}, "wan2.1-t2v-1.3b"),
        ({"num_layers": 40, "ffn_dim": 13824}, "wan2.1-t2v-14b"),
        ({"num_layers": 40, "ffn_dim": 8960}, "wan2.1-t2v"),
        ({}, "wan2.1-t2v"),
    ],
)
def test_a_class_that_several_have_is_told_apart_by_sizes(transformer: dict[str, Any], name: str) -> None:
    assert find_entry({"_class_name": "WanPipeline"}, configs(**transformer)).name == name


@pytest.mark.parametrize(
    ("class_name", "layers", "parts", "options", "name"),
    [
        ("WanPipeline", 40, ("transformer_2",), {"boundary_ratio": 0.875}, "wan2.2-t2v-a14b"),
        ("WanPipeline", 40, ("transformer_2",), {"boundary_ratio": 0.5}, "wan2.2-t2v"),
        ("WanPipeline", 30, (), {"expand_timesteps": True}, "wan2.2-ti2v"),
        ("WanImageToVideoPipeline", 40, ("transformer_2",), {"boundary_ratio": 0.9}, "wan2.2-i2v-a14b"),
        ("WanImageToVideoPipeline", 4, ("transformer_2",), {"boundary_ratio": 0.9}, "wan2.2-i2v"),
        ("WanImageToVideoPipeline", 4, (), {}, "wan2.1-i2v"),
    ],
)
def test_models_of_one_class_are_told_apart_by_components_and_options(
    class_name: str, layers: int, parts: tuple[str, ...], options: dict[str, Any], name: str
) -> None:
    found = {"model_index": options, **configs(num_layers=layers, ffn_dim=13824), **{part: {} for part in parts}}
    assert find_entry({"_class_name": class_name}, found).name == name


@pytest.mark.parametrize(
    ("model_id", "message"),
    [
        ("Wan-AI/Wan2.1-T2V-1.3B-Diffuser", r"did you mean 'Wan-AI/Wan2.1-T2V-1.3B-Diffusers'\?"),
        ("wan-ai/wan2.1-t2v-14b", r"did you mean 'Wan-AI/Wan2.1-T2V-14B'\?"),
        ("somebody/else", "registered are shapes-t2v, Wan-AI/Wan2.1-T2V-1.3B-Diffusers"),
        ("/nowhere/Wan2.1-T2V-1.3B", "no local folder and no registered model"),
        ("wan2.1-t2v", "no local folder and no registered model"),
    ],
)
def test_an_unknown_id_lists_the_choices(model_id: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        find_entry(model_id=model_id)


def test_an_unknown_pipeline_class_lists_the_choices() -> None:
    with pytest.raises(ValueError, match=r"_class_name='WanPipelin': no such pipeline; did you mean 'WanPipeline'\?"):
        find_entry({"_class_name": "WanPipelin"}, {})
    with pytest.raises(ValueError, match=r"known are .*WanPipeline"):
        find_entry({"_class_name": "StableDiffusionPipeline"}, {})


def test_an_unknown_component_class_lists_the_choices() -> None:
    assert find_component("AutoencoderKLWan").arch.endswith("WanVAEArchConfig")
    with pytest.raises(ValueError, match=r"'AutoencoderKLWann': not known; did you mean 'AutoencoderKLWan'\?"):
        find_component("AutoencoderKLWann")


def test_a_path_decides_nothing(wan_repo: Path, tmp_path: Path) -> None:
    # the name of another model in the path, the contents of this one
    link = tmp_path / "Wan2.1-T2V-14B-Diffusers"
    link.symlink_to(wan_repo)
    assert entry_for(link).name == "wan2.1-t2v"


def test_a_local_folder_with_the_sizes_of_a_registered_model(wan_repo: Path, tmp_path: Path) -> None:
    for path in wan_repo.rglob("*.json"):
        copy = tmp_path / path.relative_to(wan_repo)
        copy.parent.mkdir(exist_ok=True)
        raw = json.loads(path.read_text())
        if path.parent.name == "transformer":
            raw |= {"num_layers": 30, "ffn_dim": 8960}
        copy.write_text(json.dumps(raw))
    assert entry_for(tmp_path).name == "wan2.1-t2v-1.3b"


def test_a_folder_wins_over_a_registered_name(wan_repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "Wan-AI").mkdir()
    (tmp_path / "Wan-AI" / "Wan2.1-T2V-14B-Diffusers").symlink_to(wan_repo)
    monkeypatch.chdir(tmp_path)
    assert entry_for("Wan-AI/Wan2.1-T2V-14B-Diffusers").name == "wan2.1-t2v"


def test_configs_registry_and_args_do_without_torch() -> None:
    code = (
        "import sys, fastvideo, fastvideo.fastvideo_args, fastvideo.configs.registry\n"
        "from fastvideo.configs.sample import SamplingParam\n"
        "fastvideo.fastvideo_args.FastVideoArgs.from_kwargs('shapes-t2v').resolved_pipeline_config()\n"
        "SamplingParam.from_pretrained('Wan-AI/Wan2.1-T2V-1.3B')\n"
        "print([m for m in ('torch', 'transformers', 'diffusers', 'numpy', 'huggingface_hub') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
