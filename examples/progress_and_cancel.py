"""Watch a generation step by step, and stop it when it takes too long.

python examples/progress_and_cancel.py                  with the model in the package, at most 600 seconds
python examples/progress_and_cancel.py 20 MODEL         at most 20 seconds
"""

import sys
import threading

from fastvideo import VideoGenerator
from fastvideo.configs.sample import SamplingParam
from fastvideo.pipelines.pipeline_batch_info import Cancelled, CancelToken, Progress


def show(progress: Progress) -> None:
    """One line for each step of each stage."""
    left = "" if progress.seconds_left is None else f", {progress.seconds_left:.1f} s left"
    print(f"{progress.stage}: {progress.step} of {progress.total}{left}")


def main(seconds: float = 600.0, model_id: str = "shapes-t2v") -> None:
    """Make a video, unless `seconds` are over first."""
    sampling = SamplingParam.from_pretrained(model_id)
    prompt = "a green square bouncing on a black background"
    with VideoGenerator.from_pretrained(model_id) as generator:
        token = CancelToken()
        # any thread may cancel: the work stops at its next step, and no half file is left
        timer = threading.Timer(seconds, token.cancel)
        timer.start()
        try:
            video = generator.generate_video(
                prompt, sampling_param=sampling, output_path="video_samples", progress=show, cancel=token
            )
        except Cancelled:
            print("stopped: the time was over")
        else:
            print(f"{video.video_path}: {video.generation_time:.1f} s")
        finally:
            timer.cancel()


if __name__ == "__main__":
    main(*([float(sys.argv[1])] if sys.argv[1:] else []), *sys.argv[2:])
