"""A tokenizer that is nothing but its `tokenizer.json`, read by the `tokenizers` library.

`transformers` wraps the same file, and takes a second to import. This does as much of its call as our encoders make.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from fastvideo.utils import read_json

PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
"""Classes of `transformers` that add nothing to the file."""
SPECIAL = ("eos_token", "pad_token", "unk_token")
PLAIN_KEYS = (*SPECIAL, "backend", "model_input_names", "model_max_length", "padding_side", "tokenizer_class")
"""Keys of a `tokenizer_config.json` that ask for nothing more."""


@dataclass(frozen=True)
class Tokens:
    """What a call gives: lists of a text, or with `return_tensors` the tensors [B, S] of several."""

    input_ids: Any
    attention_mask: Any


class FileTokenizer:
    """Calls and results are those of a `transformers` tokenizer."""

    def __init__(self, file: Path, pad_token: str) -> None:
        """Raises an exception of `tokenizers` unless `file` holds a tokenizer."""
        self._tokenizer = Tokenizer.from_file(str(file))
        self._tokenizer.no_padding()
        padding = self._tokenizer.token_to_id(pad_token)
        assert padding is not None, pad_token
        self.pad_token_id = padding

    def __len__(self) -> int:
        """How many tokens there are."""
        return int(self._tokenizer.get_vocab_size(with_added_tokens=True))

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        padding: str | bool = False,
        truncation: bool = False,
        max_length: int | None = None,
        add_special_tokens: bool = True,
        return_tensors: str | None = None,
        verbose: bool = True,
    ) -> Tokens:
        """The tokens of a text, or of several.

        Args:
            text: one text, or several.
            padding: "longest" pads all on the right to the longest; False does not.
            truncation: whether to cut at `max_length` tokens, special ones included.
            max_length: see `truncation`.
            add_special_tokens: whether to add what marks the end.
            return_tensors: "pt" for tensors, which several texts must be padded for.
            verbose: nothing is ever said.
        """
        if truncation and max_length is not None:
            self._tokenizer.enable_truncation(max_length)
        else:
            self._tokenizer.no_truncation()
        texts = [text] if isinstance(text, str) else list(text)
        encoded = self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)
        longest = max(len(one.ids) for one in encoded) if padding else 0
        ids = [one.ids + [self.pad_token_id] * (longest - len(one.ids)) for one in encoded]
        mask = [one.attention_mask + [0] * (longest - len(one.ids)) for one in encoded]
        if return_tensors is not None:
            return Tokens(torch.tensor(ids), torch.tensor(mask))
        return Tokens(ids[0], mask[0]) if isinstance(text, str) else Tokens(ids, mask)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of `ids`."""
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=skip_special_tokens)
        return text


def plain_tokenizer(class_name: str, folder: Path) -> FileTokenizer | None:
    """The tokenizer in `folder`, if class `class_name` of `transformers` is the same there; None if it does more."""
    file, config_file = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if class_name not in PLAIN_CLASSES or not (file.is_file() and config_file.is_file()):
        return None
    config: Mapping[str, Any] = read_json(config_file)
    if not set(config) <= set(PLAIN_KEYS) or config.get("padding_side", "right") != "right":
        return None
    vocabulary = {token["content"] for token in read_json(file).get("added_tokens", [])}
    if not {config.get(name) for name in SPECIAL} - {None} <= vocabulary or "pad_token" not in config:
        return None
    return FileTokenizer(file, config["pad_token"])
