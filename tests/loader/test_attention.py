"""Attention backends and their options, from the arguments to the layers."""

import json
from pathlib import Path
from typing import Any

import pytest

from fastvideo.models.loader import component_loader
from tests.loader.test_component_loader import load


@pytest.mark.parametrize(
    ("backend", "message"),
    [
        ("SAGE_ATTN", "'SAGE_ATTN': has kernels for CUDA alone, and this is cpu; those that can run here: TORCH_SDPA"),
        ("SLIDING_TILE_ATTN", "'SLIDING_TILE_ATTN': needs to know its windows; set STA_window or mask_strategy"),
        ("SPARSE", "'SPARSE': is no attention backend"),
    ],
)
def test_a_backend_that_does_not_run_is_an_error(
    wan_repo: Path, monkeypatch: pytest.MonkeyPatch, backend: str, message: str
) -> None:
    monkeypatch.setattr(component_loader, "load_into", lambda *args, **kwargs: pytest.fail("weights were read"))
    with pytest.raises(ValueError, match=message):
        load(wan_repo, attention_backend=backend)
    monkeypatch.setenv("FASTVIDEO_ATTENTION_BACKEND", backend)
    with pytest.raises(ValueError, match=message):
        load(wan_repo)


def test_options_reach_the_attention_of_every_layer(wan_repo: Path, tmp_path: Path) -> None:
    windows = {f"{layer}_{head}": [1 + layer, 1 + head, 5] for layer in range(3) for head in range(3)}
    file = tmp_path / "windows.json"
    file.write_text(json.dumps(windows))
    asked: list[dict[str, Any]] = [
        {"attention_backend": "VIDEO_SPARSE_ATTN", "VSA_sparsity": 0.7},
        {"attention_backend": "SLIDING_TILE_ATTN", "mask_strategy_file_path": str(file), "STA_tile_size": (2, 3, 4)},
        {"attention_backend": "VMOBA_ATTN", "moba_config": {"moba_threshold": 0.6}},
    ]
    vsa, sta, moba = ([block.self_attn.attention.backend for block in load(wan_repo, **options)["transformer"].blocks]
                      for options in asked)  # fmt: skip
    assert [backend.sparsity for backend in vsa] == [0.7] * 3
    assert [backend.windows for backend in sta] == [
        ((1, 1, 5), (1, 2, 5), (1, 3, 5)), ((2, 1, 5), (2, 2, 5), (2, 3, 5)), ((3, 1, 5), (3, 2, 5), (3, 3, 5)),
    ]  # fmt: skip
    assert [backend.tile for backend in sta] == [(2, 3, 4)] * 3
    assert [(backend.config.moba_threshold, backend.place.layer) for backend in moba] == [(0.6, 0), (0.6, 1), (0.6, 2)]


def test_a_file_of_windows_of_another_model(wan_repo: Path, tmp_path: Path) -> None:
    file = tmp_path / "windows.json"
    for places in ([(0, 0), (0, 1)], [(layer, head) for layer in range(3) for head in range(3)][1:]):
        file.write_text(json.dumps({f"{layer}_{head}": [1, 1, 1] for layer, head in places}))
        with pytest.raises(
            ValueError, match=r"has \d for . layers of . heads, the model has 3 layers of 3 heads; write"
        ):
            load(wan_repo, attention_backend="SLIDING_TILE_ATTN", mask_strategy_file_path=str(file))
