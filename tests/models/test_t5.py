"""T5 and UMT5 encoders against `transformers`."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from fastvideo.models.encoders.t5 import T5EncoderModel, clean_prompt, relative_position_bucket
from tests import tiny_repos
from tests.models.reference import BF16_NOISE, BOUND, error, mean_square, ours, theirs, write_repo

PROMPTS = ["a red cat walks over the sea", "kite", "", "  the &amp;amp; blue\n star", " ".join(["red cat"] * 90)]


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def tokens(batch: int, length: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids and a mask [batch, length], each row shorter than the one before."""
    ids = torch.randint(3, 120, (batch, length), generator=torch.Generator().manual_seed(seed))
    ends = torch.linspace(length, 1, batch).long()
    return ids, torch.arange(length)[None] < ends[:, None]


def hidden(model: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The states of tokens, zero elsewhere."""
    if isinstance(model, T5EncoderModel):
        states = model.hidden_states(ids, mask)
    else:
        states = model(ids, mask.long()).last_hidden_state
    return states * mask.unsqueeze(-1)


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 23), (3, 17), (2, 300)])
def test_umt5(wan_repo: Path, batch: int, length: int) -> None:
    mine, reference = ours(wan_repo, "text_encoder"), theirs(wan_repo, "text_encoder")
    assert error(hidden(mine, *tokens(batch, length)), hidden(reference, *tokens(batch, length))) < BOUND


@pytest.mark.parametrize("kind", ["umt5", "t5"])
def test_without_a_mask_all_are_tokens(tmp_path: Path, kind: str) -> None:
    repo = write_repo(tmp_path, text_encoder=tiny_repos.make_text_encoder(120, kind, seed=5))
    mine, (ids, _) = ours(repo, "text_encoder"), tokens(2, 150)
    everything = torch.ones_like(ids, dtype=torch.bool)
    assert torch.equal(mine.hidden_states(ids), mine.hidden_states(ids, everything))
    assert error(mine.hidden_states(ids), hidden(theirs(repo, "text_encoder"), ids, everything)) < BOUND


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("t5", {"feed_forward_proj": "relu"}),
        ("t5", {"feed_forward_proj": "gated-gelu"}),
        ("t5", {"relative_attention_num_buckets": 10, "relative_attention_max_distance": 21, "num_heads": 5}),
        ("umt5", {"num_layers": 1, "layer_norm_epsilon": 1e-3}),
        ("umt5", {"relative_attention_num_buckets": 64, "relative_attention_max_distance": 512}),
    ],
)
def test_other_architectures(tmp_path: Path, kind: str, fields: dict[str, Any]) -> None:
    repo = write_repo(tmp_path, text_encoder=tiny_repos.make_text_encoder(120, kind, seed=7, **fields))
    mine, reference = ours(repo, "text_encoder"), theirs(repo, "text_encoder")
    assert error(hidden(mine, *tokens(2, 150)), hidden(reference, *tokens(2, 150))) < BOUND


def test_official_names(wan_repo: Path, official_repo: Path) -> None:
    expected = hidden(theirs(wan_repo, "text_encoder"), *tokens(2, 40))
    assert error(hidden(ours(official_repo, "text_encoder"), *tokens(2, 40)), expected) < BOUND


@pytest.mark.parametrize("kind", ["umt5", "t5"])
def test_bf16_is_no_further_from_fp32_than_the_reference(tmp_path: Path, kind: str) -> None:
    repo = write_repo(tmp_path, text_encoder=tiny_repos.make_text_encoder(120, kind, seed=3))
    exact = theirs(repo, "text_encoder")
    pairs: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    models = {load.__name__: load(repo, "text_encoder", torch.bfloat16) for load in (ours, theirs)}
    for seed in range(16):
        expected = hidden(exact, *tokens(4, 40, seed))
        for name, model in models.items():
            pairs.setdefault(name, []).append((hidden(model, *tokens(4, 40, seed)), expected))
    assert 0 < mean_square(pairs["ours"]) <= BF16_NOISE * mean_square(pairs["theirs"])


@pytest.fixture(scope="module")
def encoder(wan_repo: Path) -> T5EncoderModel:
    """Ours with its tokenizer."""
    model: T5EncoderModel = ours(wan_repo, "text_encoder")
    model.tokenizer = tiny_repos.make_tokenizer()
    model.text_len = 64
    return model


@pytest.mark.parametrize("prompts", [PROMPTS[:1], PROMPTS[:4], PROMPTS], ids=["one", "several", "one-too-long"])
def test_prompts_become_the_rows_of_the_reference(encoder: T5EncoderModel, wan_repo: Path, prompts: list[str]) -> None:
    from diffusers import WanPipeline

    pipeline = WanPipeline.from_pretrained(wan_repo, vae=None, transformer=None)
    expected, _ = pipeline.encode_prompt(prompts, do_classifier_free_guidance=False, max_sequence_length=64)
    text = encoder(prompts)
    padded = torch.nn.functional.pad(text.states, (0, 0, 0, text.padding))
    assert error(padded, expected) < BOUND
    lengths = text.mask.sum(dim=1)
    assert text.states.shape[1] == int(lengths.max())
    assert torch.equal(lengths, (expected.abs().sum(dim=-1) > 0).sum(dim=1))
    assert text.states.shape[1] + text.padding == 64


def test_company_in_the_batch_changes_nothing(encoder: T5EncoderModel) -> None:
    together, alone = encoder(PROMPTS[:2]), encoder(PROMPTS[1:2])
    length = alone.states.shape[1]
    assert error(together.states[1:, :length], alone.states) < BOUND
    assert together.padding + together.states.shape[1] == alone.padding + length


def test_a_prompt_that_is_cut_is_shown(encoder: T5EncoderModel, caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("fastvideo")
    logger.addHandler(caplog.handler)
    try:
        encoder(["kite " * 63])  # and the end of the text makes 64
        assert not caplog.records
        encoder(["kite " * 63 + "blurry sea"])
    finally:
        logger.removeHandler(caplog.handler)
    (record,) = caplog.records
    assert record.getMessage() == "prompt of 66 tokens: at most 64 are used; cut: 'blurry sea'"


@pytest.mark.parametrize(
    "prompt",
    ["", "a  b\n\tc ", "&lt;i&gt; &amp;amp; &amp;lt;", "schÃ¶n", "l’été", "＜full＞", "x\u200by", "&amp;amp;amp;"],
)
def test_prompts_are_cleaned_as_in_the_reference(prompt: str) -> None:
    from diffusers.pipelines.wan.pipeline_wan import prompt_clean

    assert clean_prompt(prompt) == prompt_clean(prompt)


@pytest.mark.parametrize(("num_buckets", "max_distance"), [(32, 128), (10, 21), (64, 1000)])
def test_position_buckets(num_buckets: int, max_distance: int) -> None:
    from transformers.models.t5.modeling_t5 import T5Attention

    relative = torch.arange(-1200, 1201)
    expected = T5Attention._relative_position_bucket(relative, True, num_buckets, max_distance)
    assert torch.equal(relative_position_bucket(relative, num_buckets, max_distance), expected)
