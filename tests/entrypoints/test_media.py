"""Files: that browsers play them, that they say what made them, and that nothing half written is ever left."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from fastvideo.entrypoints import media

METADATA = {"fastvideo": "0.1.0", "request": {"prompt": 'a "red" circle, 猫 été\n' * 60, "seed": 3}, "none": None}
PINK, RED, NAVY = (255, 192, 203), (255, 0, 0), (0, 0, 128)


def clip(frames: int = 9, height: int = 96, width: int = 96) -> np.ndarray:
    """A red square that moves right over pink, with a navy floor."""
    video = np.empty((frames, height, width, 3), np.uint8)
    video[:] = PINK
    video[:, height - 20 :] = NAVY
    for number in range(frames):
        video[number, 20:44, 8 + 4 * number : 32 + 4 * number] = RED
    return video


def boxes(data: bytes) -> list[str]:
    """The names of an MP4's outermost boxes, in order."""
    names, place = [], 0
    while place < len(data):
        names.append(data[place + 4 : place + 8].decode())
        place += int.from_bytes(data[place : place + 4], "big")
    return names


def test_mp4_is_what_browsers_play(tmp_path):
    path = media.write_video(clip(), tmp_path / "clip.mp4", 12, METADATA)
    assert boxes(path.read_bytes())[:2] == ["ftyp", "moov"], "the index must come before the data"
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.width, context.height) == ("h264", "yuv420p", 96, 96)
        assert (stream.frames, stream.average_rate, float(stream.duration * stream.time_base)) == (9, 12, 0.75)
        tags = context.color_primaries, context.color_trc, context.colorspace, context.color_range
        assert tags == (1, 1, 1, 1), "BT.709, limited range"


def test_mp4_keeps_colours(tmp_path):
    frames = media.read_frames(media.write_video(clip(), tmp_path / "clip.mp4", 12, METADATA)).astype(int)
    for (y, x), colour in (((80, 50), NAVY), ((10, 50), PINK), ((32, 20), RED)):
        assert np.abs(frames[0, y, x] - colour).max() <= 3


@pytest.mark.parametrize("size", [(95, 96), (96, 97), (33, 51)])
def test_mp4_of_odd_size_gains_a_line(tmp_path, size):
    video = clip(5, *size)
    frames = media.read_frames(media.write_video(video, tmp_path / "clip.mp4", 12, METADATA)).astype(int)
    assert frames.shape == (5, size[0] + size[0] % 2, size[1] + size[1] % 2, 3)
    assert np.abs(frames[:, : size[0], : size[1]] - video).mean() < 4  # 4:2:0 blurs the edges


@pytest.mark.parametrize("name", ["clip.mp4", "clip.MP4", "clip.gif", "clip.webp", "frames", "frames/f%03d.png"])
def test_metadata_comes_back(tmp_path, name):
    path = media.write_video(clip(), tmp_path / name, 12, METADATA)
    assert path == media.on_disk(tmp_path / name)
    assert media.read_metadata(path) == METADATA
    assert media.read_frames(path).shape == (9, 96, 96, 3)


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.webp", "frames"])
def test_the_same_clip_gives_the_same_bytes(tmp_path, name):
    first = media.write_video(clip(), tmp_path / "a" / name, 12, METADATA)
    second = media.write_video(list(clip()), tmp_path / "b" / name, 12, METADATA)
    files = [(first, second)] if first.is_file() else [(png, second / png.name) for png in first.iterdir()]
    for one, other in files:
        assert one.read_bytes() == other.read_bytes()


def test_mp4_of_noise_gives_the_same_bytes_every_time(tmp_path):
    blocks = np.random.default_rng(2).normal(128, 40, (17, 12, 16, 3)).clip(0, 255).astype(np.uint8)
    video = blocks.repeat(6, axis=1).repeat(6, axis=2)  # an encoder that is not exact shows it here
    files = {media.write_video(video, tmp_path / "clip.mp4", 16, METADATA).read_bytes() for _ in range(12)}
    assert len(files) == 1


def test_pngs_are_exact(tmp_path):
    assert (media.read_frames(media.write_video(clip(), tmp_path / "frames", 12, METADATA)) == clip()).all()


@pytest.mark.parametrize("name", ["clip.gif", "clip.webp"])
@pytest.mark.parametrize(
    ("frames", "pictures"), [(17, 17), (25, 23)]
)  # the square leaves: equal frames are one picture
def test_animations_keep_time_and_loop(tmp_path, name, frames, pictures):
    with Image.open(media.write_video(clip(frames), tmp_path / name, 12, METADATA)) as image:
        durations = []
        for number in range(image.n_frames):
            image.seek(number)
            image.load()
            durations.append(image.info["duration"])
        assert image.info["loop"] == 0
    assert len(durations) == pictures
    assert sum(durations) == pytest.approx(1000 * frames / 12, abs=10)


def test_other_programs_find_the_metadata(tmp_path):
    png = media.write_video(clip(1), tmp_path / "frames", 12, METADATA) / "0000.png"
    with Image.open(png) as image:
        assert json.loads(image.text["fastvideo"]) == METADATA
    with Image.open(media.write_video(clip(), tmp_path / "clip.webp", 12, METADATA)) as image:
        assert json.loads(image.getexif()[0x010E]) == METADATA


def test_frames_in_their_place_are_replaced_and_nothing_else_is(tmp_path):
    folder = media.write_video(clip(9), tmp_path / "frames", 12, METADATA)
    media.write_video(clip(5), folder, 12, METADATA)
    assert len(list(folder.iterdir())) == 5
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds other files \(notes.txt\)"):
        media.write_video(clip(5), folder, 12, METADATA)
    with pytest.raises(FileExistsError, match="holds other files"):
        media.output_file(folder / media.PNG_PATTERN, "x")
    assert len(list(folder.iterdir())) == 6


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.webp", "frames"])
@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_an_interrupted_write_leaves_what_was_there(tmp_path, monkeypatch, name, error):
    path = tmp_path / name
    if path.suffix:
        path.write_bytes(b"before")

    def interrupt(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(av, "VideoFrame", SimpleNamespace(from_ndarray=interrupt))
    monkeypatch.setattr(Image.Image, "save", interrupt)
    with pytest.raises(error):
        media.write_video(clip(), path, 12, METADATA)
    assert [one.name for one in tmp_path.iterdir()] == ([name] if path.suffix else [])
    assert not path.suffix or path.read_bytes() == b"before"


FULL_DISK = """
import resource, sys
import numpy as np
from fastvideo.entrypoints import media
noise = np.random.default_rng(0).integers(0, 256, (9, 96, 96, 3), np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    media.write_video(noise, sys.argv[1], 12, {"fastvideo": "0"})
except OSError as error:
    print(error)
"""


@pytest.mark.parametrize("name", ["clip.mp4", "clip.gif", "clip.webp", "frames"])
def test_a_file_that_cannot_grow_is_one_line_and_no_file(tmp_path, name):
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path / name)], capture_output=True, text=True, env=env, check=True
    )
    assert done.stdout == f"{tmp_path / name}: cannot be written: File too large; choose another output path\n"
    assert done.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_says_so(tmp_path):
    hint = pytest.raises(OSError, match="No space left on device; free some space there, or choose")
    with hint as caught, media.one_line_errors(tmp_path / "clip.mp4"):
        raise OSError(28, "No space left on device")
    assert caught.value.errno == 28


@pytest.mark.parametrize("name", ["clip.mp4", "frames", "sub/clip.gif"])
def test_a_folder_that_cannot_be_written_is_found_before_the_work(tmp_path, name):
    (tmp_path / "blocked").write_text("a file where a folder should be")
    with pytest.raises(OSError, match=r"blocked.*: cannot be written: "):
        media.output_file(tmp_path / "blocked" / name, "x")


@pytest.mark.parametrize(
    ("frames", "fps", "name", "message"),
    [
        (clip().astype(np.float32), 12, "a.mp4", "float32: must be uint8"),
        (clip()[0], 12, "a.mp4", "must be uint8"),
        (clip()[:0], 12, "a.mp4", "must be uint8"),
        (clip(), 0, "a.mp4", "fps=0: must be above 0"),
        (clip(), float("nan"), "a.mp4", "fps=nan: must be above 0"),
        (clip(), 12, "a.avi", r"\.avi cannot be written; use one of \.mp4, \.gif, \.webp"),
        (clip(), 12, "a.png", "one PNG holds one frame"),
    ],
)
def test_what_cannot_be_written(tmp_path, frames, fps, name, message):
    with pytest.raises(ValueError, match=message):
        media.write_video(frames, tmp_path / name, fps, METADATA)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_gives_a_file_named_after_the_prompt(tmp_path):
    name = "A red circle, moving left - on a white background"
    assert media.output_file(tmp_path, name) == tmp_path / f"{name}.mp4"
    (tmp_path / f"{name}.mp4").touch()
    assert media.output_file(f"{tmp_path}/", name) == tmp_path / f"{name}_1.mp4"
    (tmp_path / f"{name}_1.mp4").touch()
    assert media.output_file(tmp_path, name, ".gif") == tmp_path / f"{name}.gif"
    assert media.output_file(tmp_path / "new" / "folder", name) == tmp_path / "new" / "folder" / f"{name}.mp4"
    assert (tmp_path / "new" / "folder").is_dir()
    new = [path.name for path in media.output_files(tmp_path, name, 3)]
    assert new == [f"{name}_2.mp4", f"{name}_2_1.mp4", f"{name}_2_2.mp4"]


@pytest.mark.parametrize("name", ["out.mp4", "out.GIF", "new/out.webp", "frames/%04d.png"])
def test_a_file_is_used_as_it_is(tmp_path, name):
    assert media.output_file(tmp_path / name, "a prompt") == tmp_path / name
    several = media.output_files(tmp_path / name, "a prompt", 2)
    assert len(set(several)) == 2
    assert several[0] == tmp_path / name
    for path in several:
        media.write_video(clip(2), path, 12, METADATA)
    assert media.output_files(tmp_path / name, "a prompt", 2) == several, "the same request writes the same files"


@pytest.mark.parametrize(
    ("prompt", "stem"),
    [
        ('a/b\\c:d*e?f"g<h>i|j\nk\tl', "abcdefghij k l"),
        ("../../etc/passwd", "etcpasswd"),
        (" .hidden. ", "hidden"),
        ("x" * 300, "x" * 100),
        ("猫" * 100, "猫" * 66),
        ("???", "video"),
        ("", "video"),
    ],
)
def test_names_are_safe(tmp_path, prompt, stem):
    assert media.file_stem(prompt) == stem
    path = media.output_file(tmp_path, prompt)
    path.touch()
    assert path.parent == tmp_path


@pytest.mark.parametrize("name", ["none.mp4", "text.mp4", "plain.mp4", "plain.gif", "empty"])
def test_files_of_others_carry_nothing(tmp_path, name):
    path = tmp_path / name
    if name == "text.mp4":
        path.write_text("not a video")
    elif name == "plain.gif":
        Image.new("RGB", (8, 8)).save(path)
    elif name == "empty":
        path.mkdir()
    elif name == "plain.mp4":
        media.write_mp4(clip(2), path, 12, "made by somebody else")
    error = FileNotFoundError if name == "none.mp4" else ValueError
    with pytest.raises(error, match=r"no such file|carries no FastVideo metadata"):
        media.read_metadata(path)


def test_contact_sheet(tmp_path):
    path = media.contact_sheet(clip(17), tmp_path / "new" / "sheet.png", columns=6)
    with Image.open(path) as sheet:
        assert sheet.size == (6 * 100 + 4, 3 * 114 + 4)
        assert sheet.getpixel((4 + 20, 4 + 32)) == RED
        assert sheet.getpixel((4 + 100 + 4 + 20 + 3, 4 + 32)) == RED
    with Image.open(media.contact_sheet(clip(81, 16, 16), tmp_path / "long.png", limit=9)) as sheet:
        assert sheet.size == (3 * 20 + 4, 3 * 34 + 4)
    with Image.open(media.contact_sheet(clip(1), tmp_path / "one.png")) as sheet:
        assert sheet.size == (104, 118)
    assert not list(tmp_path.rglob(".*"))
