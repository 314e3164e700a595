"""The studio: a page for people at `/`, with Gradio, in the same server.

It calls what the API calls, so a video that was made here is one there, and the other way round.
"""

import secrets
import time
from pathlib import Path
from typing import Any

import gradio as gr

from fastvideo.entrypoints.serve.context import Server
from fastvideo.entrypoints.serve.errors import ApiError
from fastvideo.entrypoints.serve.intake import PREFIX
from fastvideo.entrypoints.serve.keys import ANYBODY, Caller, caller_of, find_caller
from fastvideo.entrypoints.serve.records import COMPLETED, FAILED, OPEN, QUEUED, RUNNING, Job
from fastvideo.entrypoints.serve.references import Reference, looked_at
from fastvideo.entrypoints.serve.requests import VideoRequest
from fastvideo.entrypoints.serve.studio_views import caption, details, queue_html, wrong_html

SHOWN = 60
"""Jobs on the page."""
FAILED_SECONDS = 600.0
"""How long one that failed is shown beside those that wait."""
SETTINGS = ("width", "height", "num_frames", "fps", "num_inference_steps", "guidance_scale", "seed")
"""Sampling parameters with a field on the page, in its order."""


class Studio:
    """What happens on the page. Each method takes what the page shows, and gives what it shall show."""

    def __init__(self, server: Server) -> None:
        self.server = server

    def caller(self, request: gr.Request) -> Caller:
        """Who sits before the page."""
        if not self.server.settings.needs_keys:
            return ANYBODY
        found = caller_of(self.server.store, str(request.username or ""))
        if found is None:
            raise gr.Error("this API key is not valid any more")
        return found

    def log_in(self, user: str, password: str) -> bool:
        """Whether `password` is the key whose id is `user`."""
        try:
            caller = find_caller(self.server.store, f"Bearer {password}")
        except ApiError:
            return False
        return caller.owner == user.strip() and caller.may("read")

    def make(
        self, request: gr.Request, prompt: str, negative: str, random_seed: bool, image: str | None, last: str | None,
        video: str | None, loras: list[str] | None, strength: float, *settings: Any,
    ) -> str:  # fmt: skip
        """Queue a video; gives what is wrong, if something is. Images and videos are files that the page has taken in;
        it gives no others."""
        values = dict(zip(SETTINGS, settings, strict=True))
        width, height = (int(values.pop(name)) for name in ("width", "height"))
        guidance = float(values.pop("guidance_scale"))
        fields: dict[str, Any] = {name: int(value) for name, value in values.items() if value is not None}
        if random_seed:
            fields["seed"] = self.new_seed()
        if negative.strip() and guidance > 1:
            fields["negative_prompt"] = negative
        if loras:
            fields["loras"] = [{"name": name, "strength": strength} for name in loras]
        try:
            caller = self.caller(request)
            caller.require("write")
            if not prompt.strip():
                raise ApiError(400, "say what the video should show")
            given = self.given({"input_reference": image or video, "last_frame": last})
            if given and video and not image:
                for name in ("num_frames", "fps"):  # of the video
                    del fields[name]
            asked = VideoRequest(prompt=prompt, size=f"{width}x{height}", guidance_scale=guidance, **fields)
            self.server.submit(self.server.plans.video(asked, given), caller)
        except ApiError as error:
            return wrong_html(in_words(error))
        return ""

    def given(self, paths: dict[str, str | None]) -> dict[str, Reference]:
        """The images and videos that a person chose, by the field of a request.

        Raises:
            ApiError: 400; one is not what it should be.
        """
        server = self.server
        return {
            name: looked_at(Path(path).read_bytes(), name, server.plans.kinds(name), server.settings)
            for name, path in paths.items() if path
        }  # fmt: skip

    @staticmethod
    def new_seed() -> int:
        """A seed that nobody chose."""
        return secrets.randbelow(2**31)

    def jobs(self, request: gr.Request) -> list[Job]:
        """The caller's jobs, the newest first."""
        return self.server.store.page(self.caller(request).sees, after=None, limit=SHOWN, ascending=False)

    def tick(self, request: gr.Request, ids: list[str], picked: str | None) -> list[Any]:
        """What has changed since the last look at the gallery's `ids`: queue, jobs to cancel and the button for it,
        newest video, gallery, its ids, and the names of what can be compared, twice."""
        found = self.jobs(request)
        waiting = [job for job in found if job.state in OPEN]
        words = {QUEUED: "waits", RUNNING: "runs"}
        choices = [(f"{caption(job)} ({words[job.state]})", job.id) for job in reversed(waiting)]
        still = picked if picked in [job.id for job in waiting] else (waiting[-1].id if waiting else None)
        shown = [self.server.show(job) for job in waiting]
        previews = {job.id: (self.server.hub.latest(job.id) or {}).get("preview", "") for job in waiting}
        done = [job for job in found if job.state == COMPLETED]
        now = [job.id for job in done]
        since = time.time() - FAILED_SECONDS
        failed = [self.server.show(job) for job in found if job.state == FAILED and (job.ended_at or 0) > since]
        queue, radio = (
            queue_html(shown, previews, failed),
            gr.update(choices=choices, value=still, visible=len(waiting) > 1),
        )
        button = gr.update(visible=bool(waiting))
        if now == ids:
            return [queue, radio, button, gr.skip(), gr.skip(), gr.skip(), gr.skip(), gr.skip()]
        newest = self.path(done[0], "video") if done else None
        pictures = [(self.path(job, "thumbnail"), caption(job)) for job in done]
        names = gr.update(choices=[(caption(job), job.id) for job in done])
        return [queue, radio, button, gr.update(value=newest), pictures, now, names, names]

    def path(self, job: Job, part: str) -> str | None:
        """A file of a job, on this machine."""
        name = job.files[part]["name"]
        local = self.server.files.path(name)
        if local is None:
            local = self.server.files.fetched(name, self.server.cache)
        return str(local) if local.is_file() else None

    def get(self, request: gr.Request, job_id: str | None) -> Job:
        """A job of the caller's.

        Raises:
            gr.Error: none was chosen, or it is gone.
        """
        if not job_id:
            raise gr.Error("choose a video in the gallery first")
        try:
            return self.server.job(job_id, self.caller(request))
        except ApiError as error:
            raise gr.Error(error.message) from None

    def cancel(self, request: gr.Request, job_id: str | None) -> None:
        """Cancel a job of the caller's."""
        if not job_id:
            raise gr.Error("nothing waits or runs")
        job = self.get(request, job_id)
        self.caller(request).require("write")
        self.server.runner.cancel(job.id)

    def look(self, request: gr.Request, ids: list[str], event: gr.SelectData) -> list[Any]:
        """The video that was chosen in the gallery: its id, its file, what it was made from."""
        job = self.get(request, ids[int(event.index)])
        return [job.id, self.path(job, "video"), details(self.server.show(job))]

    def again(self, request: gr.Request, job_id: str | None) -> list[Any]:
        """The settings of a video, for the fields of the page: prompt, negative prompt, no random seed, what it was
        made from, the rest."""
        job = self.get(request, job_id)
        sampling, parts = job.sampling, [PREFIX + name for name in ("image", "last_image", "video")]
        shown = [self.path(job, part) if part in job.files else None for part in parts]
        loras = [lora for lora in sampling.get("loras", []) if lora["name"] in self.server.settings.loras]
        strength = loras[0]["strength"] if loras else 1.0
        return [job.prompt, sampling["negative_prompt"], False, *shown, [lora["name"] for lora in loras], strength,
                *(sampling[name] for name in SETTINGS), gr.Tabs(selected="create")]  # fmt: skip

    def delete(self, request: gr.Request, job_id: str | None) -> list[Any]:
        """Delete a video; nothing is looked at then."""
        job = self.get(request, job_id)
        self.caller(request).require("write")
        self.server.delete(job)
        return [None, None, ""]

    def compared(self, request: gr.Request, job_id: str | None) -> str | None:
        """The file of one side."""
        return self.path(self.get(request, job_id), "video") if job_id else None


def in_words(error: ApiError) -> str:
    """What is wrong, with the names of the page in place of those of the API."""
    words = {"input_reference": "the image or video", "last_frame": "the last frame", "loras": "LoRAs"}
    name = error.param or ""
    return error.message.replace(f"{name}:", words[name], 1) if name in words else error.message
