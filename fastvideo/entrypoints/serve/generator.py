"""The generator of a server."""

from functools import partial

from fastvideo.entrypoints.video_generator import VideoGenerator
from fastvideo.worker.start import start_executor


class ServedGenerator(VideoGenerator):
    """A generator that computes in a process of its own where that can be: while Python there runs a model, Python here
    answers requests, and should it crash, the jobs and the answers are still there."""

    _start = staticmethod(partial(start_executor, apart=True))
