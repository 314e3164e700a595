"""Folders in their authors' layout: which layout is meant, which file holds the weights, and under which names."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fastvideo.configs.models.base import ParamNamesMapping, Rename, stacked
from fastvideo.configs.official import OfficialComponent, OfficialLayout
from fastvideo.configs.repo_index import read_folder_index
from fastvideo.models.loader.checkpoint import read_header
from fastvideo.models.loader.component_loader import load_component
from fastvideo.models.loader.files import LocalFiles
from fastvideo.models.loader.repo import ComponentSource, resolve_repo


def layout(pipeline_class: str, named: bool = False) -> OfficialLayout:
    part = OfficialComponent(name="transformer", library="diffusers", class_name="WanTransformer3DModel",
                             config="config.json")  # fmt: skip
    return OfficialLayout(
        config_classes=("WanModel",), pipeline_class=pipeline_class, components=(part,), named=named,
        options=(("boundary_ratio", 0.5),),
    )  # fmt: skip


def test_two_layouts_that_say_the_same_are_told_apart_by_the_name_of_the_pipeline(tmp_path: Path) -> None:
    layouts = [layout("Usual"), layout("Other", named=True)]
    (tmp_path / "config.json").write_text('{"_class_name": "WanModel"}')
    assert read_folder_index(tmp_path, layouts).class_name == "Usual"
    (tmp_path / "model_index.json").write_text('{"_class_name": "Other", "boundary_ratio": 0.25}')
    index = read_folder_index(tmp_path, layouts)
    assert index.class_name == "Other"
    assert set(index.components) == {"transformer"}
    assert index.options == {"boundary_ratio": 0.25}
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match=r"no config.json of a known official layout"):
        read_folder_index(tmp_path, layouts)


def source_of(folder: Path, weights: str, prefixes: tuple[str, ...] = ()) -> ComponentSource:
    return ComponentSource(
        name="transformer", library="diffusers", class_name="WanTransformer3DModel",
        config=json.loads((folder / "config.json").read_text()), config_name="config.json", folder="", official=True,
        weights=weights, prefixes=prefixes, files=LocalFiles.of(folder),
    )  # fmt: skip


def test_a_weight_file_by_a_part_of_its_name(official_repo: Path, tmp_path: Path) -> None:
    shutil.copy(official_repo / "config.json", tmp_path)
    weights = load_file(official_repo / "diffusion_pytorch_model.safetensors")
    (tmp_path / "few_steps.yaml").write_text("")
    source = source_of(tmp_path, "*few_steps*")
    with pytest.raises(ValueError, match=r"no weights; expected \*few_steps\*"):
        source.weight_names()
    torch.save(weights, tmp_path / "wan_few_steps_480p.pt")
    source = source_of(tmp_path, "*few_steps*")
    assert source.weight_names() == ("wan_few_steps_480p.pt",)
    shutil.copy(tmp_path / "wan_few_steps_480p.pt", tmp_path / "few_steps.pth")
    message = r"few_steps.pth and wan_few_steps_480p.pt may be its weights \(\*few_steps\*\); keep one of them there"
    with pytest.raises(ValueError, match=message):
        source_of(tmp_path, "*few_steps*").weight_names()


def test_state_dicts_of_a_trainer_and_a_flat_patch_embedding(official_repo: Path, tmp_path: Path) -> None:
    shutil.copy(official_repo / "config.json", tmp_path)
    weights = load_file(official_repo / "diffusion_pytorch_model.safetensors")
    flat = weights | {"patch_embedding.weight": weights["patch_embedding.weight"].flatten(1)}
    doubled = {f"model.{name}": 2 * tensor for name, tensor in flat.items()}
    named = {f"model.{name}": tensor for name, tensor in flat.items()}
    torch.save({"generator": doubled, "generator_ema": named, "critic": {"x": torch.ones(2)}}, tmp_path / "model.pt")
    assert {name.split(".")[0] for name in read_header(tmp_path / "model.pt")} == {
        "generator",
        "generator_ema",
        "critic",
    }
    prefixes = ("generator_ema.model.", "generator.model.")
    found = load_component(source_of(tmp_path, "model.pt", prefixes)).state_dict()
    expected = load_component(resolve_repo(official_repo).components["transformer"]).state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    torch.save({"generator": doubled}, tmp_path / "model.pt")
    found = load_component(source_of(tmp_path, "model.pt", prefixes)).state_dict()
    assert torch.equal(found["patch_embedding.weight"], 2 * expected["patch_embedding.weight"])


def test_a_map_behind_a_prefix() -> None:
    names = ParamNamesMapping(rules=(*stacked(("q.*", "k.*"), "qk.*"), Rename("norm.*", "n.*")), drop=("freqs",))
    behind = names.behind("net.")
    assert [target.name for name in ("net.q.bias", "net.norm.w", "net.a.b") if (target := behind(name))] == [
        "qk.bias", "n.w", "a.b",
    ]  # fmt: skip
    assert behind("net.freqs") is None
    assert behind("a.b") is None
    assert behind.sources("qk.bias") == ("net.q.bias", "net.k.bias")
    assert behind.sources("a.b") == ("net.a.b",)
