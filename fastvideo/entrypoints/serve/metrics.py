"""What Prometheus reads."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

SECONDS = (0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200)
TOGETHER = (1, 2, 3, 4, 6, 8, 12, 16)
HTTP_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5, 30)


class Metrics:
    """The numbers of one server."""

    def __init__(self, waiting: Callable[[], float]) -> None:
        """`waiting` counts the jobs that wait."""
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Gauge("fastvideo_queue_length", "jobs that wait", registry=registry).set_function(waiting)
        self.ready = Gauge("fastvideo_ready", "1 once the model is loaded", registry=registry)
        self.running = Gauge("fastvideo_jobs_running", "jobs that run", registry=registry)
        self.wait = Histogram("fastvideo_queue_wait_seconds", "time that jobs waited", buckets=SECONDS,
                              registry=registry)  # fmt: skip
        self.stages = Histogram("fastvideo_stage_seconds", "time of a stage of a job", ["stage"], buckets=SECONDS,
                                registry=registry)  # fmt: skip
        self.jobs = Counter("fastvideo_jobs", "jobs that ended", ["state"], registry=registry)
        self.failures = Counter("fastvideo_failures", "jobs that failed", ["code"], registry=registry)
        self.refused = Counter("fastvideo_refused", "requests that were refused", ["status"], registry=registry)
        self.steps = Counter("fastvideo_steps", "denoising steps", registry=registry)
        self.pace = Gauge("fastvideo_steps_per_second", "denoising steps a second, of the last job", registry=registry)
        self.together = Histogram("fastvideo_batch_size", "jobs that were denoised together, for each job",
                                  buckets=TOGETHER, registry=registry)  # fmt: skip
        self.memory = Gauge("fastvideo_peak_memory_bytes", "most memory of the device, of the last job",
                            registry=registry)  # fmt: skip
        self.http = Histogram("fastvideo_http_seconds", "time of a request", ["method", "route", "status"],
                              buckets=HTTP_SECONDS, registry=registry)  # fmt: skip

    def text(self) -> bytes:
        """All of them, in the format that Prometheus reads."""
        return generate_latest(self.registry)
