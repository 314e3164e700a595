"""The layout of the studio, and which part of it calls what."""

from dataclasses import dataclass
from typing import Any

import gradio as gr
from fastapi import FastAPI

from fastvideo.entrypoints.serve.context import Server
from fastvideo.entrypoints.serve.protocols import Generator
from fastvideo.entrypoints.serve.settings import MB
from fastvideo.entrypoints.serve.studio import SETTINGS, Studio
from fastvideo.entrypoints.serve.studio_views import CSS, HEAD, Limits

TICK_SECONDS = 0.7
"""Between two looks at what has changed."""
CACHE = (600, 3600)
"""Seconds between two looks at the page's copies of files, and the age at which one is deleted."""
TOGGLE_DARK = "() => { document.body.classList.toggle('dark'); }"
PLAY_BOTH = """async () => {
    const videos = [...document.querySelectorAll('#compare video')];
    await Promise.all(videos.map((video) => video.readyState >= 2 ? null : new Promise((ready) => {
        video.addEventListener('loadeddata', ready, {once: true}); video.load(); })));
    for (const video of videos) { video.currentTime = 0; video.loop = true; video.muted = true; video.play(); } }"""
SHOW_QUEUE = """() => { if (innerWidth < 800 && !document.querySelector('#wrong p'))
    document.querySelector('#queue').scrollIntoView({block: 'start'}); }"""
"""On a phone the queue is below the settings."""
SHOW_PLAYER = "() => { document.querySelector('#player').scrollIntoView({block: 'nearest', behavior: 'smooth'}); }"
"""It is below the gallery."""
FONTS = ["system-ui", "sans-serif"]
"""Of the reader's system: the page loads nothing from elsewhere."""


@dataclass
class Media:
    """What the model may be shown and adapted with beside the prompt; what it does not take is not visible."""

    image: Any
    last_image: Any
    video: Any
    loras: Any
    strength: Any

    @property
    def all(self) -> list[Any]:
        """In the order of `Studio.make`."""
        return [self.image, self.last_image, self.video, self.loras, self.strength]


@dataclass
class Create:
    """The components of the first tab."""

    prompt: Any
    negative: Any
    media: Media
    fields: list[Any]
    """In the order of SETTINGS."""
    random_seed: Any
    make: Any
    wrong: Any
    queue: Any
    cancellable: Any
    cancel: Any
    latest: Any


@dataclass
class Gallery:
    """The components of the second tab."""

    pictures: Any
    player: Any
    about: Any
    again: Any
    delete: Any


@dataclass
class Compare:
    """The components of the third tab."""

    names: list[Any]
    players: list[Any]


def studio_app(server: Server, generator: Generator) -> FastAPI:
    """The page of a server whose model is loaded, as an application of its own."""
    studio = Studio(server)
    limits = Limits.of(server.plans, server.settings)
    keys = server.settings.needs_keys
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    gr.mount_gradio_app(
        app, build(studio, limits), path="/", auth=studio.log_in if keys else None,
        auth_message="The id of an API key (key_...), and the key itself." if keys else None,
        allowed_paths=[str(server.files.local or server.cache)], css=CSS, head=HEAD, footer_links=[],
        theme=theme(), show_error=False, ssr_mode=False,
        max_file_size=int(server.settings.max_upload_mb * MB),
    )  # fmt: skip
    return app


def theme() -> Any:
    """Gradio's own, with text and buttons that have the contrast of WCAG 2.2 AA: 4.5 to 1."""
    filled = {"button_primary_background_fill": "*primary_700", "button_primary_background_fill_hover": "*primary_800",
              "button_cancel_background_fill": "#b91c1c", "button_cancel_background_fill_hover": "#991b1b"}  # fmt: skip
    return gr.themes.Default(font=FONTS, font_mono=["ui-monospace", "monospace"]).set(
        body_text_color_subdued="*neutral_600", input_placeholder_color="*neutral_500",
        input_placeholder_color_dark="*neutral_400", block_info_text_color="*neutral_600",
        block_title_text_color="*neutral_700",
        **filled, **{f"{name}_dark": value for name, value in filled.items()},
    )  # fmt: skip


def build(studio: Studio, limits: Limits) -> gr.Blocks:
    """The page."""
    with gr.Blocks(title="FastVideo", analytics_enabled=False, delete_cache=CACHE) as page:
        with gr.Row(elem_id="head"):
            gr.Markdown(f"# FastVideo\n{studio.server.names[0]}")
            dark = gr.Button("Dark or light", size="sm", scale=0, min_width=140, elem_id="dark")
            dark.click(None, js=TOGGLE_DARK)
        with gr.Tabs(elem_id="tabs") as tabs:
            with gr.Tab("Create", id="create"):
                create = create_tab(studio.server, limits)
            with gr.Tab("Gallery", id="gallery"):
                gallery = gallery_tab()
            with gr.Tab("Compare", id="compare"):
                compare = compare_tab()
        connect(page, studio, create, gallery, compare, tabs)
    return page


def create_tab(server: Server, limits: Limits) -> Create:
    """What to make, and what is being made."""
    own = server.plans.default
    with gr.Row():
        with gr.Column(min_width=320):
            prompt = gr.Textbox(label="Prompt", lines=3, autofocus=True, elem_id="prompt",
                                placeholder="What should the video show?",
                                max_length=server.settings.max_prompt_characters)  # fmt: skip
            negative = gr.Textbox(label="Negative prompt", value=own.negative_prompt, elem_id="negative",
                                  info="What to steer away from. Needs guidance above 1.")  # fmt: skip
            media = media_fields(server)
            make = gr.Button("Make the video", variant="primary", elem_id="make")
            wrong = gr.HTML("", elem_id="wrong")
            with gr.Accordion("Settings", open=True):
                fields, random_seed = settings_fields(server, limits)
        with gr.Column(min_width=320):
            queue = gr.HTML(elem_id="queue", label="Queue")
            cancellable = gr.Radio([], label="Which to cancel", visible=False, elem_id="cancellable")
            cancel = gr.Button("Cancel", variant="stop", size="sm", visible=False, elem_id="cancel")
            latest = gr.Video(label="Newest video", interactive=False, loop=True, autoplay=True, elem_id="latest")
    return Create(prompt, negative, media, fields, random_seed, make, wrong, queue, cancellable, cancel, latest)


def media_fields(server: Server) -> Media:
    """Images, a video and LoRAs, as far as the model takes them and the operator offers them."""
    takes, needs, offered = server.plans.takes, server.plans.needs, list(server.settings.loras)

    def label(name: str, text: str) -> str:
        return text if name in needs else f"{text} (optional)"

    # as files: nothing here decodes them, and what is sent is what is kept
    images: dict[str, Any] = {"type": "filepath", "image_mode": None, "sources": ["upload", "clipboard"], "height": 220}
    with gr.Row(visible="image" in takes):
        image = gr.Image(label=label("image", "First frame"), visible="image" in takes, elem_id="image", **images)
        last = gr.Image(label=label("last_image", "Last frame"), visible="last_image" in takes, elem_id="last-image",
                        **images)  # fmt: skip
    video = gr.Video(label=label("video", "Video to work on"), sources=["upload"], visible="video" in takes, height=220,
                     elem_id="video")  # fmt: skip
    with gr.Row(visible=bool(offered)):
        loras = gr.Dropdown(offered, multiselect=True, value=[], label="LoRAs", visible=bool(offered), elem_id="loras")
        strength = gr.Slider(-2, 2, 1, step=0.05, label="Strength of the LoRAs", visible=bool(offered),
                             elem_id="lora-strength")  # fmt: skip
    return Media(image, last, video, loras, strength)


def settings_fields(server: Server, limits: Limits) -> tuple[list[Any], Any]:
    """The fields of SETTINGS in their order, and whether each video gets a new seed."""
    own = server.plans.default
    if {"image", "video"} & set(server.plans.takes):
        gr.Markdown(
            "Made from an image or a video, it keeps that one's proportions, with about as many pixels as here."
        )
    with gr.Row():
        width = gr.Slider(limits.pixels, limits.most_pixels, own.width, step=limits.pixels, label="Width")
        height = gr.Slider(limits.pixels, limits.most_pixels, own.height, step=limits.pixels, label="Height")
    with gr.Row():
        frames = gr.Slider(1, limits.most_frames, own.num_frames, step=limits.frames, label="Frames")
        fps = gr.Slider(1, 60, own.fps, step=1, label="Frames a second")
    with gr.Row():
        steps = gr.Slider(1, server.settings.max_steps, own.num_inference_steps, step=1, label="Steps",
                          elem_id="steps")  # fmt: skip
        guidance = gr.Slider(0, 15, own.guidance_scale, step=0.1, label="Guidance",
                             info="1 or less: none.")  # fmt: skip
    with gr.Row():
        seed = gr.Number(own.seed, label="Seed", precision=0, minimum=0, elem_id="seed", interactive=False)
        random_seed = gr.Checkbox(True, label="A new seed each time", elem_id="random-seed")
        random_seed.change(lambda on: gr.update(interactive=not on), [random_seed], [seed], show_progress="hidden")
    return [width, height, frames, fps, steps, guidance, seed], random_seed


def gallery_tab() -> Gallery:
    """All videos that are kept, and one of them at large."""
    pictures = gr.Gallery(label="Your videos", show_label=False, columns=5, height="auto", allow_preview=False,
                          interactive=False, buttons=[], elem_id="pictures")  # fmt: skip
    with gr.Row():
        player = gr.Video(label="Video", interactive=False, loop=True, elem_id="player")
        with gr.Column(min_width=280):
            about = gr.Markdown("Choose a video above.", elem_id="about")
            again = gr.Button("Use these settings again", variant="primary", elem_id="again")
            delete = gr.Button("Delete", variant="stop", elem_id="delete")
    return Gallery(pictures, player, about, again, delete)


def compare_tab() -> Compare:
    """Two videos side by side."""
    names, players = [], []
    with gr.Row(elem_id="compare"):
        for side in ("Left", "Right"):
            with gr.Column(min_width=280):
                names.append(gr.Dropdown([], label=side, elem_id=f"compare-{side.lower()}"))
                players.append(gr.Video(show_label=False, interactive=False, loop=True))
    gr.Button("Play both from the start", elem_id="play-both").click(None, js=PLAY_BOTH)
    return Compare(names, players)


def connect(page: gr.Blocks, studio: Studio, create: Create, gallery: Gallery, compare: Compare, tabs: gr.Tabs) -> None:
    """Who calls what."""
    ids, chosen = gr.State([]), gr.State(None)
    changing = {
        "fn": studio.tick, "inputs": [ids, create.cancellable], "show_progress": "hidden", "concurrency_limit": None,
        "outputs": [create.queue, create.cancellable, create.cancel, create.latest, gallery.pictures, ids,
                    *compare.names],
    }  # fmt: skip
    # after the first look: two at a time would both find everything new, and show it twice
    timer = gr.Timer(TICK_SECONDS, active=False)
    timer.tick(**changing)
    page.load(**changing).then(lambda: gr.Timer(active=True), None, [timer], show_progress="hidden")
    request = [create.prompt, create.negative, create.random_seed, *create.media.all, *create.fields]
    for trigger in (create.make.click, create.prompt.submit):
        trigger(studio.make, request, [create.wrong], show_progress="hidden").success(**changing).success(
            None, js=SHOW_QUEUE
        )
    create.cancel.click(studio.cancel, [create.cancellable], None, show_progress="hidden").success(**changing)
    looked_at = [chosen, gallery.player, gallery.about]
    gallery.pictures.select(studio.look, [ids], looked_at).success(None, js=SHOW_PLAYER)
    gallery.again.click(studio.again, [chosen], [*request, tabs])
    gallery.delete.click(studio.delete, [chosen], looked_at).success(**changing)
    for name, player in zip(compare.names, compare.players, strict=True):
        name.input(studio.compared, [name], [player], show_progress="hidden")


assert len(SETTINGS) == 7, "settings_fields gives one for each"
