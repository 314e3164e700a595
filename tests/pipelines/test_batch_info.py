"""Progress, cancellation and the batch itself."""

import threading
from collections.abc import Iterator

import pytest

from fastvideo.configs.sample import SamplingParam
from fastvideo.pipelines import pipeline_batch_info
from fastvideo.pipelines.pipeline_batch_info import Cancelled, CancelToken, Control, ForwardBatch, Progress, written


class Clock:
    """Stands in for `time`."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


def test_steps_report_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(pipeline_batch_info, "time", clock)
    seen: list[Progress] = []
    for seconds in Control(report=seen.append).steps("denoising", [1.0, 3.0, 2.0, 2.0], total=4):
        clock.now += seconds
    assert seen == [
        Progress("denoising", 0, 4, None),
        Progress("denoising", 1, 4, 3.0),
        Progress("denoising", 2, 4, 4.0),
        Progress("denoising", 3, 4, 2.0),
        Progress("denoising", 4, 4, 0.0),
    ]


def test_a_step_is_reported_after_it_is_done() -> None:
    seen: list[int] = []
    for step in Control(report=lambda progress: seen.append(progress.step)).steps("s", [1, 2], total=2):
        assert seen == list(range(step))
    assert seen == [0, 1, 2]


def test_cancelling_stops_before_the_next_item_is_made() -> None:
    control = Control()
    made: list[int] = []

    def items() -> Iterator[int]:
        for item in range(5):
            made.append(item)
            yield item

    with pytest.raises(Cancelled):
        for item in control.steps("s", items(), total=5):
            if item == 1:
                control.cancel.cancel()
    assert made == [0, 1]


def test_another_thread_can_cancel() -> None:
    control = Control()
    done: list[int] = []

    def work() -> None:
        with pytest.raises(Cancelled):
            for item in control.steps("s", range(10**9), total=10**9):
                started.set()
                done.append(item)

    started = threading.Event()
    thread = threading.Thread(target=work)
    thread.start()
    assert started.wait(10)
    control.cancel.cancel()
    thread.join(10)
    assert not thread.is_alive()
    assert len(done) < 10**9


def test_more_items_than_announced_is_our_bug() -> None:
    with pytest.raises(AssertionError, match="more than 2"):
        list(Control().steps("s", [1, 2, 3], total=2))


def test_a_token_cancels_once_and_for_all() -> None:
    token = CancelToken()
    assert not token.cancelled
    token.cancel()
    token.cancel()
    assert token.cancelled
    with pytest.raises(Cancelled):
        Control(cancel=token).check()


@pytest.mark.parametrize(("scale", "guided"), [(0.0, False), (1.0, False), (1.01, True), (5.0, True)])
def test_guidance_starts_above_one(scale: float, guided: bool) -> None:
    sampling = SamplingParam(guidance_scale=scale, num_videos_per_prompt=3)
    batch = ForwardBatch(prompts=["a", "b"], negative_prompts=["", ""], sampling=sampling)
    assert batch.guided is guided
    assert batch.size == 6


def test_reading_what_nobody_wrote_is_our_bug() -> None:
    with pytest.raises(AssertionError, match=r"batch\.latents"):
        written(None, "latents")
