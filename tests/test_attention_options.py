"""The options of attention that leaves keys out: what they become, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from fastvideo.fastvideo_args import FastVideoArgs

VSA, STA, MOBA = "VIDEO_SPARSE_ATTN", "SLIDING_TILE_ATTN", "vmoba_attn"


@pytest.mark.parametrize(
    ("backend", "options", "message"),
    [
        (VSA, {"VSA_sparsity": 2}, "VSA_sparsity=2: must be a finite number, from 0 to 1"),
        (VSA, {"VSA_sparsity": 1}, "VSA_sparsity=1: must be less than 1: a query needs a key"),
        (VSA, {"STA_window": (3, 3, 3)}, "STA_window=(3, 3, 3): does nothing with attention_backend='VIDEO_SPARSE_ATT"),
        (STA, {"VSA_sparsity": 0.5}, "VSA_sparsity=0.5: does nothing with attention_backend='SLIDING_TILE_ATTN'"),
        (STA, {"STA_window": (3, 3)}, "STA_window=(3, 3): must be 3 whole numbers, each at least 1"),
        (STA, {"STA_window": (3, 0, 3)}, "STA_window=0: must be a whole number, at least 1"),
        (STA, {"STA_window": (3, 3, 3), "STA_tile_size": 4}, "STA_tile_size=4: must be 3 whole numbers"),
        (STA, {"mask_strategy_file_path": "/no/such.json"}, "/no/such.json: cannot be read"),
        (MOBA, {"moba_config": "topk"}, "moba_config='topk': must be a dict or None"),
        (MOBA, {"moba_config": {"st_topkk": 3}}, "'st_topkk': unknown key of moba_config; did you mean 'st_topk'?"),
        (MOBA, {"moba_config": {"st_topk": 0}}, "moba_config st_topk=0: must be a whole number, at least 1"),
        (MOBA, {"moba_config": {"st_chunk_size": [4, 4]}}, "moba_config st_chunk_size=(4, 4): must be 3 whole numbers"),
        (MOBA, {"moba_config": {"moba_threshold": 1.5}}, "moba_config moba_threshold=1.5: must be a finite number"),
        (MOBA, {"moba_config": {"moba_select_mode": "best"}}, "moba_select_mode='best': must be 'threshold' or 'topk'"),
        (MOBA, {"moba_config": {"moba_threshold_type": "head"}}, "moba_threshold_type='head': must be one of query_h"),
        (MOBA, {"moba_config": {"moba_select_mode": "topk", "moba_threshold_type": "block"}}, "'block': has no topk"),
        (MOBA, {"moba_config": {"first_full_step": 12}}, "first_full_step=12: all steps are alike in this version; se"),
        (MOBA, {"moba_config": {"temporal_layer": 0, "spatial_layer": 0, "st_layer": 0}}, "=0: must be at least 1"),
    ],
)  # fmt: skip
def test_options_of_attention_that_cannot_be(backend: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as error:
        FastVideoArgs.from_kwargs("shapes-t2v", attention_backend=backend, **options)
    assert message in str(error.value)


def test_options_of_attention(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = FastVideoArgs.from_kwargs("shapes-t2v", attention_backend=VSA, VSA_sparsity=0.8)
    assert args.attention_options().VSA_sparsity == 0.8
    args = FastVideoArgs.from_kwargs("shapes-t2v", attention_backend=STA, STA_window=[3, 5, 5], STA_tile_size=[4, 4, 4])
    options = args.attention_options()
    assert (options.STA_window, options.STA_tile_size, options.STA_windows) == ((3, 5, 5), (4, 4, 4), {})
    file = tmp_path / "windows.json"
    file.write_text('{"0_0_0": [3, 1, 5], "0_0_1": [1, 2, 3], "7_0_1": [1, 2, 3]}')
    monkeypatch.setenv("FASTVIDEO_ATTENTION_BACKEND", STA)
    args = FastVideoArgs.from_kwargs("shapes-t2v", mask_strategy_file_path=str(file))
    assert args.attention_options().STA_windows == {(0, 0): (3, 1, 5), (0, 1): (1, 2, 3)}
    assert args.attention_options().STA_tile_size == (6, 8, 8)
    with pytest.raises(ValueError, match="mask_strategy_file_path says it for each head"):
        FastVideoArgs.from_kwargs("shapes-t2v", mask_strategy_file_path=str(file), STA_window=(3, 3, 3))
    raw = {"temporal_topk": 4, "spatial_chunk_size": [2, 5], "moba_select_mode": "topk", "first_full_step": 0}
    args = FastVideoArgs.from_kwargs("shapes-t2v", attention_backend=MOBA, moba_config=raw)
    moba = args.attention_options().moba
    assert (moba.temporal_topk, moba.spatial_chunk_size, moba.moba_select_mode) == (4, (2, 5), "topk")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not valid JSON"),
        ("{}", "holds no window"),
        ('{"0-0": [1, 1, 1]}', "'0-0': must read 'layer_head' or 'step_layer_head'"),
        ('{"0_0": [1, 1]}', "'0_0'=[1, 1]: must be 3 whole numbers"),
        ('{"0_2_1": [1, 1, 1], "1_2_1": [3, 3, 3]}', "layer 2, head 1 has [1, 1, 1] at another step"),
    ],
)
def test_files_of_windows_that_cannot_be(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "windows.json"
    file.write_text(text)
    with pytest.raises(ValueError) as error:
        FastVideoArgs.from_kwargs("shapes-t2v", attention_backend=STA, mask_strategy_file_path=str(file))
    assert message in str(error.value)
