"""How a person at a terminal watches and stops a generation: a progress bar, and Ctrl-C."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType

from tqdm import tqdm

from fastvideo.configs.base import require_whole
from fastvideo.pipelines.pipeline_batch_info import Cancelled, CancelToken, Control, Progress, no_report
from fastvideo.utils import require

STOPPING = b"\nstopping at the next step (Ctrl-C again: at once)\n"


def control_of(progress: Callable[[Progress], None] | None, cancel: CancelToken | None, preview_every: int) -> Control:
    """How a call is stopped and watched."""
    require_whole("preview_every", preview_every, 0)
    require(not preview_every or progress is not None, "preview_every", preview_every,
            "nobody sees previews without progress", "give progress, or leave it 0")  # fmt: skip
    token = CancelToken() if cancel is None else cancel
    return Control(cancel=token, report=progress or no_report, preview_every=preview_every)


class ProgressBar:
    """Draws progress reports on standard error: a bar with the time left for each stage of more than one step.

    Draws nothing when standard error is no terminal.
    """

    def __init__(self, label: str = "") -> None:
        """`label` stands before the stage's name."""
        self._label = label
        self._bar: tqdm[None] | None = None

    def __call__(self, progress: Progress) -> None:
        if progress.step == 0:
            self.close()
            if progress.total > 1:
                self._bar = tqdm(total=progress.total, desc=self._label + progress.stage, unit="step", disable=None)
        elif self._bar is not None:
            self._bar.update()
            if progress.step == progress.total:
                self.close()

    def close(self) -> None:
        """Leave the bar as it is and begin a new line."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


@contextmanager
def interrupt_cancels(token: CancelToken) -> Iterator[None]:
    """Within the block the first Ctrl-C cancels `token` and the second interrupts at once.

    Leaves Ctrl-C alone outside of the main thread, and when the program has a handler of its own.

    Raises:
        KeyboardInterrupt: when the block ends after a Ctrl-C, done or cancelled.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    interrupted = False

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal interrupted
        if interrupted:
            raise KeyboardInterrupt
        interrupted = True
        token.cancel()
        if sys.stderr is sys.__stderr__:
            os.write(2, STOPPING)  # a signal handler must not touch a buffered stream

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield
    except Cancelled:
        if not interrupted:
            raise
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if interrupted:
        raise KeyboardInterrupt
