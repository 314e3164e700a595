"""How the studio shows things."""

import html
from dataclasses import dataclass
from typing import Any

from fastvideo.entrypoints.serve.planner import Planner
from fastvideo.entrypoints.serve.records import Job
from fastvideo.entrypoints.serve.settings import ServerSettings

CAPTION = 60
"""Characters of a prompt in a list."""

CSS = """
.gradio-container { max-width: 1280px !important; margin: 0 auto !important; }
.gradio-container, .gradio-container main { width: 100% !important; }
#head { align-items: center; }
.job { border: 1px solid var(--border-color-primary); border-radius: 8px; padding: 10px; margin: 6px 0;
       display: flex; gap: 12px; align-items: center; }
.job .picture { width: 96px; height: 96px; object-fit: contain; border-radius: 6px; background: #8883; flex: none; }
.job.failed { border-color: #b91c1c; }
.wrong { color: #b91c1c; font-weight: 600; margin: 0; }
.dark .wrong { color: #fca5a5; }
#wrong:not(:has(p)) { display: none; }
#queue, #wrong, #queue .html-container, #wrong .html-container { padding: 0 !important; }
.job .about { flex: 1; min-width: 0; }
.job .prompt { font-weight: 600; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.job progress { width: 100%; height: 14px; appearance: none; border: 0; border-radius: 7px; overflow: hidden;
                background: var(--border-color-primary); accent-color: var(--color-accent); }
.job progress::-webkit-progress-bar { background: var(--border-color-primary); }
.job progress::-webkit-progress-value { background: var(--color-accent); }
.job progress::-moz-progress-bar { background: var(--color-accent); }
video { max-height: 70vh; }
#pictures .grid-wrap { max-height: 60vh; }
#about code { white-space: normal; overflow-wrap: anywhere; }
#compare input { text-overflow: ellipsis; padding-right: 28px; }
button[role=tab][aria-selected=true] { color: var(--primary-700) !important; }
.dark button[role=tab][aria-selected=true] { color: var(--primary-400) !important; }
button:focus-visible, input:focus-visible, textarea:focus-visible, [role=tab]:focus-visible {
    outline: 3px solid var(--color-accent) !important; outline-offset: 2px; }
@media (max-width: 640px) {
    .gradio-container, .gradio-container main { padding: 8px !important; }
    .job .picture { width: 64px; height: 64px; } }
"""
HEAD = '<meta name="viewport" content="width=device-width, initial-scale=1">'


@dataclass(frozen=True)
class Limits:
    """What sizes the page offers: those that the model can make, and the operator allows."""

    pixels: int
    """Width and height are multiples of it."""
    frames: int
    """Frames are one more than a multiple of it."""
    most_pixels: int
    most_frames: int

    @classmethod
    def of(cls, planner: Planner, settings: ServerSettings) -> "Limits":
        """From the steps in which the model makes sizes, and its default."""
        default, pixels, frames, room = planner.default, planner.multiple, planner.frame_step, settings.max_size_factor
        side = int(max(default.width, default.height) * min(room, 2))
        most_frames = int(default.num_frames * min(room, 3))
        return cls(pixels, frames, side // pixels * pixels, (most_frames - 1) // frames * frames + 1)


def caption(job: Job) -> str:
    """A job in a line."""
    text = " ".join(job.prompt.split())
    return text if len(text) <= CAPTION else text[: CAPTION - 1] + "…"


def queue_html(shown: list[dict[str, Any]], previews: dict[str, str], failed: list[dict[str, Any]]) -> str:
    """Jobs that failed lately, and those that wait or run, the next first, as the API shows them."""
    if not shown and not failed:
        return '<p role="status">Nothing waits. What you make is in the gallery.</p>'
    cards = [_failed_html(job) for job in failed]
    cards += [_job_html(job, previews.get(job["id"], "")) for job in reversed(shown)]
    return f'<div role="status" aria-live="polite">{"".join(cards)}</div>'


def wrong_html(message: str) -> str:
    """What is wrong with a request, where it is made."""
    return f'<p class="wrong" role="alert">{html.escape(message[:1].upper() + message[1:])}.</p>'


def _failed_html(job: dict[str, Any]) -> str:
    return (
        f'<div class="job failed" data-id="{html.escape(job["id"])}"><div class="about">'
        f'<div class="prompt">{html.escape(job["prompt"][:200])}</div>'
        f'<p class="wrong">Failed: {html.escape(job["error"]["message"])}</p></div></div>'
    )


def _job_html(job: dict[str, Any], preview: str) -> str:
    left = job.get("seconds_left")
    if job["status"] == "queued":
        ahead = job.get("position", 0)
        state = f"waits, {ahead} ahead" if ahead else "waits, the next one"
    elif job.get("stage"):
        state = f"{job['stage']}, step {job['step']} of {job['total']}"
        state += "" if left is None else f", about {left:.0f} s left"
    else:
        state = "begins"
    # a preview is a data URL that the server made; a prompt is whatever somebody wrote
    picture = '<div class="picture" aria-hidden="true"></div>'
    if preview:
        picture = f'<img class="picture" alt="preview" src="{html.escape(preview)}">'
    return (
        f'<div class="job" data-id="{html.escape(job["id"])}">{picture}<div class="about">'
        f'<div class="prompt">{html.escape(job["prompt"][:200])}</div>'
        f'<progress max="100" value="{job["progress"]}" aria-label="progress"></progress>'
        f'<div class="state">{job["progress"]}% · {html.escape(state)}</div></div></div>'
    )


def details(video: dict[str, Any]) -> str:
    """What a video was made from, as Markdown without any of the prompt's own."""
    rows = {
        "Size": f"{video['size']}, {video['num_frames']} frames, {video['fps']} a second ({video['seconds']} s)",
        "Steps": video["num_inference_steps"],
        "Guidance": video["guidance_scale"],
        "Seed": video["seed"],
        "Made in": f"{video.get('generation_seconds', 0):.1f} s",
        "Id": f"`{video['id']}`",
    }
    if video.get("loras"):
        rows["LoRAs"] = ", ".join(f"{lora['name']} at {lora['strength']:g}" for lora in video["loras"])
    prompt = "\n".join(f"    {line}" for line in video["prompt"].splitlines())
    return f"{prompt}\n\n" + "\n".join(f"- **{name}**: {value}" for name, value in rows.items())
