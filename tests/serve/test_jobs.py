"""The queue: limits, priorities, cancelling, time-outs, retention, and what a restart finds."""

import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from fastvideo.entrypoints.serve.database import open_engine
from fastvideo.entrypoints.serve.errors import ApiError
from fastvideo.entrypoints.serve.records import COMPLETED, FAILED, QUEUED, RUNNING, Ids, Job, jobs, replica_of
from fastvideo.entrypoints.serve.retention import Sweeper
from fastvideo.entrypoints.serve.store import Limits, Store
from tests.serve.databases import Postgres
from tests.serve.stand_in import Running, StandIn, running, wait_until

MANY = Limits(1000, 1000)


JOB: dict[str, Any] = {
    "kind": "video", "owner": "me", "state": QUEUED, "priority": 0, "model": "m", "prompt": "kite", "request": {},
    "files": {}, "result": {}, "sampling": {"num_frames": 5, "fps": 8, "width": 32, "height": 32},
}  # fmt: skip


def make_job(store: Store, **fields: Any) -> Job:
    """A job that is in the queue."""
    values = {"id": Ids(store.replica).new(), "replica": store.replica, "created_at": time.time()}
    return store.admit(Job(**JOB | values | fields), MANY)[0]


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty one."""
    url = f"sqlite:///{tmp_path / 'jobs.sqlite'}"
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres_server").database(f"store_{uuid.uuid4().hex}")
    made = Store(open_engine(url), "main")
    yield made
    made.engine.dispose()


def post(web: httpx.Client, prompt: str = "kite", **fields: Any) -> httpx.Response:
    """Ask for a video."""
    headers = fields.pop("headers", {})
    return web.post("/v1/videos", json={"prompt": prompt, **fields}, headers=headers)


def state_of(web: httpx.Client, job_id: str) -> str:
    """The status of a job."""
    status: str = web.get(f"/v1/videos/{job_id}").json()["status"]
    return status


class Held:
    """A server whose model waits, with one job that runs."""

    def __init__(self, made: Running, web: httpx.Client) -> None:
        self.made = made
        self.web = web
        made.model.go.clear()
        self.first = post(web, "first").json()["id"]
        wait_until(lambda: state_of(web, self.first) == "in_progress")


class TestStore:
    def test_ids_sort_by_time_and_name_their_replica(self) -> None:
        ids = Ids("b2")
        made = [ids.new() for _ in range(1000)]
        assert made == sorted(made)
        assert len(set(made)) == 1000
        assert replica_of(made[0]) == "b2"

    def test_the_highest_priority_first_then_the_oldest(self, store: Store) -> None:
        order = [make_job(store, priority=priority).id for priority in (0, 5, 0, -3, 5)]
        claimed = [store.claim() for _ in range(5)]
        assert [job.id for job in claimed if job] == [order[n] for n in (1, 4, 0, 2, 3)]
        assert store.claim() is None

    def test_no_job_is_claimed_twice(self, store: Store) -> None:
        made = {make_job(store).id for _ in range(40)}
        seen: list[str] = []

        def work() -> None:
            while (job := store.claim()) is not None:
                seen.append(job.id)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(seen) == sorted(made)

    def test_what_ran_when_the_server_died_runs_again_but_not_for_ever(self, store: Store) -> None:
        job = make_job(store)
        for attempt in (1, 2, 3):
            claimed = store.claim()
            assert claimed is not None
            assert claimed.attempts == attempt
            store.recover(max_attempts=3)
        failed = store.get(job.id)
        assert failed is not None
        assert (failed.state, failed.error and failed.error["code"]) == (FAILED, "server_died")

    def test_a_replica_leaves_the_jobs_of_others_alone(self, store: Store) -> None:
        other = Store(store.engine, "other")
        job = make_job(store)
        assert other.claim() is None
        store.claim()
        assert other.recover(3) == (0, 0)
        found = other.get(job.id)
        assert found is not None
        assert found.state == RUNNING

    def test_an_end_is_an_end(self, store: Store) -> None:
        job = make_job(store)
        store.claim()
        assert store.cancel(job.id, RUNNING)
        assert not store.complete(job.id, {}, {})
        assert not store.fail(job.id, "late", "too late")
        assert not store.cancel(job.id, RUNNING)

    def test_a_database_that_cannot_be_opened(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        nobody = "postgresql://postgres@127.0.0.1:1/x"
        for url in ("nonsense", f"sqlite:///{tmp_path}/file/jobs.sqlite", "postgresql+nodriver://x/y", nobody):
            with pytest.raises(ValueError, match="database_url"):
                open_engine(url)

    def test_what_is_known_of_a_job_is_what_the_database_has(self, store: Store) -> None:
        job = make_job(store)
        seen = Store(store.engine, "main")
        for change in (
            lambda: store.claim(), lambda: store.set_progress(job.id, 40), lambda: store.put_back(job.id),
            lambda: store.claim(), lambda: store.complete(job.id, {}, {"a": 1}), lambda: store.delete(job.id),
        ):  # fmt: skip
            before = store.get(job.id)
            assert before is not None
            assert store.get(job.id) is before, "from memory"
            change()
            seen._known.clear()
            assert store.get(job.id) == seen.get(job.id) != before

    def test_pages_and_keys_and_counts(self, store: Store) -> None:
        ids = [make_job(store, owner=owner).id for owner in ("me", "you", "me")]
        assert [job.id for job in store.page("me", after=None, limit=9, ascending=True)] == [ids[0], ids[2]]
        assert [job.id for job in store.page(None, after=ids[2], limit=1, ascending=False)] == [ids[1]]
        assert store.page("me", after="video_\0", limit=9, ascending=False) == []
        assert store.get("video_\0") is None
        last = store.get(ids[2])
        assert last is not None
        assert (store.waiting(), store.position(last)) == (3, 2)
        with pytest.raises(ApiError, match="NUL"):
            make_job(store, prompt="a\0b")
        assert store.fail(ids[0], "timeout", "too late")
        assert [job.id for job in store.ended_before(time.time() + 1)] == [ids[0]]
        assert store.delete(ids[0])

    def test_two_that_share_a_name_and_a_database_begin_no_job_twice(self, store: Store) -> None:
        made = {make_job(store).id for _ in range(20)}
        both, seen = [store, Store(store.engine, "main")], []

        def work(one: Store) -> None:
            # one that is being begun by the other is passed over: empty once is not empty
            while store.waiting():
                job = one.claim()
                if job is not None:
                    seen.append(job.id)

        threads = [threading.Thread(target=work, args=(one,)) for one in both]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(seen) == sorted(made)

    def test_a_quota_holds_for_all_replicas_at_the_same_time(self, store: Store) -> None:
        replicas = [Store(store.engine, name) for name in ("a", "b", "c")]
        results: list[str] = []

        def ask(one: Store) -> None:
            for _ in range(4):
                values = {"id": Ids(one.replica).new(), "replica": one.replica, "owner": "me"}
                try:
                    one.admit(Job(**JOB | values | {"created_at": time.time()}), Limits(100, 5))
                    results.append("in")
                except ApiError as error:
                    results.append(str(error.code))

        threads = [threading.Thread(target=ask, args=(one,)) for one in replicas]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (results.count("in"), results.count("quota_exceeded")) == (5, 7)


class TestPostgres:
    """A server whose database goes away and comes back."""

    def test_jobs_outlive_the_database_server(self, postgres_server: Postgres, tmp_path: Path) -> None:
        url = postgres_server.database("away")
        with running(tmp_path, database_url=url) as made, httpx.Client(base_url=made.url, timeout=60) as web:
            held = Held(made, web)
            waits = post(web, "second").json()["id"]
            postgres_server.stop()
            refused = web.get("/v1/videos")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "database_away")
            assert post(web, "third").status_code == 503
            made.model.go.set()
            wait_until(lambda: made.model.made == ["first"])
            postgres_server.start()
            wait_until(lambda: web.get("/v1/videos").status_code == 200)
            wait_until(lambda: all(state_of(web, job_id) == "completed" for job_id in (held.first, waits)))
            assert web.get(f"/v1/videos/{held.first}/content").content[4:8] == b"ftyp"
            assert made.model.made == ["first", "second"]
        with running(tmp_path, database_url=url) as made, httpx.Client(base_url=made.url) as web:
            assert [video["id"] for video in web.get("/v1/videos").json()["data"]] == [waits, held.first]


class TestLimits:
    def test_a_full_queue_is_a_429_that_says_when_to_come_back(self, tmp_path: Path) -> None:
        with running(tmp_path, max_queue=2) as made, httpx.Client(base_url=made.url) as web:
            Held(made, web)
            assert [post(web).status_code for _ in range(2)] == [200, 200]
            refused = post(web)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
            assert 1 <= int(refused.headers["Retry-After"]) <= 60

    def test_the_quota_of_a_key(self, tmp_path: Path) -> None:
        with running(tmp_path, max_jobs_per_key=2) as made, httpx.Client(base_url=made.url) as web:
            held = Held(made, web)
            assert post(web).status_code == 200
            refused = post(web)
            assert (refused.status_code, refused.json()["error"]["code"]) == (429, "quota_exceeded")
            made.model.go.set()
            wait_until(lambda: state_of(web, held.first) == "completed")
            assert post(web).status_code == 200


class TestIdempotency:
    def test_the_same_request_twice_is_one_job(self, served: Running, web: httpx.Client) -> None:
        headers = {"Idempotency-Key": "abc"}
        first, second = (post(web, seed=5, headers=headers) for _ in range(2))
        assert first.json()["id"] == second.json()["id"]
        assert second.headers["Idempotent-Replayed"] == "true"
        assert "Idempotent-Replayed" not in first.headers

    def test_another_request_with_the_same_key_is_refused(self, served: Running, web: httpx.Client) -> None:
        headers = {"Idempotency-Key": "def"}
        assert post(web, seed=5, headers=headers).status_code == 200
        refused = post(web, seed=6, headers=headers)
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_reused")
        assert refused.headers["x-should-retry"] == "false"

    def test_at_the_same_time(self, served: Running, web: httpx.Client) -> None:
        ids: list[str] = []
        threads = [
            threading.Thread(target=lambda: ids.append(post(web, headers={"Idempotency-Key": "ghi"}).json()["id"]))
            for _ in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(ids) == 8
        assert len(set(ids)) == 1


class TestCancel:
    def test_one_that_waits_and_one_that_runs(self, tmp_path: Path) -> None:
        with running(tmp_path) as made, httpx.Client(base_url=made.url) as web:
            held = Held(made, web)
            waits = post(web, "second").json()
            assert (waits["status"], waits["position"]) == ("queued", 0)
            for job_id in (waits["id"], held.first):
                assert web.delete(f"/v1/videos/{job_id}").status_code == 409
                assert web.post(f"/v1/videos/{job_id}/cancel").status_code == 200
                wait_until(lambda job_id=job_id: state_of(web, job_id) == "failed")
                assert web.get(f"/v1/videos/{job_id}").json()["error"]["code"] == "cancelled"
                assert web.post(f"/v1/videos/{job_id}/cancel").status_code == 200, "twice is the same as once"
            assert made.model.made == []
            made.model.go.set()
            after = post(web, "third").json()["id"]
            wait_until(lambda: state_of(web, after) == "completed")
            assert made.model.made == ["third"]
            assert list((tmp_path / "scratch-main").iterdir()) == []


class TestTimeouts:
    def test_a_job_that_runs_too_long(self, tmp_path: Path) -> None:
        with running(tmp_path, job_timeout=0.2) as made, httpx.Client(base_url=made.url) as web:
            held = Held(made, web)
            wait_until(lambda: state_of(web, held.first) == "failed")
            assert web.get(f"/v1/videos/{held.first}").json()["error"]["code"] == "timeout"

    def test_a_job_that_waits_too_long(self, tmp_path: Path) -> None:
        with running(tmp_path, queue_timeout=0.1) as made, httpx.Client(base_url=made.url) as web:
            Held(made, web)
            waits = post(web, "second").json()["id"]
            time.sleep(0.15)
            made.server._sweeper.sweep()
            assert web.get(f"/v1/videos/{waits}").json()["error"]["code"] == "timeout"


class TestRetention:
    def finished(self, made: Running, web: httpx.Client, count: int) -> list[str]:
        """Jobs that are done, the oldest first."""
        ids = [post(web).json()["id"] for _ in range(count)]
        wait_until(lambda: all(state_of(web, job_id) == "completed" for job_id in ids))
        return ids

    def test_by_age(self, tmp_path: Path) -> None:
        with running(tmp_path, keep_hours=1) as made, httpx.Client(base_url=made.url) as web:
            old, new = self.finished(made, web, 2)
            with made.server.store.writing() as connection:
                connection.execute(jobs.update().where(jobs.c.id == old).values(ended_at=time.time() - 3700))
            made.server._sweeper.sweep()
            assert web.get(f"/v1/videos/{old}").status_code == 404
            assert {name.split(".")[0] for name in made.server.files.names()} == {new}

    def test_by_size(self, tmp_path: Path) -> None:
        with running(tmp_path) as made, httpx.Client(base_url=made.url) as web:
            ids = self.finished(made, web, 3)
            size = made.server.store.get(ids[0]).nbytes  # type: ignore[union-attr]
            made.server.settings.keep_gb = 2.5 * size / 2**30
            made.server._sweeper.sweep()
            assert [web.get(f"/v1/videos/{job_id}").status_code for job_id in ids] == [404, 200, 200]

    def test_files_that_nobody_has(self, tmp_path: Path) -> None:
        with running(tmp_path) as made, httpx.Client(base_url=made.url) as web:
            (job_id,) = self.finished(made, web, 1)
            names = made.server.files.names()
            folder = tmp_path / "files"
            lost, partial = f"{Ids('main').new()}.video.mp4", f".{job_id}.video-0123abcd.mp4"
            for name in (lost, partial, f"{Ids('other').new()}.video.mp4", "notes.txt"):
                (folder / name).write_bytes(b"x")
            Sweeper(made.server.store, made.server.files, made.server.runner, made.server.settings).drop_orphans()
            assert set(made.server.files.names()) >= set(names)
            assert not (folder / lost).exists()
            assert not (folder / partial).exists()
            assert len(list(folder.iterdir())) == len(names) + 2, "what is not ours stays"


class TestRestart:
    def test_everything_is_there_again(self, tmp_path: Path) -> None:
        with running(tmp_path) as made, httpx.Client(base_url=made.url) as web:
            done = post(web, "done").json()["id"]
            wait_until(lambda: state_of(web, done) == "completed")
            content = web.get(f"/v1/videos/{done}/content").content
            held = Held(made, web)
            queued = [post(web, f"later {n}").json()["id"] for n in range(3)]
        stopped = Store(open_engine(f"sqlite:///{tmp_path / 'jobs.sqlite'}"), "main")
        assert {stopped.get(job_id).state for job_id in (held.first, *queued)} == {QUEUED}  # type: ignore[union-attr]
        assert stopped.get(held.first).attempts == 0, "stopping is no attempt"  # type: ignore[union-attr]
        with running(tmp_path) as made, httpx.Client(base_url=made.url) as web:
            wait_until(lambda: all(state_of(web, job_id) == "completed" for job_id in (held.first, *queued)))
            assert made.model.made == ["first", "later 0", "later 1", "later 2"]
            assert web.get(f"/v1/videos/{done}/content").content == content
            found = made.server.store.get(done)
            assert found is not None
            assert found.state == COMPLETED

    def test_two_servers_do_not_share_a_folder(self, tmp_path: Path) -> None:
        with (
            running(tmp_path),
            pytest.raises(ValueError, match="a server 'main' works there already"),
            running(tmp_path),
        ):
            pass

    def test_a_model_that_does_not_load(self, tmp_path: Path) -> None:
        class Broken(StandIn):
            def check_request(self, *args: Any, **fields: Any) -> Any:
                raise ValueError("default_request: seed=-1")

        with pytest.raises(ValueError, match="seed=-1"), running(tmp_path, model=Broken()):
            pass


class TestElsewhere:
    def test_files_in_another_store(self, tmp_path: Path) -> None:
        with (
            running(tmp_path, files_url="memory://videos") as made,
            httpx.Client(base_url=made.url) as web,
        ):
            job_id = post(web).json()["id"]
            wait_until(lambda: state_of(web, job_id) == "completed")
            content = web.get(f"/v1/videos/{job_id}/content")
            assert content.headers["content-type"] == "video/mp4"
            assert content.content[4:8] == b"ftyp"
            assert int(content.headers["content-length"]) == len(content.content)
            assert made.server.files.local is None
            assert web.delete(f"/v1/videos/{job_id}").status_code == 200
            assert made.server.files.names() == []
