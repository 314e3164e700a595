"""The table of the load test is that of the docs."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from benchmarks.soak import Load, table

DOCS = Path(__file__).parents[2] / "docs" / "serving.md"


def test_the_docs_have_what_the_command_prints() -> None:
    server: Any = SimpleNamespace()
    load = Load(server, 200)
    load.seconds = [0.001 * number for number in range(100)]
    load.memory = dict.fromkeys((1, 25, 50, 75, 100), (300.0, 310.0))
    load.answers.update({200: 99, 503: 1})
    load.made = {"a": "completed", "b": "failed"}
    made = table(load, 50.0, 0, 0, 10, 0)
    assert "| jobs lost, doubled, failed | 0, 0, 1 |" in made
    assert "| answers, and those that were a 5xx | 100, 1 |" in made
    assert "| seconds for 200 jobs; jobs a minute | 50; 240 |" in made
    under_load = DOCS.read_text().split("## Under load")[1].split("\n## ")[0]
    names = [re.findall(r"^\| (.*?) \|", text, re.M) for text in (made, under_load)]
    assert names[0] == names[1]
