"""Jobs that are made together: which, and what becomes of each."""

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from fastvideo import VideoGenerator
from fastvideo.configs.registry import SHIPPED_NAME
from fastvideo.configs.sample import SamplingParam
from fastvideo.entrypoints.media import read_frames
from fastvideo.entrypoints.serve.batching import Batching, sort_of
from fastvideo.entrypoints.serve.database import open_engine
from fastvideo.entrypoints.serve.records import QUEUED, RUNNING, Job
from fastvideo.entrypoints.serve.store import Store
from fastvideo.pipelines.stages import together
from tests.serve.stand_in import Running, running, wait_until
from tests.serve.test_jobs import JOB, make_job, post, state_of
from tests.serve.test_jobs import store as store

SAMPLING = {name: value for name, value in SamplingParam().to_dict().items()
            if name not in ("output_path", "save_video", "return_frames")}  # fmt: skip


def job_of(**fields: Any) -> Job:
    """A job that waits; `fields` are its own, or those of its sampling parameters."""
    sampling = {name: fields.pop(name) for name in tuple(fields) if name in {*SAMPLING, "loras"}}
    values = {"id": "video_x_main", "replica": "main", "created_at": 0.0, "sampling": SAMPLING | sampling}
    return Job(**JOB | values | fields)


class TestSort:
    @pytest.mark.parametrize(
        "fields",
        [{"prompt": "other"}, {"seed": 7}, {"negative_prompt": "x"}, {"guidance_scale": 2.0}, {"fps": 8},
         {"owner": "you"}, {"model": "another name"}, {"created_at": 9.0}],
        ids=lambda fields: next(iter(fields)),
    )  # fmt: skip
    def test_may_differ(self, fields: dict[str, Any]) -> None:
        assert Batching(4).joins(job_of(), job_of(**fields))

    @pytest.mark.parametrize(
        "fields",
        [{"height": 16}, {"num_frames": 5}, {"num_inference_steps": 5}, {"guidance_scale": 1.0}, {"priority": 1},
         {"kind": "image"}, {"attempts": 1}, {"cache": "fbcache"}, {"loras": [{"name": "ink", "strength": 1.0}]},
         {"files": {"input-image": {"name": "x"}}}],
        ids=lambda fields: next(iter(fields)),
    )  # fmt: skip
    def test_may_not(self, fields: dict[str, Any]) -> None:
        assert not Batching(4).joins(job_of(), job_of(**fields))
        assert not Batching(4).joins(job_of(**fields), job_of())

    def test_one_that_was_begun_before_is_alone(self) -> None:
        assert sort_of(job_of(attempts=1)) is None
        assert not Batching(4).joins(job_of(attempts=1), job_of(attempts=1))
        assert sort_of(job_of(cache="teacache")) is None

    def test_what_came_to_nothing_is_not_tried_again(self) -> None:
        class Result:
            batch_size = 1

        batching, begun = Batching(4), [job_of(attempts=1), job_of(attempts=1)]
        batching.learn(begun, [Result()])  # one of them was cancelled
        batching.learn(begun[:1], [Result()])
        assert batching.joins(job_of(), job_of())
        batching.learn(begun, [Result(), Result()])
        assert not batching.joins(job_of(), job_of())
        assert batching.joins(job_of(height=16), job_of(height=16))


class TestQueue:
    @pytest.mark.parametrize(
        ("sizes", "most", "expected"),
        [([1, 1, 1], 4, 3), ([1, 1, 1], 2, 2), ([1, 2, 1], 4, 1), ([1, 1, 2, 1], 4, 2), ([1, 1], 1, 1), ([], 4, 0)],
        ids=["all", "most", "nothing-is-passed-over", "unbroken", "off", "empty"],
    )
    def test_the_unbroken_run_at_the_head(self, store: Store, sizes: list[int], most: int, expected: int) -> None:
        made = [make_job(store, sampling=SAMPLING | {"height": 16 * size}).id for size in sizes]
        begun = store.claim_together(most, Batching(most).joins)
        assert [job.id for job in begun] == made[:expected]
        assert {(job.state, job.attempts) for job in begun} <= {(RUNNING, 1)}
        for job in begun:
            assert store.get(job.id) == job
        assert store.waiting() == len(sizes) - expected

    def test_a_higher_priority_comes_first_and_alone(self, store: Store) -> None:
        low = [make_job(store, sampling=SAMPLING).id for _ in range(2)]
        high = make_job(store, sampling=SAMPLING, priority=5).id
        joins = Batching(4).joins
        assert [job.id for job in store.claim_together(4, joins)] == [high]
        assert [job.id for job in store.claim_together(4, joins)] == low

    def test_those_of_a_server_that_died_run_alone(self, store: Store) -> None:
        for _ in range(3):
            make_job(store, sampling=SAMPLING)
        joins = Batching(4).joins
        assert len(store.claim_together(2, joins)) == 2
        assert store.recover(3) == (2, 0)
        assert [len(store.claim_together(4, joins)) for _ in range(4)] == [1, 1, 1, 0]

    def test_those_of_a_server_that_stopped_go_together_again(self, store: Store) -> None:
        for _ in range(2):
            make_job(store, sampling=SAMPLING)
        joins = Batching(4).joins
        for job in store.claim_together(4, joins):
            store.put_back(job.id)
        assert len(store.claim_together(4, joins)) == 2


class Waiting:
    """A server whose model waits with one job, behind which others have come."""

    def __init__(self, made: Running, web: httpx.Client, prompts: list[str]) -> None:
        self.made, self.web = made, web
        made.model.batches = True
        made.model.go.clear()
        self.first = post(web, "first").json()["id"]
        wait_until(lambda: state_of(web, self.first) == "in_progress")
        self.ids = [post(web, prompt, seed=number).json()["id"] for number, prompt in enumerate(prompts)]

    def begun(self) -> None:
        """Let the first end, and wait until the next ones have begun and wait too."""
        self.web.post(f"/v1/videos/{self.first}/cancel")
        wait_until(lambda: state_of(self.web, self.first) == "failed")
        wait_until(lambda: self.made.model.together)

    def ended(self) -> list[str]:
        """How all of them ended."""
        wait_until(lambda: all(state_of(self.web, one) in ("completed", "failed") for one in self.ids))
        return [state_of(self.web, one) for one in self.ids]


@contextmanager
def waiting(folder: Path, prompts: list[str], **settings: Any) -> Iterator[Waiting]:
    """See `Waiting`."""
    with running(folder, **settings) as made, httpx.Client(base_url=made.url, timeout=30) as web:
        yield Waiting(made, web, prompts)


class TestServer:
    def test_those_that_waited_are_made_together(self, tmp_path: Path) -> None:
        with waiting(tmp_path, ["a", "b", "c"]) as all_of:
            all_of.begun()
            web, model = all_of.web, all_of.made.model
            assert [state_of(web, one) for one in all_of.ids] == ["in_progress"] * 3
            assert web.get("/metrics").text.count("fastvideo_jobs_running 3.0") == 1
            model.go.set()
            assert all_of.ended() == ["completed"] * 3
            assert model.together == [["a", "b", "c"]]
            shown = [web.get(f"/v1/videos/{one}").json() for one in all_of.ids]
            assert [video["batch_size"] for video in shown] == [3, 3, 3]
            assert [video["seed"] for video in shown] == [0, 1, 2]
            for number, one in enumerate(all_of.ids):
                frames = web.get(f"/v1/videos/{one}/content").content
                assert frames[4:8] == b"ftyp", number
            metrics = web.get("/metrics").text
            assert 'fastvideo_batch_size_bucket{le="2.0"} 0.0' in metrics
            assert "fastvideo_batch_size_count 3.0" in metrics
            assert "fastvideo_jobs_running 0.0" in metrics
            assert list((tmp_path / "scratch-main").iterdir()) == []

    @pytest.mark.parametrize(("most", "expected"), [(2, [["a", "b"]]), (1, [])])
    def test_at_most_so_many(self, tmp_path: Path, most: int, expected: list[list[str]]) -> None:
        with waiting(tmp_path, ["a", "b", "c"], max_batch_size=most) as all_of:
            all_of.made.model.go.set()
            assert all_of.ended() == ["completed"] * 3
            assert all_of.made.model.together == expected
            assert all_of.made.model.made == ["first", "a", "b", "c"]

    def test_not_with_a_model_that_cannot(self, tmp_path: Path) -> None:
        with waiting(tmp_path, ["a", "b"]) as all_of:
            all_of.made.model.batches = False
            all_of.made.model.go.set()
            assert all_of.ended() == ["completed"] * 2
            assert all_of.made.model.together == []

    def test_one_is_cancelled(self, tmp_path: Path) -> None:
        with waiting(tmp_path, ["a", "b", "c"]) as all_of:
            all_of.begun()
            assert all_of.web.post(f"/v1/videos/{all_of.ids[1]}/cancel").status_code == 200
            all_of.made.model.go.set()
            assert all_of.ended() == ["completed", "failed", "completed"]
            assert all_of.web.get(f"/v1/videos/{all_of.ids[1]}").json()["error"]["code"] == "cancelled"

    def test_one_fails_by_itself(self, tmp_path: Path) -> None:
        with waiting(tmp_path, ["a", "fail", "c"]) as all_of:
            all_of.made.model.go.set()
            assert all_of.ended() == ["completed", "failed", "completed"]
            assert all_of.web.get(f"/v1/videos/{all_of.ids[1]}").json()["error"]["code"] == "not_finite"
            assert len(all_of.made.model.together) == 1

    @pytest.mark.parametrize("error", [RuntimeError("what"), MemoryError()])
    def test_what_ends_all_has_the_others_run_one_by_one(self, tmp_path: Path, error: Exception) -> None:
        with waiting(tmp_path, ["a", "b", "c"]) as all_of:
            all_of.made.model.breaks = error
            all_of.made.model.go.set()
            assert all_of.ended() == ["completed"] * 3
            assert all_of.made.model.made == ["first", "a", "b", "c"], "none twice"
            shown = [all_of.web.get(f"/v1/videos/{one}").json() for one in all_of.ids]
            assert [video["batch_size"] for video in shown] == [3, 1, 1]

    def test_where_it_came_to_nothing_the_next_are_begun_one_by_one(self, tmp_path: Path) -> None:
        with waiting(tmp_path, ["a", "b", "c", "d"], max_batch_size=2) as all_of:
            all_of.made.model.batch_size = 1
            all_of.made.model.go.set()
            assert all_of.ended() == ["completed"] * 4
            assert all_of.made.model.together == [["a", "b"]]

    def test_they_may_take_as_long_as_one_by_one(self, tmp_path: Path) -> None:
        with waiting(tmp_path, ["a", "b"], job_timeout=0.5) as all_of:
            began = time.monotonic()
            assert all_of.ended() == ["failed"] * 2
            assert time.monotonic() - began > 1.0
            codes = {all_of.web.get(f"/v1/videos/{one}").json()["error"]["code"] for one in all_of.ids}
            assert codes == {"timeout"}

    def test_a_server_that_stops_queues_them_again(self, tmp_path: Path) -> None:
        with waiting(tmp_path, ["a", "b"]) as all_of:
            all_of.begun()
            ids = all_of.ids
        stopped = Store(open_engine(f"sqlite:///{tmp_path / 'jobs.sqlite'}"), "main")
        assert {(stopped.get(one).state, stopped.get(one).attempts) for one in ids} == {(QUEUED, 0)}  # type: ignore[union-attr]


SMALL = {"size": "32x32", "num_frames": 5, "num_inference_steps": 3}


def test_four_queued_requests_are_one_batch_and_each_is_what_it_is_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(together, "GAIN", math.inf)
    prompts = ["a red circle on teal", "a white star on black", "x", "gray background, purple triangle, bouncing"]
    asked = [
        {"prompt": prompt, "seed": number, "guidance_scale": 3.0 + number, "negative_prompt": "blurry" * (number % 2)}
        for number, prompt in enumerate(prompts)
    ]
    go = threading.Event()
    with VideoGenerator.from_pretrained(SHIPPED_NAME, device="cpu") as generator:
        inner = generator.generate_video

        def held(*args: Any, **fields: Any) -> Any:
            go.wait(60)
            return inner(*args, **fields)

        monkeypatch.setattr(generator, "generate_video", held)
        monkeypatch.setattr(generator, "shutdown", lambda: None)
        with running(tmp_path, model=generator) as made, httpx.Client(base_url=made.url, timeout=60) as web:  # type: ignore[arg-type]
            first = post(web, "first", **SMALL | {"num_frames": 1, "num_inference_steps": 1}).json()["id"]
            wait_until(lambda: state_of(web, first) == "in_progress")
            ids = [post(web, **SMALL | one).json()["id"] for one in asked]
            go.set()
            wait_until(lambda: all(state_of(web, one) == "completed" for one in ids))
            shown = [web.get(f"/v1/videos/{one}").json() for one in ids]
            assert [video["batch_size"] for video in shown] == [4, 4, 4, 4]
            files = [web.get(f"/v1/videos/{one}/content").content for one in ids]
        for number, (one, content) in enumerate(zip(asked, files, strict=True)):
            served, alone = tmp_path / f"{number}.mp4", tmp_path / f"alone-{number}.mp4"
            served.write_bytes(content)
            inner(output_path=str(alone), height=32, width=32, num_frames=5, num_inference_steps=3, **one)
            assert np.array_equal(read_frames(served), read_frames(alone))
