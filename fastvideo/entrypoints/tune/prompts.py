"""Prompts to measure with: put together at random, none twice."""

import itertools
import random
from pathlib import Path

from fastvideo.configs.registry import SHIPPED_NAME
from fastvideo.utils import require

GENERAL: tuple[tuple[str, ...], ...] = (
    ("A cat", "An old fisherman", "A red sports car", "A dancer in a long dress", "A paper boat", "A flock of birds"),
    ("moves slowly through", "turns around in", "rushes across", "rests in", "appears out of the mist in"),
    ("a rainy city street at night", "a field of tall grass", "a snowy mountain valley", "a busy market",
     "a calm harbour at sunset", "a forest in autumn"),
    ("close-up", "seen from above", "the camera follows", "wide shot, soft light"),
)  # fmt: skip
SHAPES: tuple[tuple[str, ...], ...] = (
    ("red", "green", "blue", "yellow", "purple", "orange", "white", "black"),
    ("circle", "square", "triangle", "star"),
    ("moving left", "moving right", "moving up", "moving down", "spinning", "growing", "shrinking", "bouncing",
     "standing still"),
    ("white", "black", "gray", "pink", "navy", "teal"),
)  # fmt: skip
"""What the model in the package draws."""


def prompts_for(model: str, count: int, file: str | None = None) -> list[str]:
    """`count` different prompts for the registered `model`, the same ones every time; or the lines of `file`.

    Raises:
        ValueError: the file has fewer lines, or cannot be read.
    """
    if file is not None:
        try:
            lines = Path(file).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ValueError(f"--prompts={file}: cannot be read ({error}); name a text file, a prompt a line") from None
        found = list(dict.fromkeys(line.strip() for line in lines if line.strip()))
        require(len(found) >= count, "--prompts", file, f"has {len(found)} prompts, and {count} are needed",
                "add some, or lower --clips or --held-out")  # fmt: skip
        return found[:count]
    shapes = model == SHIPPED_NAME
    choices = [words for words in itertools.product(*(SHAPES if shapes else GENERAL)) if words[0] != words[-1]]
    require(count <= len(choices), "--held-out", count, f"there are {len(choices)} prompts", "give --prompts")
    drawn = random.Random(0).sample(choices, count)
    form = "a {} {} {} on a {} background" if shapes else "{} {} {}, {}"
    return [form.format(*words) for words in drawn]
