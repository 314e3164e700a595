"""What an operator decides about a server. Importing this must stay quick: no torch, and nothing of the web."""

import ipaddress
import re
from dataclasses import dataclass, field
from pathlib import Path

from fastvideo.configs.base import Assignable, require_bool, require_number, require_whole
from fastvideo.utils import require

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
MB, GB = 1 << 20, 1 << 30


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach an address."""
    if host in LOOPBACK_NAMES:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(kw_only=True)
class ServerSettings(Assignable):
    """The keys under `server` in a config file."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8000
    """Port to listen on; 0 takes a free one."""
    data_dir: str = "fastvideo-data"
    """Folder of the database and the finished files, unless the next two say otherwise."""
    database_url: str | None = None
    """SQLAlchemy URL of the queue, such as postgresql+psycopg://...; None is SQLite in data_dir."""
    files_url: str | None = None
    """fsspec URL of the folder of finished files, such as s3://bucket/videos; None is data_dir/files."""
    replica: str = "main"
    """Name of this server among those of one router; a part of every id that it gives."""
    served_model_names: list[str] = field(default_factory=list)
    """Names by which clients may call the model; none: the name it was loaded by."""
    api_keys: bool | None = None
    """Whether clients need a key; None: unless host is a loopback address."""
    cors_origins: list[str] = field(default_factory=list)
    """Origins whose pages may call the API from a browser; none: no other site's."""
    studio: bool | None = None
    """Whether / is a page for people; None: if gradio is installed."""
    loras: dict[str, str] = field(default_factory=dict)
    """LoRAs that requests may ask for: a name, and the file, folder or Hub id that it stands for."""
    max_queue: int = 100
    """Jobs that may wait; a client whose job is one too many gets a 429."""
    max_jobs_per_key: int = 50
    """Jobs of one key that may wait or run; a key may have a limit of its own."""
    max_batch_size: int = 4
    """Jobs of one size, as many steps and one priority, next to each other in the queue, that are made together, where
    that changes no bit of them, memory is enough and it is quicker; 1 makes each alone."""
    max_size_factor: float = 8.0
    """Largest width * height * frames of a request, as a multiple of that of the model's default request."""
    max_steps: int = 200
    """Most denoising steps of a request."""
    max_prompt_characters: int = 10_000
    """Of prompts and negative prompts."""
    max_upload_mb: float = 20.0
    """Largest body of a request."""
    max_image_megapixels: float = 50.0
    """Largest image, or frame of a video, that a client may send, in millions of pixels."""
    max_video_megapixels: float = 300.0
    """Largest video that a client may send, in millions of pixels in all frames."""
    max_video_seconds: float = 60.0
    """Longest video that a client may send."""
    reference_urls: bool = False
    """Whether images and videos are fetched from URLs that clients give, from public addresses alone."""
    reference_url_seconds: float = 10.0
    """Seconds that fetching one may take; it may be as large as a body."""
    job_timeout: float = 3600.0
    """Seconds that a job may run."""
    queue_timeout: float = 86_400.0
    """Seconds that a job may wait."""
    max_attempts: int = 3
    """How often a job is started that was running each time the server died."""
    keep_hours: float = 168.0
    """Hours after which a job that ended is deleted, with its files; 0 keeps them."""
    keep_gb: float = 50.0
    """Size of all files beyond which the oldest jobs are deleted; 0 keeps them."""
    preview_every: int = 4
    """Denoising steps from one preview to the next; 0 makes none."""
    webhook_url: str | None = None
    """Where the end of each job is reported to."""
    webhook_secret: str | None = None
    """Signs these reports, as whsec_ and base64; Standard Webhooks."""
    ray_replicas: int = 1
    """Servers that `--ray` starts."""
    own_process: bool = True
    """Whether the model runs in a process of its own, so that requests are answered while it computes; models that
    stream, and devices of one process, run in the server's all the same."""
    log_prompts: bool = False
    """Whether logs may hold the text of prompts."""

    @property
    def on_loopback(self) -> bool:
        """Whether only programs of this machine reach the server."""
        return is_loopback(self.host)

    @property
    def needs_keys(self) -> bool:
        """Whether a request without a key is refused."""
        return not self.on_loopback if self.api_keys is None else self.api_keys

    @property
    def database(self) -> str:
        """The URL of the database."""
        return self.database_url or f"sqlite:///{Path(self.data_dir).absolute() / 'jobs.sqlite'}"

    @property
    def files(self) -> str:
        """The URL of the folder of finished files."""
        return self.files_url or str(Path(self.data_dir).absolute() / "files")

    def check(self) -> None:
        """Check all settings together.

        Raises:
            ValueError: the setting, its value, the rule, and what to do.
        """
        require_whole("port", self.port, 0)
        require(self.port < 1 << 16, "port", self.port, "must be below 65536")
        for name in (
            "max_queue",
            "max_jobs_per_key",
            "max_batch_size",
            "max_steps",
            "max_prompt_characters",
            "max_attempts",
            "ray_replicas",
        ):
            require_whole(name, getattr(self, name), 1)
        require_whole("preview_every", self.preview_every, 0)
        for name in ("max_size_factor", "max_upload_mb", "max_image_megapixels", "max_video_megapixels",
                     "max_video_seconds", "reference_url_seconds", "job_timeout", "queue_timeout"):  # fmt: skip
            require_number(name, getattr(self, name), 0)
            require(getattr(self, name) > 0, name, getattr(self, name), "must be more than 0")
        for name in ("keep_hours", "keep_gb"):
            require_number(name, getattr(self, name), 0)
        for name in ("log_prompts", "own_process", "reference_urls"):
            require_bool(name, getattr(self, name))
        if self.studio is not None:
            require_bool("studio", self.studio)
        require(re.fullmatch("[a-z0-9]{1,20}", self.replica) is not None, "replica", self.replica,
                "must be 1 to 20 small letters and digits")  # fmt: skip
        if self.api_keys is not None:
            require_bool("api_keys", self.api_keys)
            rule = f"host={self.host!r} can be reached from other machines"
            fix = "set host to 127.0.0.1, or leave api_keys out"
            require(self.api_keys or self.on_loopback, "api_keys", self.api_keys, rule, fix)
        self._check_webhook()

    def _check_webhook(self) -> None:
        url, secret = self.webhook_url, self.webhook_secret
        require(url is None or re.match("https?://.", url) is not None, "webhook_url", url, "must be an http(s) URL")
        require((url is None) == (secret is None), "webhook_secret", "..." if secret else None,
                "webhook_url and webhook_secret go together", "give both, or none")  # fmt: skip
        if secret is not None:
            good = re.fullmatch(r"whsec_[A-Za-z0-9+/]{32,}={0,2}", secret)
            require(good is not None, "webhook_secret", "...", "must be whsec_ and base64 of at least 24 bytes")


@dataclass(kw_only=True)
class RouterSettings(Assignable):
    """The keys under `router` in a config file."""

    replicas: list[str]
    """Base URLs of the servers, such as http://10.0.0.1:8000."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8080
    """Port to listen on."""
    max_upload_mb: float = 20.0
    """Largest body of a request."""
    check_seconds: float = 1.0
    """Between two looks at a replica."""

    def check(self) -> None:
        """Check all settings together.

        Raises:
            ValueError: the setting, its value, the rule, and what to do.
        """
        require(len(self.replicas) > 0, "replicas", self.replicas, "at least one URL of a server")
        for url in self.replicas:
            require(re.fullmatch(r"https?://[^/?#]+/?", url) is not None, "replicas", url,
                    "must be the base URL of a server", "try http://127.0.0.1:8000")  # fmt: skip
        require(len(set(self.replicas)) == len(self.replicas), "replicas", self.replicas, "one URL stands there twice")
        require_whole("port", self.port, 0)
        require_number("check_seconds", self.check_seconds, 0.05)
        require_number("max_upload_mb", self.max_upload_mb, 0.001)
