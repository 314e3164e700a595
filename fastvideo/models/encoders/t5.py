"""T5 and UMT5 text encoders.

Sources: "Exploring the Limits of Transfer Learning with a Unified Text-to-Text Transformer" (arXiv 1910.10683) and
"UniMax" (arXiv 2304.09151) for UMT5; the reference that results are compared with is `transformers`'s
`modeling_t5.py` and `modeling_umt5.py`.
"""

import html
import math
import re
from functools import partial
from typing import Any

import ftfy
import torch
import torch.nn.functional as F
from torch import nn

from fastvideo.attention.layer import LocalAttention
from fastvideo.configs.models.encoders.t5 import T5ArchConfig
from fastvideo.layers.embedding import ColumnEmbedding, VocabParallelEmbedding
from fastvideo.layers.linear import ColumnLinear, RowLinear
from fastvideo.logger import init_logger
from fastvideo.models.encoders.base import TextEmbeddings, TextEncoder

logger = init_logger(__name__)


def clean_prompt(prompt: str) -> str:
    """`prompt` with its encoding repaired, HTML entities resolved (twice) and white space folded."""
    return re.sub(r"\s+", " ", html.unescape(html.unescape(ftfy.fix_text(prompt)))).strip()


class T5Norm(nn.RMSNorm):
    """RMS norm whose statistics are fp32; the scaled value is rounded before the weight is applied."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scaled = F.rms_norm(x.float(), self.normalized_shape, None, self.eps)
        return self.weight * scaled.to(self.weight.dtype)


class T5Attention(nn.Module):
    """Self-attention without scaling of the logits; `position_bias` may live in another layer."""

    def __init__(self, arch: T5ArchConfig, has_bias: bool) -> None:
        super().__init__()
        self.head_dim = arch.d_kv
        inner = arch.num_heads * arch.d_kv
        self.qkv = ColumnLinear(arch.d_model, inner, bias=False, pieces=3)
        self.out = RowLinear(inner, arch.d_model, bias=False)
        self.position_bias = None
        if has_bias:
            self.position_bias = ColumnEmbedding(arch.relative_attention_num_buckets, arch.num_heads)
        self.attention = LocalAttention(scale=1.0)

    def bias(
        self, inherited: torch.Tensor | None, buckets: torch.Tensor, hidden_keys: torch.Tensor | None
    ) -> torch.Tensor | None:
        """This layer's bias on the logits, [B or 1, heads, S, S], or the one `inherited` from the layer before.

        It depends on the distance alone, so row after row is a window of one table that moves back by one place: rows
        are copied, not gathered. `buckets` [2S - 1] are those of the distances from 1 - S to S - 1.
        """
        if self.position_bias is None:
            return inherited
        table = self.position_bias(buckets).t().contiguous()
        bias = table.unfold(1, len(buckets) // 2 + 1, 1).flip(1).unsqueeze(0)
        return bias if hidden_keys is None else bias + hidden_keys

    def forward(self, x: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, -1, self.head_dim)).unbind(2)
        return self.out(self.attention(q, k, v, bias).flatten(2))


class T5FeedForward(nn.Module):
    """`relu`, or the product of a GELU gate and a linear branch, whose two weights are stacked."""

    def __init__(self, arch: T5ArchConfig) -> None:
        super().__init__()
        self.gated = arch.feed_forward_proj == "gated-gelu"
        self.fc_in = ColumnLinear(arch.d_model, arch.d_ff, bias=False, pieces=2 if self.gated else 1)
        self.fc_out = RowLinear(arch.d_ff, arch.d_model, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.gated:
            return self.fc_out(F.relu(self.fc_in(x)))
        gate, value = self.fc_in(x).chunk(2, dim=-1)
        return self.fc_out(F.gelu(gate, approximate="tanh") * value)


class T5Block(nn.Module):
    """Self-attention and feed-forward, each on a normalised input."""

    def __init__(self, arch: T5ArchConfig, has_bias: bool) -> None:
        super().__init__()
        self.attn_norm = T5Norm(arch.d_model, eps=arch.layer_norm_epsilon)
        self.attn = T5Attention(arch, has_bias)
        self.ffn_norm = T5Norm(arch.d_model, eps=arch.layer_norm_epsilon)
        self.ffn = T5FeedForward(arch)

    def forward(
        self, x: torch.Tensor, bias: torch.Tensor | None, buckets: torch.Tensor, hidden_keys: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The states and the bias for the next layer."""
        bias = self.attn.bias(bias, buckets, hidden_keys)
        x = x + self.attn(self.attn_norm(x), bias)
        return x + self.ffn(self.ffn_norm(x)), bias


def relative_position_bucket(relative: torch.Tensor, num_buckets: int, max_distance: int) -> torch.Tensor:
    """The bucket of each `relative` position (key minus query), of any shape: half of the buckets for each sign; of
    those half for exact distances and the rest on a log scale up to `max_distance` (arXiv 1910.10683, section 2.1)."""
    half = num_buckets // 2
    exact = half // 2
    distance = relative.abs()
    log_ratio = torch.log(distance.float().clamp(min=1) / exact) / math.log(max_distance / exact)
    far = (exact + (log_ratio * (half - exact)).long()).clamp(max=half - 1)
    return half * (relative > 0) + torch.where(distance < exact, distance, far)


class T5EncoderModel(TextEncoder):
    """The T5 encoder with its tokenizer.

    `tokenizer` (a `transformers` tokenizer) and `text_len`, the padded length that the diffusion model expects, are
    set by the loader.
    """

    def __init__(self, arch: T5ArchConfig) -> None:
        super().__init__()
        self.arch = arch
        self.embedding = VocabParallelEmbedding(arch.vocab_size, arch.d_model)
        self.blocks = nn.ModuleList(
            T5Block(arch, has_bias=layer == 0 or not arch.shared_position_bias) for layer in range(arch.num_layers)
        )
        self.norm = T5Norm(arch.d_model, eps=arch.layer_norm_epsilon)
        self.tokenizer: Any = None
        self.text_len = 512

    def forward(self, prompts: list[str]) -> TextEmbeddings:
        """Embed `prompts`, cleaned; a prompt longer than `text_len` tokens is cut, with a warning that shows the rest.

        Only the tokens go through the encoder: padding is masked in attention and its outputs are zeroed, so it
        would change nothing.
        """
        ids, mask = self._tokenize([clean_prompt(prompt) for prompt in prompts])
        device = self.norm.weight.device
        ids, mask = ids.to(device), mask.to(device)
        # one prompt alone is not padded
        states = self.hidden_states(ids, mask if len(prompts) > 1 else None) * mask.unsqueeze(-1)
        return TextEmbeddings(states, mask, self.text_len - ids.shape[1])

    def hidden_states(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """The last hidden states [B, S, d] of token `ids` [B, S]; `mask` [B, S] bool is true on tokens, and not given
        where all are."""
        x = self.embedding(ids)
        buckets = self._buckets(ids.shape[1], ids.device)
        hidden_keys = None
        if mask is not None:
            hidden_keys = torch.zeros(mask.shape, dtype=x.dtype, device=x.device)
            hidden_keys = hidden_keys.masked_fill(~mask, torch.finfo(x.dtype).min)[:, None, None]
        bias = hidden_keys
        for block in self.blocks:
            x, bias = block(x, bias, buckets, hidden_keys)
        return self.norm(x)

    def _buckets(self, length: int, device: torch.device) -> torch.Tensor:
        return relative_position_bucket(
            torch.arange(1 - length, length, device=device),
            self.arch.relative_attention_num_buckets,
            self.arch.relative_attention_max_distance,
        )

    def _tokenize(self, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        encode = partial(self.tokenizer, padding="longest", return_tensors="pt", add_special_tokens=True)
        tokens = encode(prompts, truncation=True, max_length=self.text_len)
        if tokens.input_ids.shape[1] == self.text_len:
            for prompt in prompts:
                self._warn_if_cut(prompt)
        return tokens.input_ids, tokens.attention_mask.bool()

    def _warn_if_cut(self, prompt: str) -> None:
        whole = self.tokenizer(prompt, add_special_tokens=True, verbose=False).input_ids
        if len(whole) > self.text_len:
            rest = self.tokenizer.decode(whole[self.text_len - 1 :], skip_special_tokens=True)
            logger.warning("prompt of %d tokens: at most %d are used; cut: %r", len(whole), self.text_len, rest)


class UMT5EncoderModel(T5EncoderModel):
    """UMT5: T5 with a position bias in every layer and a gated feed-forward; the arch config says so."""
