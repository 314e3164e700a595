"""The progress bar and Ctrl-C."""

import io
import os
import signal
import sys
import threading
from collections.abc import Callable

import pytest

from fastvideo.entrypoints.watch import ProgressBar, interrupt_cancels
from fastvideo.pipelines.pipeline_batch_info import Cancelled, CancelToken, Control, Progress


class Terminal(io.StringIO):
    """Standard error as a person sees it."""

    def isatty(self) -> bool:
        return True


def interrupt() -> None:
    """Ctrl-C."""
    os.kill(os.getpid(), signal.SIGINT)


class TestProgressBar:
    def test_it_shows_stage_steps_and_time_left(self, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        monkeypatch.setenv("TQDM_MININTERVAL", "0")
        with ProgressBar("2/3 ") as bar:
            for _ in Control(report=bar).steps("denoising", range(4), total=4):
                pass
        shown = terminal.getvalue()
        assert "2/3 denoising" in shown
        assert "4/4" in shown
        assert "<" in shown  # elapsed<left

    def test_a_stage_of_one_step_has_no_bar(self, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        with ProgressBar() as bar:
            for _ in Control(report=bar).steps("text_encoding", range(1), total=1):
                pass
        assert terminal.getvalue() == ""

    def test_it_draws_nothing_into_a_file(self, monkeypatch: pytest.MonkeyPatch) -> None:
        file = io.StringIO()
        monkeypatch.setattr(sys, "stderr", file)
        with ProgressBar() as bar:
            for _ in Control(report=bar).steps("denoising", range(4), total=4):
                pass
        assert file.getvalue() == ""

    def test_the_line_ends_after_an_error(self, monkeypatch: pytest.MonkeyPatch) -> None:
        terminal = Terminal()
        monkeypatch.setattr(sys, "stderr", terminal)
        with pytest.raises(LookupError), ProgressBar() as bar:
            bar(Progress("denoising", 0, 4, None))
            raise LookupError
        assert terminal.getvalue().endswith("\n")


class TestInterrupt:
    def test_the_first_cancels(self) -> None:
        token = CancelToken()
        with pytest.raises(KeyboardInterrupt), interrupt_cancels(token):
            interrupt()
            assert token.cancelled
            Control(cancel=token).check()

    def test_the_second_interrupts_at_once(self) -> None:
        after: list[str] = []
        with pytest.raises(KeyboardInterrupt), interrupt_cancels(CancelToken()):
            interrupt()
            after.append("first")
            interrupt()
            after.append("second")
        assert after == ["first"]

    def test_without_one_nothing_changes(self) -> None:
        with interrupt_cancels(CancelToken()):
            pass
        with pytest.raises(Cancelled), interrupt_cancels(CancelToken()):
            raise Cancelled
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_an_error_after_it_is_the_error(self) -> None:
        with pytest.raises(LookupError), interrupt_cancels(CancelToken()):
            interrupt()
            raise LookupError
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_a_handler_of_the_program_stays(self) -> None:
        seen: list[int] = []
        handler: Callable[..., None] = lambda number, frame: seen.append(number)  # noqa: E731
        before = signal.signal(signal.SIGINT, handler)
        try:
            token = CancelToken()
            with interrupt_cancels(token):
                interrupt()
            assert seen == [signal.SIGINT]
            assert not token.cancelled
        finally:
            signal.signal(signal.SIGINT, before)

    def test_other_threads_leave_it_alone(self) -> None:
        handlers: list[object] = []

        def work() -> None:
            with interrupt_cancels(CancelToken()):
                handlers.append(signal.getsignal(signal.SIGINT))

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        assert handlers == [signal.default_int_handler]
