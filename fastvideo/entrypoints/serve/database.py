"""The database of a server: SQLite or PostgreSQL, and what to do while it is away."""

import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa

from fastvideo.entrypoints.serve.records import metadata
from fastvideo.logger import init_logger

T = TypeVar("T")
logger = init_logger(__name__)

BUSY_SECONDS = 30
"""For another process that writes to the same SQLite file."""
CONNECT_SECONDS = 10
"""For a PostgreSQL server to answer."""
AWAY_SECONDS = 1.0
"""Between two tries to reach a database that is away."""


def open_engine(url: str) -> sa.Engine:
    """The database of `url`, with its tables.

    Raises:
        ValueError: the URL names no database that can be opened; says why.
    """
    try:
        parsed = sa.make_url(url)
        if parsed.drivername in ("postgres", "postgresql"):
            parsed = parsed.set(drivername="postgresql+psycopg")
        sqlite = parsed.get_backend_name() == "sqlite"
        if sqlite and parsed.database and parsed.database != ":memory:":
            Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {"connect_args": {"timeout": BUSY_SECONDS}}
        if not sqlite:
            options = {"connect_args": {"connect_timeout": CONNECT_SECONDS}, "pool_pre_ping": True}
        engine = sa.create_engine(parsed, pool_size=20, max_overflow=30, **options)
        if sqlite:
            _prepare_sqlite(engine)
        with engine.connect().execution_options(writes=True) as connection, connection.begin():
            alone(connection, "tables")  # two servers that start at once would both make them
            metadata.create_all(connection)
    except (sa.exc.SQLAlchemyError, ImportError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"database_url: cannot be opened ({reason}); use sqlite:///file, or postgresql://... with "
                         "pip install 'fastvideo[postgres]'") from None  # fmt: skip
    return engine


def _prepare_sqlite(engine: sa.Engine) -> None:
    """A write-ahead log, so that readers do not wait; and writers that ask for the lock before they read."""

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, record: object) -> None:
        connection.isolation_level = None  # or the driver would begin by itself, too late
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: sa.Connection) -> None:
        if connection.get_execution_options().get("writes"):
            connection.exec_driver_sql("BEGIN IMMEDIATE")


def alone(connection: sa.Connection, about: str) -> None:
    """Have whoever says the same `about` wait until this transaction ends. SQLite has one writer at a time anyway."""
    if connection.dialect.name == "postgresql":
        number = int.from_bytes(hashlib.sha256(about.encode()).digest()[:8], "big", signed=True)
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(number)))


def away(error: BaseException) -> bool:
    """Whether `error` says that the database cannot be reached, rather than that it was asked for something wrong."""
    return isinstance(error, sa.exc.OperationalError | sa.exc.InterfaceError | sa.exc.TimeoutError) or (
        isinstance(error, sa.exc.DBAPIError) and error.connection_invalidated
    )


def patiently(do: Callable[[], T], stopping: threading.Event) -> T:
    """What `do` gives, tried again while the database is away, until the server stops.

    Raises:
        SQLAlchemyError: the database refuses, or is away and the server stops.
    """
    said = False
    while True:
        try:
            return do()
        except sa.exc.SQLAlchemyError as error:
            if not away(error) or stopping.is_set():
                raise
            if not said:
                logger.error("the database is away (%s); waiting for it", type(error).__name__)
                said = True
            stopping.wait(AWAY_SECONDS)
