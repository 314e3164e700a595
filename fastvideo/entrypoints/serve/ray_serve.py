"""`fastvideo serve --ray`: several servers that Ray Serve places, checks and starts again, and a router before them.

Ray Serve spreads requests over replicas that are all alike. Jobs are not: what is about one goes to the server that has
it. So each server is an application of its own, with a name that it keeps when it is started again, and the router of
`fastvideo router` decides who gets a request.
"""

import copy
import logging
import threading
import time
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from starlette.concurrency import run_in_threadpool

from fastvideo.entrypoints.serve.router import create_router
from fastvideo.entrypoints.serve.settings import RouterSettings, ServerSettings
from fastvideo.logger import init_logger
from fastvideo.utils import require

logger = init_logger(__name__)

CHECK_SECONDS = 2.0
"""Between two looks of Ray Serve at a server."""
STOP_SECONDS = 60.0
"""For a server to stop: its job ends at the next step, and is queued again."""
ANSWER_SECONDS = 5.0
PACKAGES = "Ray Serve is needed; pip install 'fastvideo[ray]'"


class Member:
    """One server, in a process that Ray Serve started."""

    def __init__(self, options: Namespace, number: int, host: str | None) -> None:
        """Start it; it loads while it answers already.

        Args:
            options: of the command line.
            number: of this one; its name is "r" and the number.
            host: what it listens on; None: this node's address.
        """
        import ray.util

        from fastvideo.entrypoints.serve.run import Service, settings_of

        engine, settings, defaults = settings_of(options)
        settings.replica, settings.studio, settings.port = f"r{number}", False, 0
        # the keys that the one in front needs, whatever this one listens on
        settings.api_keys = settings.needs_keys
        settings.host = host or ray.util.get_node_ip_address()
        self._service = Service(engine, settings, defaults)
        self._thread = threading.Thread(target=self._service.run, name="web", daemon=True)
        self._thread.start()

    def url(self) -> str:
        """Where it answers."""
        host, port = self._service.listening.getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def check_health(self) -> None:
        """Raise if it has ended: Ray Serve then starts another."""
        if not self._thread.is_alive():
            raise RuntimeError(f"the server ended: {self._service.server.runner.failure!r}")

    def __del__(self) -> None:
        self._service.stop()
        self._thread.join(STOP_SECONDS)


def check_ray(engine: dict[str, Any], settings: ServerSettings) -> None:
    """Refuse what `--ray` would ignore.

    Raises:
        ValueError: the option, its value, the rule, and what to do.
    """
    rule = "does not go with --ray"
    require(settings.replica == "main", "replica", settings.replica, f"{rule}, which names its servers r0, r1, ...",
            "leave it out")  # fmt: skip
    require(not settings.studio, "studio", settings.studio, f"{rule}: its sessions would be spread over servers",
            "leave it out")  # fmt: skip
    backend = engine.get("distributed_executor_backend", "mp")
    require(backend == "mp", "distributed_executor_backend", backend, f"{rule}, which places whole servers",
            "leave it 'mp'")  # fmt: skip


def run_ray(options: Namespace, engine: dict[str, Any], settings: ServerSettings) -> int:
    """Serve with Ray until the process is told to stop."""
    check_ray(engine, settings)
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise ImportError(f"fastvideo serve --ray: {PACKAGES} ({error})") from error
    import uvicorn

    from fastvideo.entrypoints.serve.run import listen, say_where

    options = copy.deepcopy(options)
    options.server.data_dir = str(Path(settings.data_dir).absolute())
    # the cluster of RAY_ADDRESS or of `ray start`, or one of its own, which ends with it
    ray.init(include_dashboard=False, logging_level=logging.WARNING)
    nodes = sum(node["Alive"] for node in ray.nodes())
    require(nodes == 1 or not settings.on_loopback, "host", settings.host,
            f"the servers may be on any of {nodes} machines, and answer this one alone",
            "set server.host to an address of this machine")  # fmt: skip
    listening = listen(settings.host, settings.port)
    serve.start(http_options={"location": "NoServer"})
    handles = [_started(serve, options, engine, number, settings) for number in range(settings.ray_replicas)]
    urls = [handle.url.remote().result(timeout_s=None) for handle in handles]

    async def find(number: int) -> str:
        answer = handles[number].url.remote()
        return str(await run_in_threadpool(lambda: answer.result(timeout_s=ANSWER_SECONDS)))

    routing = RouterSettings(replicas=urls, host=settings.host, port=settings.port,
                             max_upload_mb=settings.max_upload_mb)  # fmt: skip
    say_where(settings, listening)
    app = create_router(routing, find)
    config = uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=10, server_header=False)
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        for number in range(settings.ray_replicas):
            serve.delete(application(number), _blocking=True)
        ray.shutdown()
    return 0


def application(number: int) -> str:
    """The name of a server's application."""
    return f"fastvideo-r{number}"


def _started(serve: Any, options: Namespace, engine: dict[str, Any], number: int, settings: ServerSettings) -> Any:
    """The handle of a server that Ray Serve has started, or found running."""
    devices = engine.get("num_gpus", 1) if engine.get("device", "auto") in ("auto", "cuda") and _cuda() else 0
    deployment = serve.deployment(
        Member, name=f"server-r{number}", num_replicas=1, max_ongoing_requests=100,
        health_check_period_s=CHECK_SECONDS, graceful_shutdown_timeout_s=STOP_SECONDS,
        ray_actor_options={"num_cpus": 1, "num_gpus": devices},
    )  # fmt: skip
    host = settings.host if settings.on_loopback else None
    began = time.monotonic()
    handle = serve.run(deployment.bind(options, number, host), name=application(number), route_prefix=None)
    logger.info("server r%d started by Ray Serve in %.1f s", number, time.monotonic() - began)
    return handle


def _cuda() -> bool:
    import ray

    return bool(ray.cluster_resources().get("GPU", 0))
