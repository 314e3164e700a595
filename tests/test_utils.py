"""`fastvideo.utils`."""

import hashlib
from pathlib import Path

import pytest

from fastvideo.utils import atomic_path, nearest, read_json, require, require_known, resolve, sha256_file


def test_resolve_imports_a_name() -> None:
    assert resolve("fastvideo.utils:nearest") is nearest


@pytest.mark.parametrize("reference", ["fastvideo.utils", "fastvideo.utils:", "fastvideo.utils:nothing"])
def test_resolve_refuses_what_is_not_there(reference: str) -> None:
    with pytest.raises(ValueError, match=r"fastvideo.utils"):
        resolve(reference)


def test_require_says_value_rule_and_fix() -> None:
    with pytest.raises(ValueError, match=r"^num_frames=50: must be 4k\+1; try 49$"):
        require(False, "num_frames", 50, "must be 4k+1", "try 49")
    require(True, "num_frames", 49, "must be 4k+1")


@pytest.mark.parametrize(
    ("word", "found"), [("num_frame", "num_frames"), ("WIDTH", "width"), ("colour", None), ("Steps", "steps")]
)
def test_nearest(word: str, found: str | None) -> None:
    assert nearest(word, ["num_frames", "width", "height", "steps"]) == found


def test_require_known_names_the_nearest_or_all() -> None:
    with pytest.raises(ValueError, match=r"'hight': unknown field; did you mean 'height'\?"):
        require_known(["hight"], ["height", "width"], "field")
    with pytest.raises(ValueError, match="known are height, width"):
        require_known(["zzz"], ["height", "width"], "field")


@pytest.mark.parametrize(
    ("text", "rule"), [("{", "not valid JSON"), ("[1]", "must be a JSON object"), (None, "cannot be read")]
)
def test_read_json_names_the_file(tmp_path: Path, text: str | None, rule: str) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match=rule) as error:
        read_json(path)
    assert str(path) in str(error.value)


def test_atomic_path_renames_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "clip.mp4"
    with atomic_path(path) as temporary:
        temporary.write_text("new")
        assert temporary.suffix == ".mp4"
        assert temporary.parent == path.parent
        assert not path.exists()
    assert path.read_text() == "new"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("exception", [OSError, KeyboardInterrupt])
def test_atomic_path_leaves_nothing_after_an_exception(tmp_path: Path, exception: type[BaseException]) -> None:
    path = tmp_path / "clip.mp4"
    path.write_text("old")
    with pytest.raises(exception), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise exception
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_atomic_path_holds_for_folders(tmp_path: Path) -> None:
    with atomic_path(tmp_path / "frames") as temporary:
        temporary.mkdir()
        (temporary / "0.png").write_text("x")
    assert (tmp_path / "frames" / "0.png").is_file()
    with pytest.raises(RuntimeError), atomic_path(tmp_path / "more") as temporary:
        temporary.mkdir()
        (temporary / "0.png").write_text("x")
        raise RuntimeError
    assert [path.name for path in tmp_path.iterdir()] == ["frames"]


def test_sha256_file(tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(b"ab" * (1 << 20))
    assert sha256_file(path) == hashlib.sha256(b"ab" * (1 << 20)).hexdigest()
