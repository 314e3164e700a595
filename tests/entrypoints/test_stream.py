"""`VideoGenerator.stream`: the frames of a video while it is made."""

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastvideo import VideoGenerator
from fastvideo.entrypoints.cli.main import main
from fastvideo.entrypoints.streaming import VideoChunk
from fastvideo.entrypoints.verify import Clip, verify
from fastvideo.pipelines.pipeline_batch_info import Cancelled, CancelToken, Progress
from tests import loras

KITE = "a red kite"
SMALL: dict[str, Any] = {"height": 32, "width": 48, "num_frames": 33}


@pytest.fixture(scope="module")
def generator(causal_repo: Path) -> Iterator[VideoGenerator]:
    """Of the tiny causal model."""
    with VideoGenerator.from_pretrained(causal_repo, device="cpu", precision="fp32") as made:
        yield made


def frames_of(generator: VideoGenerator, **fields: Any) -> np.ndarray[Any, Any]:
    """By `generate_video`."""
    result = generator.generate_video(KITE, save_video=False, return_frames=True, **{**SMALL, **fields})
    assert not isinstance(result, list)
    assert result.frames is not None
    return np.stack(result.frames)


def test_the_frames_are_those_of_generate_video(generator: VideoGenerator) -> None:
    chunks = list(generator.stream(KITE, **SMALL))
    assert [(chunk.index, chunk.start, len(chunk.frames)) for chunk in chunks] == [(0, 0, 9), (1, 9, 12), (2, 21, 12)]
    assert all(chunk.frames.dtype == np.uint8 and chunk.frames.shape[1:] == (32, 48, 3) for chunk in chunks)
    made = np.concatenate([chunk.frames for chunk in chunks])
    assert made.std() > 1
    assert np.array_equal(made, frames_of(generator))


def test_generate_video_hands_them_out_too(generator: VideoGenerator, wan_repo: Path) -> None:
    chunks: list[VideoChunk] = []
    frames = frames_of(generator, on_chunk=chunks.append)
    assert [(chunk.index, chunk.start, len(chunk.frames)) for chunk in chunks] == [(0, 0, 9), (1, 9, 12), (2, 21, 12)]
    assert np.array_equal(np.concatenate([chunk.frames for chunk in chunks]), frames)
    with pytest.raises(ValueError, match=r"on_chunk=.*is for one video, and 2 are asked for"):
        generator.generate_video(KITE, on_chunk=chunks.append, num_videos_per_prompt=2, save_video=False, **SMALL)
    with VideoGenerator.from_pretrained(wan_repo) as other, pytest.raises(ValueError, match="makes all frames at once"):
        other.generate_video(KITE, on_chunk=chunks.append, save_video=False)


def test_a_chunk_comes_before_the_next_is_computed(generator: VideoGenerator) -> None:
    seen: list[Progress] = []
    stream = generator.stream(KITE, progress=seen.append, **SMALL)
    assert seen == []
    assert next(stream).start == 0
    assert (seen[-1].stage, seen[-1].step, seen[-1].total) == ("denoising", 4, 15)
    stream.close()
    assert seen[-1].step == 4


def test_an_image_begins_the_stream(causal_i2v_repo: Path) -> None:
    picture = np.full((32, 48, 3), 200, np.uint8)
    with VideoGenerator.from_pretrained(causal_i2v_repo, device="cpu", precision="fp32") as made:
        size = {**SMALL, "num_frames": 13}
        with_image, without = (
            [chunk.frames for chunk in made.stream(KITE, image=image, **size)] for image in (picture, None)
        )
    assert [len(frames) for frames in with_image] == [1, 12]
    assert not np.array_equal(with_image[0], without[0])


def test_leaving_the_loop_ends_the_stream(generator: VideoGenerator) -> None:
    for chunk in generator.stream(KITE, **SMALL):
        assert chunk.index == 0
        break
    assert len(frames_of(generator, num_frames=9)) == 9


def test_cancel(generator: VideoGenerator) -> None:
    token, taken = CancelToken(), list[VideoChunk]()
    with pytest.raises(Cancelled):
        for chunk in generator.stream(KITE, cancel=token, **SMALL):
            taken.append(chunk)
            token.cancel()
    assert [chunk.index for chunk in taken] == [0]
    assert len(list(generator.stream(KITE, **{**SMALL, "num_frames": 9}))) == 1


def test_another_call_of_the_same_thread_is_an_error(generator: VideoGenerator) -> None:
    stream = generator.stream(KITE, **SMALL)
    next(stream)
    for call in (lambda: frames_of(generator), lambda: next(generator.stream(KITE, **SMALL))):
        with pytest.raises(RuntimeError, match=r"has a stream of the generator open: .* or close\(\) it, first"):
            call()
    stream.close()
    assert next(generator.stream(KITE, **SMALL)).start == 0


def test_another_thread_waits(generator: VideoGenerator) -> None:
    stream, order = generator.stream(KITE, **{**SMALL, "num_frames": 21}), list[str]()
    next(stream)
    other = threading.Thread(target=lambda: order.append(f"other {len(frames_of(generator, num_frames=9))}"))
    other.start()
    next(stream)
    order.append("stream")
    assert next(stream, None) is None
    other.join(timeout=60)
    assert order == ["stream", "other 9"]


def test_shutdown_ends_a_stream(causal_repo: Path) -> None:
    generator = VideoGenerator.from_pretrained(causal_repo, device="cpu", precision="fp32")
    stream = generator.stream(KITE, **SMALL)
    next(stream)
    generator.shutdown()
    assert next(stream, None) is None
    with pytest.raises(RuntimeError, match="was shut down"):
        generator.stream(KITE, **SMALL)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_frames": 10}, r"num_frames=10: must be 4k\+1"),
        ({"num_frames": 13}, "num_frames=13: must be 12k-3"),
        ({"num_videos_per_prompt": 2}, "num_videos_per_prompt=2: a stream is of one video; set it to 1"),
        ({"save_video": True}, "save_video=True: does nothing here: a stream hands out its frames; leave it out"),
        ({"output_path": "x.mp4"}, "output_path='x.mp4': does nothing here"),
        ({"image": "x.png"}, "image: this model takes none"),
        ({"preview_every": 1}, "preview_every=1: nobody sees previews without progress"),
        ({"frames": 9}, "'frames': unknown keyword of generate_video"),
    ],
)
def test_a_bad_request_is_one_line_at_once(generator: VideoGenerator, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        generator.stream(KITE, **{**SMALL, **fields})
    assert "\n" not in str(caught.value)


def test_a_model_that_is_not_causal_refuses(wan_repo: Path) -> None:
    message = r"stream: wan2.1-t2v makes all frames at once; use generate_video, or FastVideo/SFWan2.1"
    generator = VideoGenerator.from_pretrained(wan_repo, device="cpu", precision="fp32")
    with generator, pytest.raises(ValueError, match=message):
        generator.stream(KITE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_gpus": 2}, "num_gpus=2: does not go with streams=True: .*; use num_gpus=1"),
        ({"enable_torch_compile": True}, "enable_torch_compile=True: does not go with streams=True"),
        ({"attention_backend": "VMOBA_ATTN"}, "VMOBA_ATTN': attends among the tokens of a video only"),
    ],
)
def test_options_that_do_not_go_with_it(causal_repo: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VideoGenerator.from_pretrained(causal_repo, device="cpu", **options)


def test_tiles_do_not_go_with_it(causal_repo: Path) -> None:
    from fastvideo import PipelineConfig

    config = PipelineConfig.from_pretrained(causal_repo)
    config.vae_tiling = True
    with pytest.raises(ValueError, match="vae_tiling=True: does not go with streams=True"):
        VideoGenerator.from_pretrained(causal_repo, device="cpu", pipeline_config=config)


def test_weights_on_disk(causal_repo: Path, generator: VideoGenerator) -> None:
    expected = frames_of(generator, num_frames=21)
    options: dict[str, Any] = {"device": "cpu", "precision": "fp32", "disk_offload": True}
    for more in ({}, {"dit_layerwise_offload": True}):
        with VideoGenerator.from_pretrained(causal_repo, **options, **more) as other:
            assert np.array_equal(frames_of(other, num_frames=21), expected)


def storage_of(tensor: torch.Tensor) -> tuple[int, int]:
    """Where its numbers are, and in how many bytes; those of other tests may be of a kind that has none."""
    try:
        storage = tensor.untyped_storage()
        return storage.data_ptr(), storage.nbytes()
    except (NotImplementedError, RuntimeError):
        return 0, 0


def test_what_is_held_does_not_grow(generator: VideoGenerator) -> None:
    def held() -> int:
        gc.collect()
        return sum(dict(storage_of(item) for item in gc.get_objects() if issubclass(type(item), torch.Tensor)).values())

    sizes = []
    # rotary tables of the last eight chunks are kept
    for chunk in generator.stream(KITE, height=16, width=16, num_frames=12 * 16 - 3):
        if chunk.index in (10, 14):
            sizes.append(held())
    assert 0 < sizes[1] <= sizes[0]  # what other tests left may go meanwhile


def test_with_a_lora(generator: VideoGenerator, tmp_path: Path) -> None:
    plain = frames_of(generator, num_frames=21)
    path = loras.write(tmp_path / "style.safetensors", loras.comfy(loras.make_pairs(1)))
    assert not generator.set_lora_adapter("style", str(path), strength=4.0).not_applied
    changed = np.concatenate([chunk.frames for chunk in generator.stream(KITE, **{**SMALL, "num_frames": 21})])
    generator.set_lora_adapter("style", strength=0.0)
    assert not np.array_equal(changed, plain)
    assert np.array_equal(frames_of(generator, num_frames=21), plain)


def test_it_is_planned_on_one_device(causal_repo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(causal_repo), "--num-gpus", "2"]) != 0
    assert "num_gpus=2: does not go with streams=True" in capsys.readouterr().err
    # its usual length is many times what it looks back on
    assert main(["plan", str(causal_repo), "--ram", "8", "--size", "48x32", "--frames", "81"]) == 0
    assert "denoising" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_is_chosen(causal_repo: Path) -> None:
    with VideoGenerator.from_pretrained(causal_repo, device="cpu", memory="auto") as generator:
        assert frames_of(generator, num_frames=21).shape[0] == 21


def test_verify_compares_a_chunk(causal_repo: Path) -> None:
    rows = {(row.component, row.precision): row for row in verify(causal_repo, Clip(32, 48, 5))}
    assert rows["transformer", "fp32"].passed
    # the reference has no such pipeline
    assert ("pipeline", "fp32") not in rows
