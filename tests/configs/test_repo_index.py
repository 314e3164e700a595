"""The JSON of a repo: what is missing or broken is an error that names the file."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fastvideo.configs.registry import entry_for, official_layouts
from fastvideo.configs.repo_index import list_folder, read_folder_index


@pytest.fixture
def repo(wan_repo: Path, tmp_path: Path) -> Path:
    """A copy of the JSON files of the tiny repo, to break."""
    target = tmp_path / "repo"
    shutil.copytree(wan_repo, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


def test_a_diffusers_repo(wan_repo: Path) -> None:
    index = read_folder_index(wan_repo, ())
    assert index.class_name == "WanPipeline"
    assert set(index.components) == {"scheduler", "text_encoder", "tokenizer", "transformer", "vae"}
    assert index.options == {}
    assert index.configs["transformer"]["num_layers"] == 3
    assert index.components["scheduler"].config_file == "scheduler/scheduler_config.json"
    assert index.components["tokenizer"].config_file is None


def test_an_official_folder_reads_like_a_diffusers_repo(official_repo: Path, wan_repo: Path) -> None:
    index = read_folder_index(official_repo, official_layouts())
    reference = read_folder_index(wan_repo, ())
    assert index.class_name == reference.class_name
    assert set(index.components) == set(reference.components)
    for name, component in index.components.items():
        assert component.library == reference.components[name].library
        if name != "tokenizer":
            assert component.class_name == reference.components[name].class_name
    assert index.configs["transformer"]["dim"] == 60


def write_index(repo: Path, **changes: Any) -> None:
    path = repo / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_options_that_are_null_or_false_are_none(repo: Path) -> None:
    write_index(repo, boundary_ratio=0.875, expand_timesteps=False, transformer_2=[None, None])
    index = read_folder_index(repo, ())
    assert index.options == {"boundary_ratio": 0.875}
    assert "transformer_2" not in index.components


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "model_index.json: not valid JSON"),
        ("", "model_index.json: not valid JSON"),
        ("[]", "must be a JSON object"),
        ("{}", "_class_name=None: must name the pipeline"),
        ('{"_class_name": 3}', "_class_name=3: must name the pipeline"),
        ('{"_class_name": "WanPipeline", "vae": ["diffusers"]}', "vae=.* must be \\[library, class\\]"),
        ('{"_class_name": "WanPipeline", "vae": ["diffusers", null]}', "vae=.* must be \\[library, class\\]"),
        ('{"_class_name": "FluxPipeline"}', "_class_name='FluxPipeline': no such pipeline; .*known are .*WanPipeline"),
    ],
)
def test_a_broken_model_index(repo: Path, text: str, message: str) -> None:
    (repo / "model_index.json").write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        entry_for(repo)
    assert "\n" not in str(error.value)


def test_a_broken_component_config(repo: Path) -> None:
    (repo / "vae" / "config.json").write_text('{"z_dim": ')
    with pytest.raises(ValueError, match=r"vae/config.json: not valid JSON"):
        entry_for(repo)


def test_a_folder_without_an_index(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no model_index\.json, so it is no Diffusers-style repo"):
        entry_for(tmp_path)


def test_a_folder_of_another_official_class(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "HunyuanModel"}')
    with pytest.raises(ValueError, match="_class_name='HunyuanModel'; official layouts are known for VaceWan"):
        entry_for(tmp_path)


def test_listing_stays_near_the_top(tmp_path: Path) -> None:
    for name in ("a.json", "b/a.json", "b/c/a.json", "b/c/d/a.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("{}")
    assert list_folder(tmp_path) == {"a.json", "b/a.json", "b/c/a.json"}
