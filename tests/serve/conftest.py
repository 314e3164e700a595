"""A server for the tests of a module."""

from collections.abc import Iterator

import httpx
import openai
import pytest

from tests.serve.databases import Postgres, binaries, postgres
from tests.serve.stand_in import Running, running


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of the stand-in model."""
    with running(tmp_path_factory.mktemp("served")) as made:
        yield made


@pytest.fixture(scope="session")
def postgres_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A PostgreSQL server; tests with it are skipped where its binaries or its driver are missing."""
    found = binaries()
    if found is None:
        pytest.skip("no PostgreSQL server here: apt-get install postgresql")
    pytest.importorskip("psycopg")
    with postgres(tmp_path_factory.mktemp("postgres"), found) as made:
        yield made


@pytest.fixture
def client(served: Running) -> Iterator[openai.OpenAI]:
    """The official client, as its users make it."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as made:
        yield made


@pytest.fixture
def web(served: Running) -> Iterator[httpx.Client]:
    """A plain client."""
    with httpx.Client(base_url=served.url, timeout=30) as made:
        yield made
