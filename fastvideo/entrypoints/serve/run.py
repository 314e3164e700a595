"""`fastvideo serve`."""

import copy
import os
import socket
from typing import Any

from jsonargparse import Namespace

from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.registry import SHIPPED_NAME, entry_for
from fastvideo.entrypoints.serve.settings import ServerSettings
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.logger import hide_prompts, init_logger
from fastvideo.utils import require

logger = init_logger(__name__)

PACKAGES = "fastapi, uvicorn, sqlalchemy, fsspec and others are needed; pip install 'fastvideo[serve]'"
KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep a connection that nobody uses (httpx: 5), or one is closed as a request is on its way."""
GRACE_SECONDS = 30
"""For requests that are being answered when the server is told to stop."""


def run(options: Namespace) -> int:
    """Serve until the process is told to stop; 1 when the model could not be loaded."""
    engine, settings, defaults = settings_of(options)
    if options.ray:
        model_of(dict(engine))
        from fastvideo.entrypoints.serve.ray_serve import run_ray

        return run_ray(options, engine, settings)
    rule = "does nothing without --ray"
    require(settings.ray_replicas == 1, "ray_replicas", settings.ray_replicas, rule, "add --ray, or leave it out")
    service = Service(engine, settings, defaults)
    say_where(settings, service.listening)
    service.run()
    failure = service.server.runner.failure
    if isinstance(failure, Exception):
        raise failure
    return 0 if failure is None else 1


def model_of(engine: dict[str, Any]) -> str:
    """The model that options name, which are checked, and left without it and as `from_pretrained` takes them.

    Raises:
        ValueError: an option breaks a rule, or the model is not known. Torch is not imported until then.
    """
    model: str = engine.pop("model", None) or SHIPPED_NAME
    wiring = engine.pop("pipeline_config", None)
    if wiring:
        engine["pipeline_config"] = PipelineConfig.from_pretrained(model)
        engine["pipeline_config"].update(**wiring)
    FastVideoArgs.from_kwargs(model, **engine)
    entry_for(model)
    return model


class Service:
    """A server that listens, and the web server that answers for it."""

    def __init__(self, engine: dict[str, Any], settings: ServerSettings, defaults: dict[str, Any]) -> None:
        """Listen; `run` answers.

        Args:
            engine: options of the generator, and its model.
            settings: checked.
            defaults: the operator's sampling parameters.

        Raises:
            ValueError: an option, a setting, or what is in the folder of the server.
            OSError: the address cannot be had.
        """
        model = model_of(engine)
        try:
            import uvicorn

            from fastvideo.entrypoints.serve.app import create_app
            from fastvideo.entrypoints.serve.context import Server
        except ImportError as error:
            raise ImportError(f"fastvideo serve: {PACKAGES} ({error})") from error

        def load() -> Any:
            from fastvideo.entrypoints.serve.generator import ServedGenerator
            from fastvideo.entrypoints.video_generator import VideoGenerator

            kind = ServedGenerator if settings.own_process else VideoGenerator
            return kind.from_pretrained(model, **copy.copy(engine))

        if not settings.log_prompts:
            hide_prompts()
        self.listening = listen(settings.host, settings.port)
        self.server = server = Server(load, model, settings, defaults)
        config = uvicorn.Config(
            create_app(server), log_config=None, access_log=False, timeout_graceful_shutdown=GRACE_SECONDS,
            timeout_keep_alive=KEEP_ALIVE_SECONDS, server_header=False, h11_max_incomplete_event_size=1 << 16,
        )  # fmt: skip

        class Web(uvicorn.Server):
            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                server.closing.set()  # or streams of events would keep it waiting
                await super().shutdown(sockets)

        self._web = Web(config)
        server.runner.on_failure = self.stop

    def run(self) -> None:
        """Answer until told to stop."""
        self._web.run(sockets=[self.listening])

    def stop(self) -> None:
        """Have `run` end soon. From any thread."""
        self._web.should_exit = True


def settings_of(options: Namespace) -> tuple[dict[str, Any], ServerSettings, dict[str, Any]]:
    """Engine options, settings and the operator's sampling parameters, checked as far as that goes without a model.

    Raises:
        ValueError: a setting breaks a rule.
    """
    from fastvideo.entrypoints.cli.generate import given

    settings = ServerSettings()
    settings.update(**given(options.server))
    settings.check()
    request = given(options.default_request)
    defaults = dict(request.get("sampling", {}))
    if "negative_prompt" in request:
        defaults["negative_prompt"] = request["negative_prompt"]
    return given(options.generator), settings, defaults


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: the address cannot be had; says what to do.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except OSError as error:
        listening.close()
        raise OSError(f"{host}:{port}: cannot listen there: {error.strerror}; choose another --server.port") from error
    listening.listen(512)
    return listening


def say_where(settings: ServerSettings, listening: socket.socket) -> None:
    """Say where the server is, and what it trusts."""
    host, port = listening.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    logger.info("serving on http://%s:%d (process %d)", shown, port, os.getpid())
    if settings.needs_keys:
        logger.info(
            "clients need an API key: fastvideo keys add NAME --database %s", hidden_password(settings.database)
        )
    else:
        logger.warning("API keys are off: every program of this machine may use the server, and no other machine can")


def hidden_password(url: str) -> str:
    """A database URL, to be shown."""
    import sqlalchemy

    return sqlalchemy.make_url(url).render_as_string(hide_password=True)
