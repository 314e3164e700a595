"""GGUF files in place of a repo's weights: equal to the reference with the same numbers, and held in their blocks."""

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.layers.packed import PACKED, PackedEmbedding, PackedLinear
from fastvideo.models.loader.checkpoint import read_header, stream_tensors
from fastvideo.models.loader.component_loader import blueprint, load_component, load_components
from fastvideo.models.loader.gguf_file import read_gguf
from fastvideo.models.loader.gguf_source import with_weights
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.models.loader.weights import checkpoint_state, module_state
from tests import tiny_gguf
from tests.models.reference import BOUND, error, theirs
from tests.tiny_gguf import mixed, state_of, write_gguf

gguf: Any = pytest.importorskip("gguf")

MIXES = {
    "legacy": ("Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"),
    "k": ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "F16", "BF16"),
}


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny repo whose matrices are whole blocks."""
    return tiny_gguf.make_repo(tmp_path_factory.mktemp("gguf") / "repo")


def load(repo: Path, component: str, path: Path, dtype: torch.dtype = torch.float32) -> Any:
    """`component` of `repo` with the weights of GGUF file `path`."""
    return load_component(with_weights(resolve_repo(repo), {component: str(path)}).components[component], dtype=dtype)


def transformer_inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, timesteps and text."""
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(2, 16, 3, 6, 8, generator=generator), torch.randn(2, 12, 256, generator=generator)
    return latents, torch.tensor([700.0, 30.0]), text


@pytest.mark.parametrize("mix", MIXES)
def test_the_transformer_is_that_of_diffusers(
    repo: Path, tmp_path: Path, mix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import GGUFQuantizationConfig, WanTransformer3DModel
    from diffusers.quantizers.gguf import utils

    # it dequantizes in fp16 whatever the precision, which is 8e-5 off; here in fp32
    functions = {kind: partial(function, dtype=torch.float32) for kind, function in utils.dequantize_functions.items()}
    monkeypatch.setattr(utils, "dequantize_functions", functions)
    state, _ = state_of(repo, "transformer")
    path = tmp_path / "wan.gguf"
    write_gguf(path, state, mixed(*MIXES[mix]))
    reference = WanTransformer3DModel.from_single_file(
        str(path), config=str(repo / "transformer"), torch_dtype=torch.float32,
        quantization_config=GGUFQuantizationConfig(compute_dtype=torch.float32),
    )  # fmt: skip
    latents, timestep, text = transformer_inputs()
    expected = reference(latents, timestep, text, return_dict=False)[0]
    assert error(load(repo, "transformer", path)(latents, timestep, text=text), expected) < BOUND


@pytest.mark.parametrize("mix", MIXES)
def test_the_transformer_is_that_of_the_dequantized_weights(repo: Path, tmp_path: Path, mix: str) -> None:
    state, arch = state_of(repo, "transformer")
    numbers = write_gguf(tmp_path / "wan.gguf", state, mixed(*MIXES[mix]))
    names = arch.gguf_param_names_mapping
    assert names is not None
    reference = theirs(repo, "transformer")
    reference.load_state_dict(checkpoint_state(module_state(numbers, names), arch.param_names_mapping))
    latents, timestep, text = transformer_inputs()
    expected = reference(latents, timestep, text, return_dict=False)[0]
    assert error(load(repo, "transformer", tmp_path / "wan.gguf")(latents, timestep, text=text), expected) < BOUND


@pytest.mark.parametrize("mix", MIXES)
def test_the_text_encoder_is_that_of_the_dequantized_weights(repo: Path, tmp_path: Path, mix: str) -> None:
    state, arch = state_of(repo, "text_encoder")
    numbers = write_gguf(tmp_path / "umt5.gguf", state, mixed(*MIXES[mix]), "t5encoder")
    names = arch.gguf_param_names_mapping
    assert names is not None
    reference = theirs(repo, "text_encoder")
    renamed = checkpoint_state(module_state(numbers, names), arch.param_names_mapping)
    reference.load_state_dict({**renamed, "encoder.embed_tokens.weight": renamed["shared.weight"]}, strict=True)
    ids = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(2, 9, dtype=torch.bool)
    encoder = load(repo, "text_encoder", tmp_path / "umt5.gguf")
    expected = reference(ids, mask.long()).last_hidden_state
    assert error(encoder.hidden_states(ids, mask), expected) < BOUND
    assert isinstance(encoder.embedding, PackedEmbedding)


def test_names_of_llama_cpp(repo: Path) -> None:
    state, _ = state_of(repo, "text_encoder")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 2)
    known = {f"{name}.weight" for _, name in names.mapping.values()}
    assert set(state) <= known


def test_weights_stay_in_their_blocks(repo: Path, tmp_path: Path) -> None:
    state, _ = state_of(repo, "transformer")
    path = tmp_path / "wan.gguf"
    write_gguf(path, state, mixed("Q4_K", "Q6_K"))
    source = with_weights(resolve_repo(repo), {"transformer": str(path)}).components["transformer"]
    plan = blueprint(source)
    model = load_component(plan, dtype=torch.bfloat16)
    qkv = model.get_submodule("blocks.0.self_attn.qkv")
    assert isinstance(qkv, PackedLinear)
    assert qkv.weight.kinds == ["Q4_K", "Q6_K", "Q4_K"] or len(set(qkv.weight.kinds)) == 2
    held = sum(x.nbytes for x in (*model.parameters(), *model.buffers()))
    # what is small stays in fp32, whatever is foretold
    assert held == pytest.approx(plan.nbytes_in(torch.bfloat16, FastVideoArgs(model="m")), rel=0.1)
    assert held < 0.25 * sum(4 * x.numel() for x in state.values())
    assert model.get_submodule("time_embedder.fc_in").weight.dtype == torch.float32  # type: ignore[union-attr]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_other_precisions(repo: Path, tmp_path: Path, dtype: torch.dtype) -> None:
    state, _ = state_of(repo, "transformer")
    write_gguf(tmp_path / "wan.gguf", state, mixed("Q8_0"))
    latents, timestep, text = transformer_inputs()
    exact = load(repo, "transformer", tmp_path / "wan.gguf")(latents, timestep, text=text)
    found = load(repo, "transformer", tmp_path / "wan.gguf", dtype)(latents, timestep, text=text)
    assert (found.float() - exact).norm() / exact.norm() < 0.02


def test_what_converters_add(repo: Path, tmp_path: Path) -> None:
    state, _ = state_of(repo, "transformer")
    plain, other = tmp_path / "plain.gguf", tmp_path / "other.gguf"
    write_gguf(plain, state, mixed("Q8_0"))
    # another order of dimensions, leading ones left out, a prefix, no architecture, a long vocabulary
    flat = {name: x.flatten(1) if x.ndim == 5 else x for name, x in state.items()}
    flat = {name: x[0] if name.endswith("modulation") else x for name, x in flat.items()}
    patch = list(state["patch_embedding.weight"].shape)

    def metadata(writer: Any) -> None:
        writer.add_array("comfy.gguf.orig_shape.model.diffusion_model.patch_embedding.weight", patch)
        writer.add_token_list([f"word{n}" for n in range(1000)])
        writer.add_array("some.nested", [[1, 2], [3]])
        writer.add_float32("a.number", 1.5)
        writer.add_bool("a.truth", True)

    write_gguf(other, flat, mixed("Q8_0"), None, "model.diffusion_model.", metadata)
    latents, timestep, text = transformer_inputs()
    expected = load(repo, "transformer", plain)(latents, timestep, text=text)
    assert torch.equal(load(repo, "transformer", other)(latents, timestep, text=text), expected)
    assert read_gguf(other).architecture is None


def test_headers_are_those_of_the_gguf_package(repo: Path, tmp_path: Path) -> None:
    state, _ = state_of(repo, "text_encoder")
    path = tmp_path / "umt5.gguf"
    write_gguf(path, state, mixed("Q4_0", "F16"), "t5encoder")
    reader = gguf.GGUFReader(path)
    found = read_gguf(path)
    assert found.architecture == "t5encoder"
    assert list(found.tensors) == [tensor.name for tensor in reader.tensors]
    got = dict(stream_tensors([path], read_header(path)))
    for tensor in reader.tensors:
        ours = found.tensors[tensor.name]
        assert ours.shape == tuple(int(extent) for extent in tensor.shape[::-1])
        assert (ours.start, ours.nbytes) == (tensor.data_offset, tensor.n_bytes)
        assert got[tensor.name].contiguous().view(torch.uint8).numpy().tobytes() == tensor.data.tobytes()


def test_an_official_folder_without_its_own_weights(repo: Path, tmp_path: Path) -> None:
    official = tiny_gguf.make_official_repo(tmp_path / "official")
    paths = {}
    for component, architecture in (("transformer", "wan"), ("text_encoder", "t5encoder")):
        state, _ = state_of(repo, component)
        paths[component] = str(tmp_path / f"{component}.gguf")
        write_gguf(Path(paths[component]), state, mixed("Q8_0"), architecture)
    (official / "models_t5_umt5-xxl-enc-bf16.pth").unlink()
    (official / "diffusion_pytorch_model.safetensors").unlink()
    for component in paths:
        found = load_component(with_weights(resolve_repo(official), paths).components[component])
        expected = load(repo, component, Path(paths[component]))
        for (name, one), (_, other) in zip(found.state_dict().items(), expected.state_dict().items(), strict=True):
            assert torch.equal(one, other), name


# ---- What is refused ----


def refuse(repo: Path, message: str, path: Path, component: str = "transformer") -> None:
    """Check that the file is refused in one line."""
    with pytest.raises(ValueError) as raised:
        load(repo, component, path)
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_of_other_models(repo: Path, wan_repo: Path, tmp_path: Path) -> None:
    state, _ = state_of(repo, "transformer")
    path = tmp_path / "wan.gguf"
    write_gguf(path, state, mixed("Q8_0"))
    refuse(repo, "general.architecture is 'wan', must be 't5encoder' or 't5' for component 'text_encoder'", path,
           "text_encoder")  # fmt: skip
    refuse(wan_repo, "weight 'blocks.0.self_attn.norm_k.weight' in wan.gguf has shape [256], must be [60]", path)
    less = {name: x for name, x in state.items() if name != "blocks.1.ffn.0.weight"}
    write_gguf(path, less, mixed("Q8_0"))
    refuse(repo, "weight 'blocks.1.ffn.0.weight' is missing", path)
    write_gguf(path, {**state, "img_emb.proj.0.weight": torch.ones(32)}, mixed("Q8_0"))
    refuse(repo, "weight 'img_emb.proj.0.weight' in wan.gguf is unexpected", path)
    write_gguf(path, state, mixed("Q8_0"), "flux")
    refuse(repo, "general.architecture is 'flux', must be 'wan'", path)


def test_there_are_none_of_a_vae(repo: Path, tmp_path: Path) -> None:
    write_gguf(tmp_path / "vae.gguf", {"a": torch.ones(32)}, mixed("F32"))
    refuse(repo, "no GGUF files of a AutoencoderKLWan are known", tmp_path / "vae.gguf", "vae")


def test_broken_files(repo: Path, tmp_path: Path) -> None:
    state, _ = state_of(repo, "transformer")
    path, broken = tmp_path / "wan.gguf", tmp_path / "broken.gguf"
    write_gguf(path, state, mixed("Q8_0"))
    whole = path.read_bytes()
    header = read_gguf(path)
    start = min(tensor.start for tensor in header.tensors.values())
    for length in (5, 12, 30, 200, start - 40, start - 1, len(whole) // 2, len(whole) - 64):
        broken.write_bytes(whole[:length])
        refuse(repo, "broken.gguf: GGUF file is truncated", broken)
    broken.write_bytes(b"")
    refuse(repo, "weight file is empty", broken)
    broken.write_bytes(b"PK" + whole[2:])
    refuse(repo, "is no GGUF file", broken)
    broken.write_bytes(whole[:4] + b"\x01\0\0\0" + whole[8:])
    refuse(repo, "GGUF version 1, must be 2 or 3", broken)
    broken.write_bytes(whole[:8] + b"\xff" * 8 + whole[16:])
    refuse(repo, "broken.gguf: GGUF file is truncated or broken", broken)
    for seed in range(40):
        # whatever is overwritten in the header, it is one line or does no harm
        generator = torch.Generator().manual_seed(seed)
        at = int(torch.randint(8, start, (1,), generator=generator))
        noise = bytes(torch.randint(0, 256, (4,), generator=generator, dtype=torch.uint8).tolist())
        broken.write_bytes(whole[:at] + noise + whole[at + 4 :])
        try:
            load(repo, "transformer", broken)
        except ValueError as problem:
            assert "\n" not in str(problem)


def test_formats_that_are_not_known(repo: Path, tmp_path: Path) -> None:
    state, _ = state_of(repo, "transformer")
    name = "blocks.0.ffn.0.weight"
    writer = gguf.GGUFWriter(tmp_path / "wan.gguf", "wan")
    for other, tensor in state.items():
        if other != name:
            writer.add_tensor(other, tensor.contiguous().numpy())
    raw = torch.zeros(512, 136, dtype=torch.uint8).numpy()
    writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType.IQ4_XS)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refuse(repo, f"tensor {name!r} is of ggml type 23, which cannot be loaded; take a file of F32, F16, BF16, Q4_0",
           tmp_path / "wan.gguf")  # fmt: skip


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        ({"transformer_2": "x.gguf"}, "transformer_2_path='x.gguf': the model has no component 'transformer_2'"),
        ({"transformer": "none.gguf"}, "transformer_path='none.gguf': there is no such file"),
    ],
)
def test_paths(repo: Path, paths: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_weights(resolve_repo(repo), paths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"transformer_path": "w.safetensors"}, "transformer_path='w.safetensors': must be the path of a .gguf file"),
        ({"text_encoder_path": 3}, "text_encoder_path=3: must be the path of a .gguf file"),
        ({"transformer_path": "w.gguf", "quantization": "int8"}, "does not go with quantization='int8'"),
        ({"transformer_path": "w.gguf", "num_gpus": 2, "tp_size": 2}, "does not go with tp_size=2"),
        ({"transformer_path": "w.gguf", "num_gpus": 2, "use_fsdp_inference": True}, "does not go with use_fsdp"),
        ({"transformer_path": "w.gguf", "dit_layerwise_offload": True}, "does not go with dit_layerwise_offload"),
        ({"transformer_path": "w.gguf", "lora_path": "a"}, "lora_path='a': does not go with transformer_path"),
        ({"text_encoder_path": "w.gguf", "text_encoder_quantization": "int8"}, "does not go with text_encoder_quant"),
    ],
)
def test_options_that_do_not_combine(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as raised:
        FastVideoArgs.from_kwargs("shapes-t2v", **options)
    assert message in str(raised.value)


def test_weights_that_stay_on_disk_are_refused(repo: Path, tmp_path: Path) -> None:
    state, _ = state_of(repo, "transformer")
    path = str(tmp_path / "wan.gguf")
    write_gguf(Path(path), state, mixed("Q8_0"))
    args = FastVideoArgs.from_kwargs(str(repo), device="cpu", transformer_path=path, disk_offload=True)
    resolved = with_weights(resolve_repo(repo), args.weight_paths)
    with pytest.raises(ValueError, match="component 'transformer' stays on disk"):
        load_components(resolved, tuple(resolved.components), args, args.resolved_pipeline_config(), progress=False)


def test_a_file_is_read_without_the_gguf_package(repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state, _ = state_of(repo, "transformer")
    write_gguf(tmp_path / "wan.gguf", state, mixed("Q4_0"))
    monkeypatch.setitem(sys.modules, "gguf", None)
    load(repo, "transformer", tmp_path / "wan.gguf")
    assert set(PACKED) <= {kind.name for kind in gguf.GGMLQuantizationType}
