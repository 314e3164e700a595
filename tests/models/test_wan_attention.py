"""The Wan transformer with each sparse attention, against the reference's with that attention written plainly."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.loader.component_loader import load_components
from fastvideo.models.loader.repo import resolve_repo
from tests import tiny_repos
from tests.attention import plain
from tests.models.reference import BOUND, error, write_repo

SIZE = (5, 10, 12)
"""Of the latents: 5 x 5 x 6 tokens, which no block divides."""
GRID = (5, 5, 6)


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


Attend = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor | None, int], torch.Tensor]
"""From queries, keys, values, the gate and the number of the layer."""


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, Attend], Any]:
    """A function that gives a model of `diffusers` another self-attention."""
    from diffusers.models.transformers import transformer_wan as theirs

    usual = theirs.dispatch_attention_fn
    now: list[Callable[..., torch.Tensor]] = []
    monkeypatch.setattr(theirs, "dispatch_attention_fn", lambda *args, **kw: (now[-1] if now else usual)(*args, **kw))

    class Processor(theirs.WanAttnProcessor):
        def __init__(self, layer: int, attend: Attend, gate: torch.nn.Linear | None) -> None:
            super().__init__()
            self.layer, self.attend, self.gate = layer, attend, gate

        def __call__(self, attn: Any, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            gate = None if self.gate is None else self.gate(hidden_states).unflatten(2, (attn.heads, -1))
            now.append(lambda q, k, v, **kw: self.attend(q, k, v, gate, self.layer))
            try:
                return super().__call__(attn, hidden_states, *args, **kwargs)
            finally:
                now.pop()

    def change(model: Any, attend: Attend) -> Any:
        for layer, block in enumerate(model.blocks):
            block.attn1.set_processor(Processor(layer, attend, getattr(block, "to_gate_compress", None)))
        return model

    return change


def make_model(gated: bool) -> Any:
    """A tiny model of `diffusers`, with the names of a checkpoint that has a gate branch."""
    model = tiny_repos.make_transformer(seed=7)
    if gated:
        for block in model.blocks:
            block.to_gate_compress = torch.nn.Linear(60, 60)
    return model


def load(repo: Path, **options: Any) -> Any:
    """Our transformer of `repo`."""
    args = FastVideoArgs.from_kwargs(repo, device="cpu", precision="fp32", **options)
    found = load_components(resolve_repo(repo), ("transformer",), args, args.resolved_pipeline_config(), progress=False)
    return found["transformer"]


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents that change slowly from place to place, timesteps and text."""
    generator = torch.Generator().manual_seed(3)
    latents = torch.randn(2, 16, *SIZE, generator=generator).cumsum(2).cumsum(3).cumsum(4) / 10
    return latents, torch.tensor([700.0, 30.0]), torch.randn(2, 9, 36, generator=generator)


def check(ours: Any, theirs: Any) -> torch.Tensor:
    """Both predict the same; gives the prediction."""
    latents, timestep, text = inputs()
    made = ours(latents, timestep, text=text)
    assert error(made, theirs(latents, timestep, text, return_dict=False)[0]) < BOUND
    return made


WINDOWS = [[(3, 1, 1), (1, 3, 3), (2, 2, 2)], [(1, 1, 1)] * 3, [(3, 3, 1), (9, 9, 9), (3, 3, 1)]]
MOBA: dict[str, Any] = {
    "temporal_chunk_size": 2, "spatial_chunk_size": [2, 4], "st_chunk_size": [2, 2, 3], "temporal_topk": 2,
    "spatial_topk": 2, "st_topk": 5, "moba_select_mode": "topk",
}  # fmt: skip
CHUNKS = [((2, 5, 6), 2), ((5, 2, 4), 2), ((2, 2, 3), 5)]

CASES: dict[str, tuple[dict[str, Any], Attend]] = {
    "VIDEO_SPARSE_ATTN": (
        {"VSA_sparsity": 0.6},
        lambda q, k, v, gate, layer: plain.video_sparse(q, k, v, GRID, 4, gate),
    ),
    "SLIDING_TILE_ATTN": (
        {"STA_tile_size": (2, 2, 2)},
        lambda q, k, v, gate, layer: plain.sliding_tile(q, k, v, GRID, (2, 2, 2), WINDOWS[layer]),
    ),
    "VMOBA_ATTN": (
        {"moba_config": MOBA},
        lambda q, k, v, gate, layer: plain.mixture_of_blocks(
            q, k, v, GRID, CHUNKS[layer][0], "topk", "query_head", CHUNKS[layer][1]
        ),
    ),
}


def windows_file(folder: Path) -> Path:
    """A file of `WINDOWS`."""
    file = folder / "windows.json"
    file.write_text(json.dumps({f"{n}_{h}": w for n, row in enumerate(WINDOWS) for h, w in enumerate(row)}))
    return file


@pytest.mark.parametrize("name", CASES)
def test_sparse_attention(tmp_path: Path, reference: Callable[[Any, Attend], Any], name: str) -> None:
    model = make_model(gated=False)
    repo = write_repo(tmp_path, transformer=model)
    options, attend = CASES[name]
    if name == "SLIDING_TILE_ATTN":
        options = {**options, "mask_strategy_file_path": str(windows_file(tmp_path))}
    latents, timestep, text = inputs()
    everything = model(latents, timestep, text, return_dict=False)[0]
    made = check(load(repo, attention_backend=name, **options), reference(model, attend))
    # and what is left out does count
    assert error(made, everything) > 100 * BOUND


@pytest.mark.parametrize("name", CASES)
def test_compiled_blocks(tmp_path: Path, name: str) -> None:
    repo = write_repo(tmp_path, transformer=make_model(gated=name == "VIDEO_SPARSE_ATTN"))
    options = {**CASES[name][0], "attention_backend": name}
    if name == "SLIDING_TILE_ATTN":
        options["mask_strategy_file_path"] = str(windows_file(tmp_path))
    latents, timestep, text = inputs()
    compiled = load(repo, enable_torch_compile=True, torch_compile_kwargs={"backend": "eager"}, **options)
    as_it_is = load(repo, **options)
    for end in (12, 8):
        some = latents[..., :end]
        assert error(compiled(some, timestep, text=text), as_it_is(some, timestep, text=text)) < BOUND


def test_a_block_in_one_piece_is_refused(tmp_path: Path) -> None:
    repo = write_repo(tmp_path, transformer=make_model(gated=False))
    with pytest.raises(ValueError, match="VIDEO_SPARSE_ATTN is not compiled with its block; leave fullgraph"):
        load(
            repo, attention_backend="VIDEO_SPARSE_ATTN", enable_torch_compile=True,
            torch_compile_kwargs={"fullgraph": True},
        )  # fmt: skip


@pytest.fixture
def gated_repo(tmp_path: Path) -> Path:
    """A checkpoint with a gate branch."""
    return write_repo(tmp_path / "gated", transformer=make_model(gated=True))


@pytest.mark.parametrize(("sparsity", "kept"), [(0.0, 8), (0.5, 4), (0.9, 1)])
def test_gate_branch(gated_repo: Path, reference: Callable[[Any, Attend], Any], sparsity: float, kept: int) -> None:
    model = make_model(gated=True)
    state = load_file(gated_repo / "transformer" / "diffusion_pytorch_model.safetensors")
    model.load_state_dict(state)
    assert "blocks.2.to_gate_compress.bias" in state
    theirs = reference(model, lambda q, k, v, gate, layer: plain.video_sparse(q, k, v, GRID, kept, gate))
    check(load(gated_repo, attention_backend="VIDEO_SPARSE_ATTN", VSA_sparsity=sparsity), theirs)


def test_auto_takes_the_backend_that_has_the_gate(gated_repo: Path) -> None:
    model = load(gated_repo)
    backend = model.blocks[0].self_attn.attention.backend
    assert (backend.name, backend.sparsity) == ("VIDEO_SPARSE_ATTN", 0.0)
    assert model.blocks[0].cross_attn.attention.backend.name == "TORCH_SDPA"


@pytest.mark.parametrize("name", ["TORCH_SDPA", "VMOBA_ATTN"])
def test_other_backends_refuse_a_gate(gated_repo: Path, name: str) -> None:
    message = f"'{name}': has no gate branch, and the checkpoint was trained with one .* here: VIDEO_SPARSE_ATTN; or"
    with pytest.raises(ValueError, match=message):
        load(gated_repo, attention_backend=name)


def test_a_gate_in_some_blocks_only(gated_repo: Path) -> None:
    file = gated_repo / "transformer" / "diffusion_pytorch_model.safetensors"
    state = load_file(file)
    del state["blocks.1.to_gate_compress.weight"]
    save_file(state, file)
    with pytest.raises(ValueError, match=r"weight 'blocks\.1\.to_gate_compress\.weight' is missing"):
        load(gated_repo)


def test_verify_has_nothing_to_compare_a_gate_with(gated_repo: Path) -> None:
    from fastvideo.entrypoints.verify import load_ours

    with pytest.raises(ValueError, match="has the gate branch of video sparse attention, which the reference leaves"):
        load_ours(resolve_repo(gated_repo).components["transformer"], torch.float32)
