"""The tokenizer that reads its file by itself, against that of `transformers` on the same file."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fastvideo.configs.registry import SHIPPED_MODEL
from fastvideo.models.encoders.tokenizer import FileTokenizer, plain_tokenizer
from recipes.shapes.captions import caption
from recipes.shapes.world import sample_scene

FOLDER = SHIPPED_MODEL / "tokenizer"
ODD = [
    "",
    " ",
    "A  Red\tcircle\n",
    "</s>",
    "a <pad> b",
    "ünïcode 一只猫 🐈",
    "circle" * 50,
    "1.5 €, it's (so-called) 'x'",
]


@pytest.fixture(scope="module")
def ours() -> FileTokenizer:
    found = plain_tokenizer("TokenizersBackend", FOLDER)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def reference() -> Any:
    return AutoTokenizer.from_pretrained(FOLDER)


def texts() -> list[str]:
    generator = np.random.default_rng(5)
    return [*ODD, *(caption(sample_scene(generator), generator) for _ in range(60))]


@pytest.mark.parametrize("text", texts())
def test_one_text(ours: FileTokenizer, reference: Any, text: str) -> None:
    for special in (True, False):
        assert ours(text, add_special_tokens=special).input_ids == reference(text, add_special_tokens=special).input_ids
    ids = reference(text).input_ids
    for skip in (True, False):
        assert ours.decode(ids, skip_special_tokens=skip) == reference.decode(ids, skip_special_tokens=skip)


@pytest.mark.parametrize("length", [1, 3, 512])
def test_several_padded_and_cut(ours: FileTokenizer, reference: Any, length: int) -> None:
    settings = {"padding": "longest", "truncation": True, "max_length": length, "return_tensors": "pt"}
    mine, theirs = ours(texts(), **settings), reference(texts(), **settings)
    assert torch.equal(mine.input_ids, theirs.input_ids)
    assert torch.equal(mine.attention_mask, theirs.attention_mask)
    assert len(ours(texts()[-1]).input_ids) == len(reference(texts()[-1]).input_ids)  # nothing is cut any more
    assert len(ours) == len(reference)


@pytest.mark.parametrize(
    "change", [{"add_bos_token": True}, {"padding_side": "left"}, {"eos_token": "<end>"}, {"pad_token": None}]
)
def test_a_config_that_asks_for_more_is_left_to_the_reference(tmp_path: Path, change: dict[str, Any]) -> None:
    folder = Path(shutil.copytree(FOLDER, tmp_path / "tokenizer"))
    file = folder / "tokenizer_config.json"
    config = {**json.loads(file.read_text()), **change}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    assert plain_tokenizer("TokenizersBackend", folder) is None
    assert plain_tokenizer("T5Tokenizer", FOLDER) is None
    (folder / "tokenizer.json").unlink()
    assert plain_tokenizer("TokenizersBackend", folder) is None


def test_the_other_class_is_the_same(ours: FileTokenizer) -> None:
    reference = PreTrainedTokenizerFast.from_pretrained(FOLDER)
    assert [ours(text).input_ids for text in texts()] == [reference(text).input_ids for text in texts()]
