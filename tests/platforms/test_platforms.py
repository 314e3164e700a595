"""Facts about devices."""

import mmap
from pathlib import Path

import pytest
import torch

from fastvideo.platforms import DTYPES, PLATFORMS, Platform, cpu, current_platform
from fastvideo.platforms.cpu import CPUPlatform


def test_auto_is_the_first_that_is_there() -> None:
    platform = current_platform()
    assert platform.why_unavailable() is None
    assert platform is current_platform(platform.device_type)


def test_the_processor_is_always_there() -> None:
    platform = current_platform("cpu")
    assert isinstance(platform, CPUPlatform)
    assert platform.device == torch.device("cpu")
    assert platform.name()
    platform.synchronize()


@pytest.mark.parametrize("device", ["cuda", "mps"])
def test_a_device_that_is_not_there_says_why(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    platform = next(platform for platform in PLATFORMS if platform.device_type == device)
    if platform.why_unavailable() is None:
        pytest.skip(f"{device} is there")
    with pytest.raises(ValueError, match=f"device='{device}': .*use 'cpu' or 'auto'") as error:
        current_platform(device)
    assert "\n" not in str(error.value)
    assert current_platform("auto").device_type != device


def test_an_unknown_device_lists_the_choices() -> None:
    with pytest.raises(ValueError, match="device='tpu': must be one of auto, cuda, mps, cpu"):
        current_platform("tpu")


@pytest.mark.parametrize("platform", PLATFORMS, ids=lambda platform: platform.device_type)
def test_what_is_there_reports_its_memory(platform: Platform) -> None:
    if platform.why_unavailable() is not None:
        pytest.skip(str(platform.why_unavailable()))
    assert 0 < platform.available_memory() <= platform.total_memory()
    assert set(platform.supported_precisions()) <= set(DTYPES)
    platform.reset_peak_memory()
    assert platform.peak_memory() >= 0


def test_dtypes() -> None:
    platform = current_platform("cpu")
    assert [platform.dtype(name) for name in ("fp32", "bf16", "fp16")] == [torch.float32, torch.bfloat16, torch.float16]
    with pytest.raises(ValueError, match=r"precision='int8': .* \(cpu\) does not compute in it; use one of fp32"):
        platform.dtype("int8")


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak can be reset on Linux only")
def test_the_peak_is_measured_from_the_reset_on() -> None:
    platform = current_platform("cpu")
    fill(100 << 20)
    platform.reset_peak_memory()
    before = platform.peak_memory()
    fill(50 << 20)
    assert 40 << 20 < platform.peak_memory() - before < 90 << 20


def fill(size: int) -> None:
    """Touch `size` bytes of new pages and give them back; an allocator may hand out pages that were there already."""
    with mmap.mmap(-1, size) as block:
        for page in range(0, size, mmap.PAGESIZE):
            block[page] = 1


def test_a_control_group_limits_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"max": "4000000", "current": "3000000", "stat": "anon 1\ninactive_file 500000\n"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(cpu, "_CGROUP_LIMITS", (tmp_path / "nothing", tmp_path / "max"))
    monkeypatch.setattr(cpu, "_CGROUP_USED", (tmp_path / "current",))
    monkeypatch.setattr(cpu, "_CGROUP_STATS", (tmp_path / "stat",))
    platform = CPUPlatform()
    assert platform.total_memory() == 4000000
    assert platform.available_memory() == 1500000
    (tmp_path / "max").write_text("max")
    assert platform.total_memory() > 4000000
