"""Processes that tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tiny_repos
from tests.distributed.processes import Processes


@pytest.fixture(scope="session")
def two() -> Iterator[Processes]:
    """Two processes with a group over them."""
    processes = Processes(2)
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def four() -> Iterator[Processes]:
    """Four."""
    processes = Processes(4)
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def even_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny repo whose 4 heads, in the transformer and the text encoder, divide among ranks. Read only."""
    return tiny_repos.make_wan_repo(
        tmp_path_factory.mktemp("repos") / "wan-even",
        transformer={"num_attention_heads": 4, "attention_head_dim": 12},
        text_encoder={"num_heads": 4},
    )
