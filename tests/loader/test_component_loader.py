"""Loading components: the same weights from every format, and errors before any weight is read."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._inductor.runtime.cache_dir_utils import default_cache_dir

from fastvideo import envs
from fastvideo.attention.layer import DistributedAttention, LocalAttention
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.dits.wanvideo import WanTransformer3DModel
from fastvideo.models.encoders.t5 import T5EncoderModel, UMT5EncoderModel
from fastvideo.models.loader import component_loader
from fastvideo.models.loader.component_loader import (
    blueprint,
    check_components,
    load_component,
    load_components,
    load_tokenizer,
)
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.models.schedulers import Scheduler
from fastvideo.models.vaes.wanvae import AutoencoderKLWan
from tests.official_repos import official_state
from tests.tiny_repos import make_text_encoder, make_wan_repo

REQUIRED = ("tokenizer", "text_encoder", "transformer", "vae", "scheduler")
MODELS = ("text_encoder", "transformer", "vae")


def load(folder: Path, **options: Any) -> dict[str, Any]:
    """All components of the repo in `folder`."""
    args = FastVideoArgs.from_kwargs(folder, device="cpu", **options)
    return load_components(resolve_repo(folder), REQUIRED, args, args.resolved_pipeline_config(), progress=False)


def assert_same(one: nn.Module, two: nn.Module) -> None:
    """Both have the same state, bit for bit."""
    first, second = one.state_dict(), two.state_dict()
    assert set(first) == set(second)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


@pytest.fixture(scope="module")
def loaded(wan_repo: Path) -> dict[str, Any]:
    return load(wan_repo, precision="fp32")


@pytest.fixture
def broken(wan_repo: Path, tmp_path: Path) -> Path:
    """A copy of the tiny repo, to break."""
    shutil.copytree(wan_repo, tmp_path / "repo")
    return tmp_path / "repo"


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_all_components_are_there(loaded: dict[str, Any]) -> None:
    assert set(loaded) == set(REQUIRED)
    classes = {
        "text_encoder": UMT5EncoderModel, "transformer": WanTransformer3DModel, "vae": AutoencoderKLWan,
        "scheduler": Scheduler,
    }  # fmt: skip
    for name, cls in classes.items():
        assert isinstance(loaded[name], cls)
    for name in MODELS:
        assert not loaded[name].training
        for parameter in loaded[name].parameters():
            assert parameter.dtype is torch.float32
            assert not parameter.requires_grad
            assert not parameter.is_meta


def test_no_number_is_changed(loaded: dict[str, Any], wan_repo: Path) -> None:
    state = load_file(wan_repo / "transformer" / "diffusion_pytorch_model.safetensors")
    block = loaded["transformer"].blocks[1]
    parts = [state[f"blocks.1.attn1.to_{x}.weight"] for x in "qkv"]
    assert torch.equal(block.self_attn.qkv.weight, torch.cat(parts))
    assert torch.equal(block.modulation, state["blocks.1.scale_shift_table"])
    total = sum(tensor.numel() for tensor in state.values())
    assert sum(parameter.numel() for parameter in loaded["transformer"].parameters()) == total


def test_the_text_encoder_owns_its_tokenizer(loaded: dict[str, Any]) -> None:
    encoder = loaded["text_encoder"]
    assert encoder.tokenizer is loaded["tokenizer"]
    assert encoder.text_len == 512
    embeddings = encoder(["a red circle", "a cat"])
    assert embeddings.states.shape[2] == 36
    assert embeddings.mask.sum(1).tolist() == [4, 3]


def test_an_official_folder_gives_the_same_state(loaded: dict[str, Any], official_repo: Path) -> None:
    official = load(official_repo, precision="fp32")
    for name in MODELS:
        assert_same(loaded[name], official[name])
    prompt = ["a red circle moving left"]
    assert torch.equal(loaded["text_encoder"](prompt).states, official["text_encoder"](prompt).states)
    schedulers = loaded["scheduler"], official["scheduler"]
    assert schedulers[0].config["flow_shift"] == schedulers[1].config["flow_shift"]
    for scheduler in schedulers:
        scheduler.set_timesteps(7)
    assert torch.equal(schedulers[0].timesteps, schedulers[1].timesteps)


def test_official_names_are_those_that_the_reference_converts(wan_repo: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers, convert_wan_vae_to_diffusers

    converters: dict[str, Callable[..., dict[str, torch.Tensor]]] = {
        "transformer": convert_wan_transformer_to_diffusers, "vae": convert_wan_vae_to_diffusers
    }  # fmt: skip
    for name, convert in converters.items():
        expected = load_file(wan_repo / name / "diffusion_pytorch_model.safetensors")
        found = convert(official_state(wan_repo, name))
        assert set(found) == set(expected)
        assert all(torch.equal(found[key], tensor) for key, tensor in expected.items())


def test_official_text_encoder_names(wan_repo: Path) -> None:
    # the names in models_t5_umt5-xxl-enc-bf16.pth
    block = (
        "norm1.weight", "attn.q.weight", "attn.k.weight", "attn.v.weight", "attn.o.weight", "norm2.weight",
        "ffn.gate.0.weight", "ffn.fc1.weight", "ffn.fc2.weight", "pos_embedding.embedding.weight",
    )  # fmt: skip
    names = {f"blocks.{layer}.{name}" for layer in range(3) for name in block}
    state = official_state(wan_repo, "text_encoder")
    assert set(state) == names | {"token_embedding.weight", "norm.weight"}
    ours = load_file(wan_repo / "text_encoder" / "model.safetensors")
    inner = "encoder.block.1.layer.1.DenseReluDense"
    # the gate is the branch with the activation
    assert torch.equal(state["blocks.1.ffn.gate.0.weight"], ours[f"{inner}.wi_0.weight"])
    assert torch.equal(state["blocks.1.ffn.fc1.weight"], ours[f"{inner}.wi_1.weight"])


def test_split_files_give_the_same_state(loaded: dict[str, Any], tmp_path: Path) -> None:
    split = load(make_wan_repo(tmp_path / "repo", max_shard_size="100KB"), precision="fp32")
    for name in MODELS:
        assert_same(loaded[name], split[name])


def test_a_pickled_file_gives_the_same_state(loaded: dict[str, Any], broken: Path) -> None:
    path = broken / "vae" / "diffusion_pytorch_model.safetensors"
    torch.save(load_file(path), path.with_suffix(".bin"))
    path.unlink()
    assert_same(loaded["vae"], load_component(resolve_repo(broken).components["vae"]))


@pytest.mark.parametrize("feed_forward", ["relu", "gated-gelu"])
def test_a_t5_encoder_of_either_kind(tmp_path: Path, wan_repo: Path, feed_forward: str) -> None:
    shutil.copytree(wan_repo, tmp_path / "repo")
    folder = tmp_path / "repo" / "text_encoder"
    shutil.rmtree(folder)
    reference = make_text_encoder(129, "t5", feed_forward_proj=feed_forward)
    reference.save_pretrained(folder)
    edit_json(tmp_path / "repo" / "model_index.json", text_encoder=["transformers", "T5EncoderModel"])
    encoder = load(tmp_path / "repo", precision="fp32")["text_encoder"]
    assert type(encoder) is T5EncoderModel
    assert encoder.blocks[0].ffn.gated == (feed_forward == "gated-gelu")
    ids = torch.tensor([[4, 10, 16, 1]])
    with torch.no_grad():
        expected = reference(ids).last_hidden_state
        found = encoder.hidden_states(ids, torch.ones_like(ids, dtype=torch.bool))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_precisions_are_per_component(wan_repo: Path) -> None:
    components = load(wan_repo)
    dtypes = {name: {parameter.dtype for parameter in components[name].parameters()} for name in MODELS}
    assert dtypes["vae"] == {torch.float32}
    assert dtypes["text_encoder"] == {torch.bfloat16}
    transformer = components["transformer"]
    assert transformer.blocks[0].self_attn.qkv.weight.dtype is torch.bfloat16
    # as in the reference, which keeps these in fp32
    for kept in (transformer.time_embedder.fc_in.weight, transformer.modulation_out, transformer.blocks[0].modulation,
                 transformer.blocks[0].cross_norm.weight):  # fmt: skip
        assert kept.dtype is torch.float32


def test_flow_shift_overrides_the_repo(wan_repo: Path) -> None:
    repo = resolve_repo(wan_repo)
    args = FastVideoArgs.from_kwargs(wan_repo, precision="fp32")
    config = args.resolved_pipeline_config()
    assert load(wan_repo, precision="fp32")["scheduler"].config["flow_shift"] == 3.0
    config.flow_shift = 7.0
    scheduler = load_components(repo, REQUIRED, args, config, progress=False)["scheduler"]
    assert isinstance(scheduler, Scheduler)
    assert scheduler.config["flow_shift"] == 7.0


def test_attention_backends_are_injected(loaded: dict[str, Any]) -> None:
    layers = [x for x in loaded["transformer"].modules() if isinstance(x, (DistributedAttention, LocalAttention))]
    assert len(layers) == 6
    assert all("backend" in vars(layer) for layer in layers)


def test_compiled_blocks_compute_the_same(
    wan_repo: Path, loaded: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    # importing the compiler says so for the user
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", default_cache_dir())
    counter = CompileCounter()
    compiled = load(
        wan_repo, precision="fp32", enable_torch_compile=True, torch_compile_kwargs={"backend": counter}
    )["transformer"]  # fmt: skip
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(envs.cache_root() / "compiled")
    assert_same(loaded["transformer"], compiled)
    latents, timestep, text = torch.randn(1, 16, 2, 4, 6), torch.tensor([500]), torch.randn(1, 5, 36)
    with torch.no_grad():
        expected = loaded["transformer"](latents, timestep, text=text)
        torch.testing.assert_close(compiled(latents, timestep, text=text), expected, rtol=1e-5, atol=1e-5)
    assert counter.frame_count > 0


def remove_component(repo: Path, name: str) -> None:
    path = repo / "model_index.json"
    index = json.loads(path.read_text())
    del index[name]
    path.write_text(json.dumps(index))


def rewrite_weights(repo: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = repo / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    change(state)
    save_file(state, path)


def set_class(name: str, library: str, cls: str) -> Callable[[Path], None]:
    return lambda repo: edit_json(repo / "model_index.json", **{name: [library, cls]})


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


TABLE = "blocks.0.scale_shift_table"

BAD: list[tuple[str, Callable[[Path], object], str]] = [
    ("missing component", lambda repo: remove_component(repo, "vae"),
     "component 'vae': WanPipeline needs it, .* lists only scheduler, text_encoder, tokenizer, transformer"),
    ("unknown component class", set_class("vae", "diffusers", "AutoencoderKLMagi"),
     "component class 'AutoencoderKLMagi': not known; .*known are .*AutoencoderKLWan"),
    ("unknown scheduler class", set_class("scheduler", "diffusers", "UniPCMultistepSchedulr"),
     r"scheduler class 'UniPCMultistepSchedulr': not known; did you mean 'UniPCMultistepScheduler'\?"),
    ("unknown tokenizer class", set_class("tokenizer", "transformers", "ByT5Tokenizer"),
     "tokenizer class 'ByT5Tokenizer': not known"),
    ("unknown library", set_class("vae", "my_package", "AutoencoderKLWan"),
     "library 'my_package' must be one of diffusers, transformers"),
    ("second transformer", set_class("transformer_2", "diffusers", "WanTransformer3DModel"),
     "component 'transformer_2' .* WanPipeline would ignore it"),
    ("option nobody heeds", lambda repo: edit_json(repo / "model_index.json", boundary_ratio=0.875),
     "boundary_ratio=0.875: .* WanPipeline would ignore it"),
    ("no config", lambda repo: (repo / "vae" / "config.json").unlink(),
     "component 'vae': vae/config.json is missing"),
    ("unknown config key", lambda repo: edit_json(repo / "vae" / "config.json", base_dimm=3),
     r"component 'vae', vae/config.json: config key 'base_dimm'=3: .* did you mean 'base_dim'\?"),
    ("config of no model", lambda repo: edit_json(repo / "transformer" / "config.json", num_attention_heads=-1),
     "component 'transformer', transformer/config.json: no model can be built"),
    ("unknown scheduler key", lambda repo: edit_json(repo / "scheduler" / "scheduler_config.json", flow_shft=3),
     r"'flow_shft': unknown config key of UniPCMultistepScheduler; did you mean 'flow_shift'\?"),
    ("missing weight file", lambda repo: (repo / "vae" / "diffusion_pytorch_model.safetensors").unlink(),
     "component 'vae': no weights"),
    ("truncated weight file", lambda repo: truncate(repo / "vae" / "diffusion_pytorch_model.safetensors"),
     "vae/diffusion_pytorch_model.safetensors: weight file is truncated or broken"),
    ("missing weight", lambda repo: rewrite_weights(repo, lambda state: state.pop(TABLE)),
     f"component 'transformer': weight '{TABLE}' is missing"),
    ("unexpected weight", lambda repo: rewrite_weights(repo, lambda state: state.update(extra=torch.ones(2))),
     "component 'transformer': weight 'extra' in diffusion_pytorch_model.safetensors is unexpected"),
    ("misshapen weight", lambda repo: rewrite_weights(repo, lambda state: state.update({TABLE: torch.ones(1, 6, 61)})),
     rf"component 'transformer': weight '{TABLE}' .* has shape \[1, 6, 61\], must be \[1, 6, 60\]"),
    ("config of other weights", lambda repo: edit_json(repo / "transformer" / "config.json", num_layers=4),
     r"component 'transformer': weight 'blocks\.3\..* is missing"),
    ("fewer layers than weights", lambda repo: edit_json(repo / "transformer" / "config.json", num_layers=2),
     r"component 'transformer': weight 'blocks\.2\..* is unexpected"),
    ("broken tokenizer", lambda repo: (repo / "tokenizer" / "tokenizer.json").write_text("{"),
     "tokenizer: no T5Tokenizer can be made of it"),
]  # fmt: skip


@pytest.mark.parametrize(("break_repo", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_repos_are_refused_before_a_weight_is_read(
    broken: Path, break_repo: Callable[[Path], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(component_loader, "load_into", fail)
    break_repo(broken)
    with pytest.raises(ValueError, match=message) as error:
        load(broken)
    assert "\n" not in str(error.value)


def test_a_pickle_of_something_else_in_an_official_folder(official_repo: Path, tmp_path: Path) -> None:
    shutil.copytree(official_repo, tmp_path / "repo")
    torch.save(nn.Linear(2, 2), tmp_path / "repo" / "Wan2.1_VAE.pth")
    with pytest.raises(ValueError, match=r"Wan2.1_VAE\.pth: is a pickle of something else than weights"):
        load(tmp_path / "repo")
    (tmp_path / "repo" / "models_t5_umt5-xxl-enc-bf16.pth").unlink()
    with pytest.raises(ValueError, match=r"component 'text_encoder': no weights; expected models_t5_umt5-xxl-enc-bf16"):
        load(tmp_path / "repo")


def test_other_weights_under_an_official_name(official_repo: Path, tmp_path: Path) -> None:
    shutil.copytree(official_repo, tmp_path / "repo")
    torch.save({"decoder.weight": torch.ones(3)}, tmp_path / "repo" / "Wan2.1_VAE.pth")
    with pytest.raises(ValueError, match=r"component 'vae', Wan2.1_VAE\.pth: encoder.conv1.weight: missing"):
        load(tmp_path / "repo")


def test_an_option_that_the_pipeline_heeds_is_fine(broken: Path) -> None:
    edit_json(broken / "model_index.json", boundary_ratio=0.875)
    check_components(resolve_repo(broken), REQUIRED, options=("boundary_ratio",))


def test_a_precision_that_the_device_lacks(wan_repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastvideo.platforms.cpu import CPUPlatform

    monkeypatch.setattr(CPUPlatform, "supported_precisions", lambda self: ("fp32",))
    with pytest.raises(ValueError, match=r"precision='bf16': .* does not compute in it; use one of fp32"):
        load(wan_repo)


def test_too_little_memory_is_said_beforehand(wan_repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fastvideo.platforms.cpu import CPUPlatform

    said: list[str] = []
    monkeypatch.setattr(CPUPlatform, "available_memory", lambda self: 1000)
    monkeypatch.setattr(component_loader.logger, "warning", lambda text, *values: said.append(text % values))
    load(wan_repo)
    assert len(said) == 1
    assert "precision='bf16' or a smaller model" in said[0]


def test_the_progress_bar_counts_the_bytes_of_all_weights(wan_repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bars: list[Any] = []

    class Bar:
        def __init__(self, **options: Any) -> None:
            self.options, self.seen = options, 0
            bars.append(self)

        def __enter__(self) -> "Bar":
            return self

        def __exit__(self, *exception: object) -> None:
            return

        def update(self, count: int) -> None:
            self.seen += count

        def set_postfix_str(self, text: str, refresh: bool) -> None:
            return

    monkeypatch.setattr(component_loader, "tqdm", Bar)
    args = FastVideoArgs.from_kwargs(wan_repo)
    for progress in (True, False):
        load_components(resolve_repo(wan_repo), REQUIRED, args, args.resolved_pipeline_config(), progress=progress)
    assert all(bar.seen == bar.options["total"] > 0 for bar in bars)
    assert [bar.options["disable"] for bar in bars] == [None, True]


def test_one_component_by_itself(wan_repo: Path) -> None:
    source = resolve_repo(wan_repo).components["vae"]
    plan = blueprint(source)
    assert plan.parameters == sum(p.numel() for p in load_component(source).parameters())
    assert plan.nbytes == 4 * plan.parameters
    assert {p.dtype for p in load_component(source, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


def test_a_tokenizer_by_itself(wan_repo: Path, broken: Path) -> None:
    tokenizer = load_tokenizer(resolve_repo(wan_repo).components["tokenizer"])
    assert tokenizer("a red circle").input_ids[-1] == 1
    set_class("tokenizer", "transformers", "AutoTokenizer")(broken)
    assert load_tokenizer(resolve_repo(broken).components["tokenizer"])("a red circle") == tokenizer("a red circle")
