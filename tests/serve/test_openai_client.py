"""The official `openai` package, unmodified, against the server."""

import base64
import io
import json
from pathlib import Path

import httpx
import openai
import pytest
from PIL import Image

from fastvideo.entrypoints.media import read_frames, read_metadata
from fastvideo.entrypoints.serve.body import unflattened
from fastvideo.entrypoints.serve.errors import ApiError
from tests.serve.stand_in import Running, running, wait_until

pytestmark = pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")


def test_create_and_poll_and_download(client: openai.OpenAI, tmp_path: Path) -> None:
    video = client.videos.create_and_poll(prompt="a red kite", size="48x32", poll_interval_ms=20)  # type: ignore[arg-type]
    assert (video.status, video.progress, video.object, video.error) == ("completed", 100, "video", None)
    assert (video.size, video.seconds, video.model, video.prompt) == ("48x32", "0.625", "stand-in", "a red kite")
    assert video.completed_at is not None
    assert video.expires_at == video.completed_at + 168 * 3600
    file = tmp_path / "clip.mp4"
    client.videos.download_content(video.id).write_to_file(file)
    assert read_frames(file).shape == (5, 32, 48, 3)
    assert read_metadata(file)["seed"] == 1024
    for variant, kind, size in (("thumbnail", "WEBP", (48, 32)), ("spritesheet", "JPEG", (192, 64))):
        picture = client.videos.download_content(video.id, variant=variant).read()  # type: ignore[arg-type]
        with Image.open(io.BytesIO(picture)) as image:
            assert (image.format, image.size) == (kind, size)


def test_create_takes_our_fields_too(client: openai.OpenAI, served: Running) -> None:
    own = {"negative_prompt": "blurry", "num_frames": 9, "fps": 12, "num_inference_steps": 2, "guidance_scale": 2.5,
           "seed": 7}  # fmt: skip
    video = client.videos.create(prompt="kite", extra_body=own)
    done = client.videos.poll(video.id, poll_interval_ms=20)
    shown = done.model_dump()
    assert {name: shown[name] for name in own} == own
    used = next(fields for fields in served.model.fields if fields["seed"] == 7)
    assert {name: used[name] for name in own} == own


def test_the_client_comes_first_then_the_operator_then_the_model(tmp_path: Path) -> None:
    operator = {"num_inference_steps": 3, "seed": 9}
    with running(tmp_path, defaults=operator) as made, httpx.Client(base_url=made.url) as web:
        names = ("num_inference_steps", "seed", "fps")
        cases = (({}, [3, 9, 8]), ({"seed": 1}, [3, 1, 8]), ({"num_inference_steps": 2, "fps": 4}, [2, 9, 4]))
        for wrote, came in cases:
            shown = web.post("/v1/videos", json={"prompt": "kite", **wrote}).json()
            assert [shown[name] for name in names] == came


def test_json_and_multipart_are_the_same(client: openai.OpenAI, web: httpx.Client) -> None:
    fields = {"prompt": "kite", "seconds": "1", "seed": 3}
    as_json = web.post("/v1/videos", json=fields).json()
    as_form = web.post("/v1/videos", data=fields, files={}).json()
    as_parts = web.post("/v1/videos", files={name: (None, str(value)) for name, value in fields.items()}).json()
    for made in (as_json, as_form, as_parts):
        assert (made["num_frames"], made["seconds"], made["seed"]) == (9, "1.125", 3), made


def test_list_pages(client: openai.OpenAI) -> None:
    made = [client.videos.create(prompt=f"number {n}").id for n in range(5)]
    wait_until(lambda: client.videos.retrieve(made[-1]).status == "completed")
    listed = [video.id for video in client.videos.list(limit=2)]
    assert listed[:5] == made[::-1]
    assert len(listed) == len(set(listed))
    assert [video.id for video in client.videos.list(limit=3, order="asc")] == listed[::-1]
    page = client.videos.list(limit=2, after=made[3])
    assert [video.id for video in page.data] == [made[2], made[1]]
    assert page.has_more
    assert page.last_id == made[1]


def test_remix(client: openai.OpenAI) -> None:
    first = client.videos.create_and_poll(prompt="a cat", extra_body={"seed": 11}, poll_interval_ms=20)
    second = client.videos.remix(first.id, prompt="a dog")
    assert second.remixed_from_video_id == first.id
    done = client.videos.poll(second.id, poll_interval_ms=20)
    assert (done.prompt, done.model_dump()["seed"], done.status) == ("a dog", 11, "completed")


def test_delete(client: openai.OpenAI, served: Running) -> None:
    video = client.videos.create_and_poll(prompt="kite", poll_interval_ms=20)
    assert any(name.startswith(video.id) for name in served.server.files.names())
    gone = client.videos.delete(video.id)
    assert (gone.deleted, gone.object, gone.id) == (True, "video.deleted", video.id)
    assert not any(name.startswith(video.id) for name in served.server.files.names())
    with pytest.raises(openai.NotFoundError):
        client.videos.retrieve(video.id)


def test_a_job_that_fails(client: openai.OpenAI) -> None:
    video = client.videos.create_and_poll(prompt="this will fail", poll_interval_ms=20)
    assert video.status == "failed"
    assert video.error is not None
    assert (video.error.code, video.error.message[:15]) == ("not_finite", "NaN or infinity")
    with pytest.raises(openai.NotFoundError, match="there is no file"):
        client.videos.download_content(video.id)


def test_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["stand-in"]
    assert client.models.retrieve("stand-in").object == "model"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("sora-2")


def test_images(client: openai.OpenAI) -> None:
    made = client.images.generate(prompt="a red kite", n=2, size="48x32", response_format="b64_json")  # type: ignore[call-overload]
    assert len(made.data) == 2
    for image in made.data:
        with Image.open(io.BytesIO(base64.b64decode(image.b64_json))) as picture:
            assert (picture.format, picture.size) == ("PNG", (48, 32))
    assert all(video.id.startswith("video_") for video in client.videos.list(limit=100))


@pytest.mark.parametrize("method", ["edit", "extend"])
def test_what_the_model_cannot_do(client: openai.OpenAI, method: str) -> None:
    more = {"seconds": "4"} if method == "extend" else {}
    with pytest.raises(openai.BadRequestError, match=f"cannot {method} videos") as refused:
        getattr(client.videos, method)(prompt="kite", video=io.BytesIO(b"no video"), **more)
    assert (refused.value.param, refused.value.code) == ("video", "unsupported_by_model")


def test_an_image_is_refused_by_a_model_that_takes_none(client: openai.OpenAI, web: httpx.Client) -> None:
    with pytest.raises(openai.BadRequestError, match="takes no image") as refused:
        client.videos.create(prompt="kite", input_reference=io.BytesIO(b"not even an image"))
    assert refused.value.param == "input_reference"
    answer = web.post("/v1/videos", json={"prompt": "x", "input_reference": {"image_url": "http://127.0.0.1/a.png"}})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input_reference")


BAD = [
    ("size", {"size": "33x32"}),
    ("size", {"size": "wide"}),
    ("size", {"size": "9600x9600"}),
    ("num_frames", {"num_frames": 6}),
    ("num_frames", {"num_frames": 4001}),
    ("num_frames", {"num_frames": "many"}),
    ("seconds", {"seconds": "never"}),
    ("seconds", {"seconds": "100"}),
    ("seconds", {"seconds": "1", "num_frames": 5}),
    ("seed", {"seed": -1}),
    ("seed", {"seed": 2**70}),
    ("fps", {"fps": 0}),
    ("num_inference_steps", {"num_inference_steps": 0}),
    ("num_inference_steps", {"num_inference_steps": 5000}),
    ("guidance_scale", {"guidance_scale": -1}),
    ("guidance_rescale", {"guidance_rescale": 2}),
    ("guidance_scale_2", {"guidance_scale_2": 2}),
    ("negative_prompt", {"negative_prompt": "blurry", "guidance_scale": 1}),
    ("quality", {"quality": "best"}),
    ("quality", {"quality": "high", "num_inference_steps": 2}),
    ("loras", {"loras": [{"name": "pixel"}]}),
    ("model", {"model": "sora-2"}),
    ("prompt", {"prompt": ""}),
    ("prompt", {"prompt": "  "}),
    ("prompt", {"prompt": None}),
    ("prompt", {"prompt": "a" * 10_001}),
    ("prompt", {"prompt": ["two", "prompts"]}),
    ("image_path", {"image_path": "/etc/passwd"}),
    ("output_path", {"output_path": "/tmp/x.mp4"}),
    ("sed", {"sed": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "fields"), BAD, ids=[f"{name}-{number}" for number, (name, _) in enumerate(BAD)])
def test_what_cannot_run_is_a_400_that_names_the_field(web: httpx.Client, name: str, fields: dict[str, object]) -> None:
    before = web.get("/v1/videos").json()["first_id"]
    answer = web.post("/v1/videos", content=json.dumps({"prompt": "kite", **fields}),
                      headers={"content-type": "application/json"})  # fmt: skip
    error = answer.json()["error"]
    assert (answer.status_code, error["type"], error["param"]) == (400, "invalid_request_error", name), error
    assert name in error["message"] or error["code"] == "invalid_value"
    assert web.get("/v1/videos").json()["first_id"] == before, "nothing was queued"


@pytest.mark.parametrize(
    ("fields", "says"),
    [({"seeds": 3}, "seeds: no such field; did you mean 'seed'?"),
     ({"prompt": ""}, "prompt: is empty; say what to show"),
     ({"size": "big"}, "size: must be WIDTHxHEIGHT, such as 832x480")],
)  # fmt: skip
def test_it_is_said_in_words(web: httpx.Client, fields: dict[str, object], says: str) -> None:
    assert web.post("/v1/videos", json={"prompt": "kite", **fields}).json()["error"]["message"] == says


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b'{"prompt": "\\ud800"}', b"null"])
def test_bodies_that_are_no_request(web: httpx.Client, body: bytes) -> None:
    answer = web.post("/v1/videos", content=body, headers={"content-type": "application/json"})
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(("quality", "steps"), [("low", 2), ("medium", 4), ("auto", 4), ("high", 6), ("hd", 6)])
def test_quality_sets_the_steps(web: httpx.Client, quality: str, steps: int) -> None:
    made = web.post("/v1/videos", json={"prompt": "kite", "quality": quality}).json()
    assert made["num_inference_steps"] == steps


def test_forms_with_brackets() -> None:
    assert unflattened({"video[id]": ["x"], "prompt": ["p"]}) == {"video": {"id": "x"}, "prompt": "p"}
    two = {"loras[][name]": ["a", "b"], "loras[][strength]": ["1", "2"]}
    assert unflattened(two) == {"loras": [{"name": "a", "strength": "1"}, {"name": "b", "strength": "2"}]}
    assert unflattened({"a[]": ["1", "2"]}) == {"a": ["1", "2"]}
    for bad in ({"a": ["1", "2"]}, {"a": ["1"], "a[x]": ["2"]}, {"a[]": ["1"], "a[][x]": ["1"]},
                {"a[][x]": ["1", "2"], "a[][y]": ["1"]}, {"a[x]": ["1"], "a[][y]": ["1"]}):  # fmt: skip
        with pytest.raises(ApiError):
            unflattened(bad)
