"""A generator that makes frames at once, and a server around it."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import uvicorn

from fastvideo.configs.entries import ModelEntry
from fastvideo.configs.sample.base import MEDIA, SamplingParam
from fastvideo.entrypoints.media import write_video
from fastvideo.entrypoints.media_inputs import read_media
from fastvideo.entrypoints.serve.app import create_app
from fastvideo.entrypoints.serve.context import Server
from fastvideo.entrypoints.serve.settings import ServerSettings
from fastvideo.entrypoints.streaming import VideoChunk
from fastvideo.pipelines.pipeline_batch_info import Cancelled, CancelToken, Control, Progress

PACKAGE = "tests.serve.stand_in"
SMALL = {"height": 32, "width": 32, "num_frames": 5, "fps": 8, "num_inference_steps": 4, "guidance_scale": 3.0}
PATIENCE = 120.0
"""Seconds; the machine may have other things to do."""


class FromText(SamplingParam):
    """Of a model that takes nothing beside a prompt."""


class FromImage(SamplingParam):
    """Of a model that needs an image."""

    needs = ("image",)


class FromImages(SamplingParam):
    """Of a model that needs the first and the last frame."""

    needs = ("image", "last_image")


class FromFrames(SamplingParam):
    """Of a model that goes on from frames."""

    takes = ("start_video",)


class FromVideo(SamplingParam):
    """Of a model that takes videos and masks."""

    takes = ("video", "mask", "reference_images", "strength")


class FromAnything(SamplingParam):
    """Of a model that takes whatever there is."""

    takes = ("image", "last_image", "video", "mask", "strength", "guidance_scale_2")


class StandIn:
    """What a server needs of a `VideoGenerator`. A prompt that holds "fail" fails; `hold` keeps jobs at their step."""

    def __init__(self, kind: type[SamplingParam] = FromText, streams: bool = False) -> None:
        """`kind` says what the model needs and takes; one that `streams` has some frames after each step."""
        self.kind = kind
        self.entry = ModelEntry(name="stand-in", description="", pipeline_class="", pipeline="", pipeline_config="",
                                sampling=f"{PACKAGE}:{kind.__name__}", streams=streams)  # fmt: skip
        self.known: dict[str, str] = {}
        self.active_loras: Mapping[str, float] = {}
        self.shown: list[dict[str, Any]] = []
        """The media of each video."""
        self.adapted: list[dict[str, float]] = []
        """The LoRAs of each video."""
        self.go = threading.Event()
        self.go.set()
        self.pace = 0.0
        """Seconds of a step."""
        self.batches = False
        self.together: list[list[str]] = []
        """The prompts of requests that came together."""
        self.batch_size: int | None = None
        """What results say of that; None: how many came."""
        self.breaks: Exception | None = None
        """Ends requests that came together, after the first."""
        self.made: list[str] = []
        self.fields: list[dict[str, Any]] = []
        self.shut = False

    def check_request(self, prompt: str, sampling_param: SamplingParam | None = None, **fields: Any) -> SamplingParam:
        media = {name: fields.pop(name) for name in MEDIA if name in fields}
        sampling = SamplingParam(**SMALL)
        sampling.update(**fields)
        sampling.check()
        sampling.check_sizes(16, 4)
        sampling.check_inputs(tuple(media), self.kind)
        read_media(sampling, media)
        return sampling

    def set_lora_adapter(
        self, lora_nickname: str, lora_path: str | None = None, strength: float = 1.0, accumulate: bool = False
    ) -> None:
        assert (strength, accumulate) == (0, True)
        self.known[lora_nickname] = str(lora_path)

    def use_lora_adapters(self, strengths: Mapping[str, float]) -> None:
        assert set(strengths) <= set(self.known)
        self.active_loras = dict(strengths)

    def generate_video(
        self, prompt: str, sampling_param: SamplingParam | None = None, *,
        progress: Callable[[Progress], None] | None = None, cancel: CancelToken | None = None, preview_every: int = 0,
        on_chunk: Callable[[VideoChunk], None] | None = None, **fields: Any,
    ) -> Any:  # fmt: skip
        assert (on_chunk is None) == (not self.entry.streams or "images" in str(fields["output_path"]))
        sampling = self.check_request(prompt, **fields)
        self.shown.append({name: fields.pop(name) for name in MEDIA if name in fields})
        self.adapted.append(dict(self.active_loras))
        self.fields.append(fields)
        assert progress is not None
        assert cancel is not None
        control = Control(cancel=cancel, report=progress, preview_every=preview_every)
        frame = np.full((sampling.height, sampling.width, 3), sampling.seed % 256, np.uint8)
        parts = np.array_split(np.stack([frame] * sampling.num_frames), sampling.num_inference_steps)
        for step in control.steps("denoising", range(sampling.num_inference_steps), sampling.num_inference_steps,
                                  lambda: frame):  # fmt: skip
            time.sleep(self.pace)
            while not self.go.wait(0.01):
                control.check()
            if "fail" in prompt:
                raise FloatingPointError("NaN or infinity in the latents after step 1 of 4")
            if on_chunk is not None and len(parts[step]):
                on_chunk(VideoChunk(index=step, start=sum(map(len, parts[:step])), frames=parts[step]))
        for _ in control.steps("decoding", [1], 1):
            frames = [frame] * sampling.num_frames
        results = []
        for number in range(sampling.num_videos_per_prompt):
            path = Path(str(sampling.output_path).replace("images", f"images_{number}"))
            write_video(frames, path, sampling.fps, {"fastvideo": "test", "seed": sampling.seed})
            results.append(
                SimpleNamespace(
                    frames=frames, video_path=str(path), generation_time=0.1, peak_memory_mb=1.0, batch_size=1,
                    stage_times={"denoising": 0.1, "decoding": 0.01},
                )
            )  # fmt: skip
        self.made.append(prompt)
        return results if len(results) > 1 else results[0]

    def generate_videos(
        self, requests: Sequence[Mapping[str, Any]], *, return_exceptions: bool = False,
        on_result: Callable[[int, Any], None] | None = None,
    ) -> None:  # fmt: skip
        """One after the other."""
        assert return_exceptions
        assert on_result is not None
        self.together.append([request["prompt"] for request in requests])
        for number, request in enumerate(requests):
            try:
                result = self.generate_video(**request)
            except (Cancelled, FloatingPointError) as error:
                on_result(number, error)
                continue
            result.batch_size = self.batch_size or len(requests)
            on_result(number, result)
            if self.breaks is not None:
                raise self.breaks

    def shutdown(self) -> None:
        self.shut = True


class Running:
    """A server that answers."""

    def __init__(self, server: Server, model: StandIn, url: str, web: uvicorn.Server) -> None:
        self.server = server
        self.model = model
        self.url = url
        self.web = web


@contextmanager
def running(
    folder: Path, *, defaults: dict[str, Any] | None = None, model: StandIn | None = None, **settings: Any
) -> Iterator[Running]:
    """A server on a port of its own, whose model is loaded."""
    chosen = ServerSettings(**{"data_dir": str(folder), "studio": False, **settings})
    chosen.check()
    model = model or StandIn()
    server = Server(lambda: model, "stand-in", chosen, defaults)
    web = uvicorn.Server(uvicorn.Config(create_app(server), port=0, log_config=None, access_log=False,
                                        timeout_graceful_shutdown=5))  # fmt: skip
    thread = threading.Thread(target=web.run)
    thread.start()
    try:
        wait_until(lambda: web.started and (server.runner.generator or server.runner.failure))
        if server.runner.failure is not None:
            raise server.runner.failure
        port = web.servers[0].sockets[0].getsockname()[1]
        yield Running(server, model, f"http://127.0.0.1:{port}", web)
    finally:
        server.closing.set()
        web.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


def wait_until(true: Callable[[], object]) -> None:
    """Wait until something is so."""
    until = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < until, "it did not come to be"
        time.sleep(0.01)
