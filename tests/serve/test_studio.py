"""The studio in a real browser, headless: what a person does there."""

import importlib.util
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from fastvideo.entrypoints.cli.main import main
from fastvideo.entrypoints.serve.keys import add_key
from tests.serve.stand_in import FromImage, FromImages, FromText, FromVideo, Running, StandIn, running, wait_until
from tests.serve.test_jobs import post, state_of
from tests.serve.test_references import picture

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not CHROMIUM.exists()
        or importlib.util.find_spec("playwright") is None
        or importlib.util.find_spec("gradio") is None,
        reason="needs Chromium, Playwright and Gradio",
    ),
]
WIDE = {"width": 1280, "height": 900}
PHONE = {"width": 390, "height": 844}
TIMEOUT_MS = 60_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield made
        made.close()


def wait_for_page(made: Running) -> None:
    """Wait until the studio is there."""
    with httpx.Client(base_url=made.url) as web:
        while web.get("/").status_code == 503:
            time.sleep(0.3)
        assert web.get("/").status_code == 200


@contextmanager
def visiting(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """A page of the browser at the studio."""
    context = browser.new_context(**{"viewport": WIDE, **options})
    context.set_default_timeout(TIMEOUT_MS)
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#prompt textarea")
    yield page
    context.close()


def plays(page: Any, selector: str) -> bool:
    """Whether a video moves: its time advances."""
    page.wait_for_selector(f"{selector} video")
    page.evaluate(f"() => {{ const v = document.querySelector('{selector} video'); v.muted = true; v.play(); }}")
    first = page.evaluate(f"() => document.querySelector('{selector} video').currentTime")
    page.wait_for_function(f"first => document.querySelector('{selector} video').currentTime != first", arg=first)
    return True


def test_a_video_from_prompt_to_gallery(browser: Any, tmp_path: Path) -> None:
    with running(tmp_path, studio=True, preview_every=1) as made, httpx.Client(base_url=made.url) as web:
        wait_for_page(made)
        asked: list[str] = []
        with visiting(browser, made.url) as page:
            page.on("request", lambda request: asked.append(request.url))
            made.model.go.clear()
            page.fill("#prompt textarea", "a <b>red</b> kite")
            page.click("#make")
            page.wait_for_selector(".job progress")
            assert page.inner_text(".job .prompt") == "a <b>red</b> kite", "a prompt is text and no page"
            before = float(page.get_attribute(".job progress", "value"))
            made.model.go.set()
            assert plays(page, "#latest")
            (job,) = web.get("/v1/videos").json()["data"]
            assert (job["prompt"], job["status"], job["size"]) == ("a <b>red</b> kite", "completed", "32x32")
            assert before < 100

            # one that is cancelled
            made.model.go.clear()
            page.fill("#prompt textarea", "to be cancelled")
            page.press("#prompt textarea", "Shift+Enter")
            page.wait_for_selector(".job")
            page.click("#cancel")
            page.wait_for_selector(".job", state="detached")
            last = web.get("/v1/videos").json()["data"][0]
            assert (last["prompt"], last["error"]["code"]) == ("to be cancelled", "cancelled")
            made.model.go.set()

            # all of it is there after a reload
            page.reload()
            page.get_by_role("tab", name="Gallery").click()
            page.locator("#pictures button img").first.click()
            assert plays(page, "#player")
            assert f"Seed: {job['seed']}" in page.inner_text("#about")
            page.click("#again")
            page.wait_for_function("() => document.querySelector('#prompt textarea').value.includes('kite')")
            assert page.input_value("#seed input") == str(job["seed"])
            assert not page.is_checked("#random-seed input")
        hosts = {re.sub(r"^\w+://([^/]*)/.*", r"\1", url) for url in asked if not url.startswith(("data:", "blob:"))}
        assert hosts == {made.url.removeprefix("http://")}, "the page asks nobody else"


def test_progress_moves_and_shows_previews(browser: Any, tmp_path: Path) -> None:
    with running(tmp_path, studio=True, preview_every=1) as made:
        wait_for_page(made)
        with visiting(browser, made.url) as page:
            made.model.pace = 1.2
            page.fill("#prompt textarea", "kite")
            page.click("#make")
            seen: list[int] = []
            pictures = 0

            def look() -> bool:
                nonlocal pictures
                # in one look: a moment later the job may be done, and its bar gone
                now = page.evaluate("() => document.querySelector('.job progress')?.value ?? null")
                if now is not None:
                    seen.append(int(now))
                    pictures += page.locator(".job img[src^='data:image/jpeg']").count()
                return page.locator("#latest video").count() > 0

            wait_until(look)
            assert len(set(seen)) >= 3, seen
            assert sorted(seen) == seen
            assert pictures > 0


def test_compare_plays_both(browser: Any, tmp_path: Path) -> None:
    with running(tmp_path, studio=True) as made, httpx.Client(base_url=made.url) as web:
        ids = [post(web, prompt, seed=n).json()["id"] for n, prompt in enumerate(("first one", "second one"))]
        wait_for_page(made)
        wait_until(lambda: state_of(web, ids[1]) == "completed")
        with visiting(browser, made.url) as page:
            page.get_by_role("tab", name="Compare").click()
            for side, name in (("left", "first one"), ("right", "second one")):
                page.click(f"#compare-{side} input")
                page.get_by_role("option", name=name).click()
                # the list fades out, and the next one has the same names
                page.wait_for_function("() => !document.querySelector('[role=option]')")
            page.wait_for_function("() => document.querySelectorAll('#compare video').length == 2")
            page.click("#play-both")
            page.wait_for_function(
                "() => [...document.querySelectorAll('#compare video')].every(v => !v.paused && v.currentTime > 0)"
            )
            sources = page.evaluate("() => [...document.querySelectorAll('#compare video')].map(v => v.src)")
            assert [job_id in source for job_id, source in zip(ids, sources, strict=True)] == [True, True]


def test_an_image_and_loras(browser: Any, tmp_path: Path) -> None:
    """A model that starts from an image, and offers LoRAs: both are chosen, and are there again afterwards."""
    (tmp_path / "in.png").write_bytes(picture(64, 32))
    (tmp_path / "bad.png").write_bytes(picture(64, 32)[:60])
    loras = {"ink": "/models/ink", "clay": "/models/clay"}
    with (
        running(tmp_path / "data", studio=True, model=StandIn(FromImage), loras=loras) as made,
        httpx.Client(base_url=made.url) as web,
    ):
        wait_for_page(made)
        with visiting(browser, made.url) as page:
            page.fill("#prompt textarea", "a kite")
            page.click("#make")
            page.get_by_text("the image or video is missing").wait_for()
            page.set_input_files("#image input[type=file]", tmp_path / "in.png")
            page.wait_for_selector("#image img")
            page.click("#loras input")
            page.get_by_role("option", name="clay").click()
            page.keyboard.press("Escape")
            page.click("#make")
            assert plays(page, "#latest")
            assert made.model.shown[0]["image"].shape == (32, 64, 3)
            assert made.model.adapted == [{"clay": 1.0}]
            (job,) = web.get("/v1/videos").json()["data"]
            assert (job["size"], job["loras"]) == ("32x16", [{"name": "clay", "strength": 1.0}])

            page.reload()
            page.get_by_role("tab", name="Gallery").click()
            page.locator("#pictures button img").first.click()
            page.get_by_text("clay at 1").wait_for()
            page.click("#again")
            page.wait_for_selector("#image img")
            page.click("#make")
            wait_until(lambda: len(made.model.shown) == 2)
            assert (made.model.shown[1]["image"] == made.model.shown[0]["image"]).all()
            assert made.model.adapted[1] == {"clay": 1.0}


def test_what_a_model_takes_is_there_and_nothing_else(browser: Any, tmp_path: Path) -> None:
    for kind, there in ((FromText, []), (FromImages, ["image", "last-image"]), (FromVideo, ["video"])):
        with running(tmp_path / kind.__name__, studio=True, model=StandIn(kind)) as made:
            wait_for_page(made)
            with visiting(browser, made.url) as page:
                names = ("image", "last-image", "video", "loras", "lora-strength")
                assert [name for name in names if page.locator(f"#{name}").is_visible()] == there


def test_a_stream_plays_while_it_grows(browser: Any, tmp_path: Path) -> None:
    # players begin when they expect to get to the end without a stop, so frames have to come about as fast as they show
    with (
        running(tmp_path, model=StandIn(streams=True), max_size_factor=100.0) as made,
        httpx.Client(base_url=made.url) as web,
    ):
        made.model.pace = 1.5
        job = post(web, num_frames=97, fps=8, num_inference_steps=16).json()["id"]
        context = browser.new_context(viewport=WIDE)
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.goto(f"{made.url}/v1/videos/{job}/stream", wait_until="commit")
        page.wait_for_function("() => { const v = document.querySelector('video'); return v && v.currentTime > 0.3 }")
        assert state_of(web, job) == "in_progress"
        wait_until(lambda: state_of(web, job) == "completed")
        page.wait_for_function("() => document.querySelector('video').ended")
        assert page.evaluate("() => document.querySelector('video').currentTime") == pytest.approx(97 / 8, abs=0.3)
        context.close()


def test_on_a_phone_in_the_dark_and_by_keyboard(browser: Any, tmp_path: Path) -> None:
    with running(tmp_path, studio=True) as made:
        wait_for_page(made)
        with visiting(browser, made.url, viewport=PHONE, color_scheme="dark") as page:
            assert page.evaluate("() => document.documentElement.scrollWidth") <= PHONE["width"]
            assert page.evaluate("() => document.body.classList.contains('dark')")
            page.click("#dark")
            assert not page.evaluate("() => document.body.classList.contains('dark')")
            page.focus("#prompt textarea")
            page.keyboard.type("typed")
            for _ in range(3):
                page.keyboard.press("Tab")
                if page.evaluate("() => document.activeElement.id") == "make":
                    break
            page.keyboard.press("Enter")
            wait_until(lambda: made.model.made == ["typed"])


def test_what_cannot_be_made_is_said(browser: Any, tmp_path: Path) -> None:
    with running(tmp_path, studio=True) as made:
        wait_for_page(made)
        with visiting(browser, made.url) as page:
            page.click("#make")
            page.get_by_role("alert").get_by_text("Say what the video should show.").wait_for()
            assert made.model.made == []
            page.fill("#prompt textarea", "this will fail")
            page.click("#make")
            page.get_by_text("Failed: NaN or infinity in the latents").wait_for()
            assert page.inner_text(".job.failed .prompt") == "this will fail", "it does not just disappear"
            assert not page.get_by_role("alert").get_by_text("Say what").is_visible()


def contrast(page: Any, selector: str) -> float:
    """Of the text of a filled element with its background, by WCAG 2.2."""
    found: float = page.evaluate(
        """selector => {
            const of = color => { const [r, g, b] = color.match(/[0-9.]+/g).slice(0, 3).map(Number).map(v => v / 255)
                .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
            const style = getComputedStyle(document.querySelector(selector));
            const [a, b] = [of(style.color), of(style.backgroundColor)].sort((a, b) => b - a);
            return (a + 0.05) / (b + 0.05); }""",
        selector,
    )
    return found


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_buttons_can_be_read(browser: Any, tmp_path: Path, scheme: str) -> None:
    with running(tmp_path, studio=True) as made:
        wait_for_page(made)
        with visiting(browser, made.url, color_scheme=scheme) as page:
            assert contrast(page, "#make") > 4.5
            assert page.locator("#seed input").is_disabled(), "each video has a new one"
            page.uncheck("#random-seed input")
            page.wait_for_function("() => !document.querySelector('#seed input').disabled")
            page.get_by_role("tab", name="Gallery").click()
            page.wait_for_selector("#delete")
            assert min(contrast(page, "#delete"), contrast(page, "#again")) > 4.5


def test_with_keys_people_log_in_and_see_their_own(browser: Any, tmp_path: Path) -> None:
    with running(tmp_path, studio=True, api_keys=True) as made, httpx.Client(base_url=made.url) as web:
        (mine, key), (_, other) = (add_key(made.server.store, name, ("read", "write")) for name in ("me", "you"))
        for prompt, owner in (("of mine", key), ("of another", other)):
            assert post(web, prompt, headers={"Authorization": f"Bearer {owner}"}).status_code == 200
        wait_for_page(made)
        wait_until(lambda: len(made.model.made) == 2)
        context = browser.new_context(viewport=WIDE)
        context.set_default_timeout(TIMEOUT_MS)
        page = context.new_page()
        page.goto(made.url)
        page.get_by_label("username").fill(mine)
        page.get_by_label("password").fill(key)
        page.get_by_role("button", name="Login").click()
        page.wait_for_selector("#prompt textarea")
        page.get_by_role("tab", name="Gallery").click()
        page.locator("#pictures button img").first.wait_for()
        assert page.locator("#pictures button img").count() == 1
        assert "of mine" in page.inner_text("#pictures")
        context.close()
        refused = web.post("/login", data={"username": mine, "password": other})
        assert refused.status_code == 400


def test_without_the_package_it_is_refused_or_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == "gradio" else real(name, *more)
    )
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--server.studio", "true", "--server.port", "0"]) == 1
    assert "studio=True: gradio is needed; pip install 'fastvideo[studio]'" in capsys.readouterr().err
    with running(tmp_path / "other", studio=None) as made:
        assert httpx.get(made.url).status_code == 404
