"""The flags of `fastvideo serve`, `keys` and `router`. Importing this must stay quick."""

import argparse
import textwrap
from typing import Any

from jsonargparse import ActionConfigFile, ArgumentParser

from fastvideo.entrypoints.serve.flags import KEY_ACTIONS, router_keys


def serve_flags(parser: ArgumentParser, keys: dict[str, Any]) -> None:
    """The flags of `fastvideo serve`, whose config file has `keys`."""
    dotted_flags(parser, keys)
    parser.add_argument(
        "--ray", action="store_true", help="server.ray_replicas servers under Ray Serve, behind a router"
    )
    about = (
        "Unless a config file or flags say otherwise, the model in the package is served to this machine alone. A "
        "config file has the sections generator (as of fastvideo generate), server and default_request; each key is a "
        "flag as well, such as --server.port 9000, which beats the file. docs/serving.md lists them."
    )
    parser.epilog = textwrap.fill(about, 80)


def router_flags(parser: ArgumentParser) -> None:
    """The flags of `fastvideo router`."""
    dotted_flags(parser, router_keys())
    parser.epilog = textwrap.fill(
        "A config file has the section router with the keys replicas (URLs of servers), host, port, max_upload_mb and "
        "check_seconds; each is a flag as well, such as --router.port 80, which beats the file.", 80
    )  # fmt: skip


def dotted_flags(parser: ArgumentParser, keys: dict[str, Any]) -> None:
    """A config file, and a flag for each of its keys."""
    parser.add_argument("--config", action=ActionConfigFile, metavar="YAML", help="a file with keys as below")
    for key, hint in keys.items():
        parser.add_argument(f"--{key}", type=hint | None, help=argparse.SUPPRESS)


def keys_flags(parser: ArgumentParser) -> None:
    """The flags of `fastvideo keys`."""
    parser.add_argument("action", type=str, help=f"one of {', '.join(KEY_ACTIONS)}")
    parser.add_argument("name", nargs="?", type=str, help="of the new key; or the id of the one to revoke")
    parser.add_argument("--scopes", type=str, default="read,write", metavar="SCOPES",
                        help="what it may do: read, write, priority, metrics, admin (default: read,write)")  # fmt: skip
    parser.add_argument("--max-jobs", type=int | None, metavar="N", help="its jobs that may wait or run at a time")
    parser.add_argument("--data-dir", type=str, default="fastvideo-data", metavar="FOLDER",
                        help="server.data_dir of the server (default: fastvideo-data)")  # fmt: skip
    parser.add_argument("--database", type=str | None, metavar="URL", help="server.database_url of the server")
