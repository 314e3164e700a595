"""Placing weights: every key accounted for, stacked, cast, and with little memory beside the model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fastvideo.configs.models.base import ParamNamesMapping, Rename, stacked
from fastvideo.models.loader.checkpoint import read_header
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.models.loader.weights import checkpoint_state, load_into, module_state, plan_loading, weight_hashes
from fastvideo.utils import sha256_file

MAPPING = ParamNamesMapping(
    rules=(
        *stacked(("q.*", "k.*", "v.*"), "qkv.*"),
        Rename("embed", "embedding.weight"),
        Rename("embed_again", "embedding.weight"),
        Rename("norm.scale", "norm.weight"),
    ),
    drop=("rope.*",),
    tied=(("embed", "embed_again"),),
)


class Model(nn.Module):
    """One of each: a stacked matrix, an embedding, a norm and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 6)
        self.embedding = nn.Embedding(5, 4)
        self.norm = nn.RMSNorm(4)
        self.count: torch.Tensor
        self.register_buffer("count", torch.zeros(2, dtype=torch.int64))
        self.register_buffer("table", torch.ones(3), persistent=False)


def checkpoint() -> dict[str, torch.Tensor]:
    """A checkpoint that fits `Model`."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: (2, 4) if name.endswith("weight") else (2,) for name in MAPPING.sources("qkv.weight")}
    shapes |= dict.fromkeys(MAPPING.sources("qkv.bias"), (2,)) | {"embed": (5, 4), "norm.scale": (4,)}
    state = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    return {**state, "count": torch.tensor([3, 4]), "rope.freqs": torch.ones(9)}


def meta_model() -> Model:
    with torch.device("meta"):
        return Model()


def load(tmp_path: Path, *states: dict[str, torch.Tensor], **options: object) -> Model:
    """`Model` with the weights of `states`, a file each."""
    files = []
    for number, state in enumerate(states):
        files.append(tmp_path / f"{number}.safetensors")
        save_file(state, files[-1])
    model = meta_model()
    model.table = torch.ones(3)
    load_into(model, files, MAPPING, **options)  # type: ignore[arg-type]
    return model


@pytest.mark.parametrize("shape", [(3,), (1, 3), (3, 1, 1), (1, 3, 1, 1)])
@pytest.mark.parametrize("ours", [(3,), (3, 1, 1), (1, 3, 1)])
def test_ones_around_what_a_weight_holds_do_not_matter(
    tmp_path: Path, shape: tuple[int, ...], ours: tuple[int, ...]
) -> None:
    model = nn.ParameterDict({"bias": torch.empty(ours, device="meta")})
    save_file({"bias": torch.arange(3.0).view(shape)}, tmp_path / "0.safetensors")
    load_into(model, [tmp_path / "0.safetensors"], ParamNamesMapping())
    assert torch.equal(model["bias"], torch.arange(3.0).view(ours))


def test_names_are_translated_and_pieces_stacked(tmp_path: Path) -> None:
    state = checkpoint()
    model = load(tmp_path, state)
    assert torch.equal(model.qkv.weight, torch.cat([state["q.weight"], state["k.weight"], state["v.weight"]]))
    assert torch.equal(model.qkv.bias, torch.cat([state["q.bias"], state["k.bias"], state["v.bias"]]))
    assert torch.equal(model.embedding.weight, state["embed"])
    assert torch.equal(model.norm.weight, state["norm.scale"])
    assert model.count.tolist() == [3, 4]
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def test_pieces_may_lie_in_different_files(tmp_path: Path) -> None:
    state = checkpoint()
    names = sorted(state)
    model = load(tmp_path, {name: state[name] for name in names[::2]}, {name: state[name] for name in names[1::2]})
    assert torch.equal(model.qkv.weight[4:], state["v.weight"])


def test_weights_are_cast_apart_from_those_kept_in_fp32(tmp_path: Path) -> None:
    state = checkpoint()
    model = load(tmp_path, state, dtype=torch.bfloat16, keep_fp32=("norm",))
    assert model.qkv.weight.dtype is model.embedding.weight.dtype is torch.bfloat16
    assert model.norm.weight.dtype is torch.float32
    assert model.count.dtype is torch.int64
    assert torch.equal(model.embedding.weight, state["embed"].bfloat16())


def test_parameters_that_have_memory_keep_it(tmp_path: Path) -> None:
    save_file(checkpoint(), tmp_path / "w.safetensors")
    model = Model().double()
    weight = model.qkv.weight
    load_into(model, [tmp_path / "w.safetensors"], MAPPING)
    assert model.qkv.weight is weight
    assert weight.dtype is torch.float64
    assert weight.requires_grad


def test_the_bytes_read_are_reported(tmp_path: Path) -> None:
    seen: list[int] = []
    load(tmp_path, checkpoint(), report=seen.append)
    assert sum(seen) == sum(tensor.nbytes for name, tensor in checkpoint().items() if name != "rope.freqs")


@pytest.mark.parametrize("names", [("embed",), ("embed_again",), ("embed", "embed_again")])
def test_a_tied_tensor_may_have_either_name_or_both(tmp_path: Path, names: tuple[str, ...]) -> None:
    state = checkpoint()
    embedding = state.pop("embed")
    model = load(tmp_path, {**state, **{name: embedding.clone() for name in names}})
    assert torch.equal(model.embedding.weight, embedding)


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in checkpoint().items() if key != name}


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (without("norm.scale"), "weight 'norm.scale' is missing; download the weights again"),
        (without("k.weight"), "weight 'k.weight' is missing"),
        (without("embed"), "weight 'embed' is missing"),
        ({"rope.freqs": torch.ones(9)}, r"weight 'count' \(and 8 more\) is missing"),
        (
            {**without("k.bias"), "key.bias": torch.ones(2)},
            "'k.bias' is missing .and there is 'key.bias' in 0.safetens",
        ),
        ({**checkpoint(), "lora": torch.ones(1)}, "weight 'lora' in 0.safetensors is unexpected"),
        (
            {**checkpoint(), "a": torch.ones(1), "b": torch.ones(1)},
            r"'a' in 0.safetensors \(and 1 more\) is unexpected",
        ),
        ({**checkpoint(), "embed": torch.ones(5, 3)}, r"'embed' in 0.safetensors has shape \[5, 3\], must be \[5, 4\]"),
        ({**checkpoint(), "k.weight": torch.ones(6, 4)}, r"'k.weight' .* shape \[6, 4\], must be \[2, 4\]"),
        ({**checkpoint(), "k.weight": torch.ones(8)}, r"'k.weight' .* shape \[8\], must be \[2, 4\]"),
        ({**checkpoint(), "norm.weight": torch.ones(4)}, "weights 'norm.*' and 'norm.*' are both 'norm.weight'"),
        ({**checkpoint(), "qkv.bias": torch.ones(6)}, "are both 'qkv.bias'"),
        ({**checkpoint(), "embed": torch.ones(5, 4, dtype=torch.int8)}, "must be a floating-point type"),
    ],
)
def test_every_key_is_accounted_for(tmp_path: Path, state: dict[str, torch.Tensor], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load(tmp_path, state)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith("Model: ")


def test_nothing_is_read_when_a_key_is_wrong(tmp_path: Path) -> None:
    save_file(without("norm.scale"), tmp_path / "w.safetensors")
    model = meta_model()
    with pytest.raises(ValueError, match="missing"):
        load_into(model, [tmp_path / "w.safetensors"], MAPPING)
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_the_plan_says_where_each_goes(tmp_path: Path) -> None:
    save_file({**checkpoint(), "embed_again": torch.ones(5, 4)}, tmp_path / "w.safetensors")
    plan = plan_loading(meta_model(), read_header(tmp_path / "w.safetensors"), MAPPING)
    assert (plan["v.bias"].name, plan["v.bias"].part, plan["v.bias"].parts) == ("qkv.bias", 2, 3)
    assert "rope.freqs" not in plan
    assert "embed_again" not in plan


def test_states_convert_both_ways() -> None:
    state = {name: tensor for name, tensor in checkpoint().items() if name != "rope.freqs"}
    ours = module_state(state, MAPPING)
    assert set(ours) == set(Model().state_dict())
    back = checkpoint_state(ours, MAPPING)
    assert set(back) == set(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_hashes_are_those_of_the_files_and_are_kept(wan_repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = resolve_repo(wan_repo)
    hashes = weight_hashes(repo)
    files = {path.relative_to(wan_repo).as_posix(): path for path in wan_repo.rglob("*.safetensors")}
    assert hashes == {name: sha256_file(path) for name, path in files.items()}

    def fail(path: Path) -> str:
        raise AssertionError(f"{path} was hashed again")

    monkeypatch.setattr("fastvideo.models.loader.weights.sha256_file", fail)
    assert weight_hashes(repo) == hashes
    os.utime(next(iter(files.values())), ns=(1, 1))
    with pytest.raises(AssertionError, match="hashed again"):
        weight_hashes(repo)


def test_hashes_do_without_a_cache_folder(wan_repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FASTVIDEO_CACHE_ROOT", str(tmp_path / "file"))
    assert len(weight_hashes(resolve_repo(wan_repo))) == 3


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measured through /proc, which only Linux has")
def test_peak_memory_is_the_weights_and_little_more(tmp_path: Path) -> None:
    # 105 MB of fp32 become 52 MB of bf16: holding the file beside the model would take 157
    state = {f"{index}.weight": torch.ones(1024, 2560) for index in range(10)}
    save_file(state, tmp_path / "weights.safetensors")
    torch.save(state, tmp_path / "weights.pth")
    code = """
import sys, torch
from pathlib import Path
from fastvideo.configs.models.base import ParamNamesMapping
from fastvideo.models.loader import checkpoint
from fastvideo.models.loader.weights import load_into
from fastvideo.platforms import current_platform
checkpoint.REMAP_BYTES = 16 << 20
cpu = current_platform("cpu")
for path in sys.argv[1:]:
    with torch.device("meta"):
        model = torch.nn.Sequential(*(torch.nn.Linear(2560, 1024, bias=False) for _ in range(10)))
    cpu.reset_peak_memory()
    before = cpu.peak_memory()
    load_into(model, [Path(path)], ParamNamesMapping(), dtype=torch.bfloat16)
    weights = sum(parameter.nbytes for parameter in model.parameters())
    print(weights, cpu.peak_memory() - before)
    del model
"""
    files = [str(tmp_path / "weights.safetensors"), str(tmp_path / "weights.pth")]
    done = subprocess.run([sys.executable, "-c", code, *files], capture_output=True, text=True, check=True)
    for line in done.stdout.splitlines():
        weights, peak = map(int, line.split())
        assert weights == 10 * 1024 * 2560 * 2
        assert peak < weights + 40e6
    assert len(done.stdout.splitlines()) == 2
