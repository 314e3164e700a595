"""Small folders of Wan models that were distilled to few steps, as their authors' files would make them."""

import json
import shutil
from pathlib import Path

import torch

from tests.official_repos import make_official_22_repo, make_official_repo
from tests.tiny_repos import make_wan22_repo


def source_of(path: Path) -> Path:
    """The Diffusers repo with the weights of the folder `path`."""
    return path.with_name(f"{path.name}-diffusers")


def rename(folder: Path, file: Path) -> None:
    """The transformer of an official `folder` as rCM's trainer saves it: names behind `net.`, patches flat."""
    from safetensors.torch import load_file

    old = folder / "diffusion_pytorch_model.safetensors"
    state = {f"net.{name}": tensor for name, tensor in load_file(old).items()}
    state["net.patch_embedding.weight"] = state["net.patch_embedding.weight"].flatten(1)
    torch.save(state, file)
    old.unlink()


def name_pipeline(path: Path, pipeline_class: str) -> Path:
    """The folder `path` with a `model_index.json` that says no more than `pipeline_class`."""
    (path / "model_index.json").write_text(json.dumps({"_class_name": pipeline_class}))
    return path


def make_rcm_repo(path: Path) -> Path:
    """A folder of Wan 2.1 text-to-video with a file of rCM in folder `path`."""
    make_official_repo(path)
    rename(path, path / "rCM_Wan2.1_T2V_1.3B_480p.pt")
    return name_pipeline(path, "WanRCMPipeline")


def make_rcm_i2v_repo(path: Path) -> Path:
    """A folder of Wan 2.2 image-to-video with two files of rCM in folder `path`."""
    make_official_22_repo(path, make_wan22_repo(source_of(path), images=True), "i2v")
    for kind in ("high", "low"):
        rename(path / f"{kind}_noise_model", path / f"Wan2.2-I2V-A14B-{kind}-rCM-merged.pt")
    return name_pipeline(path, "WanRCMImageToVideoPipeline")


def make_self_forcing_repo(path: Path, official: Path) -> Path:
    """In `path` the folder `official`, with its transformer as Self-Forcing's trainer saves it beside other weights."""
    from safetensors.torch import load_file

    shutil.copytree(official, path)
    old = path / "diffusion_pytorch_model.safetensors"
    averaged = {f"model.{name}": tensor for name, tensor in load_file(old).items()}
    last = {name: tensor + 1 for name, tensor in averaged.items()}
    critic = {name: tensor - 1 for name, tensor in averaged.items()}
    torch.save({"generator": last, "critic": critic, "generator_ema": averaged}, path / "self_forcing_dmd.pt")
    old.unlink()
    return name_pipeline(path, "WanCausalDMDPipeline")
