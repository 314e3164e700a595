"""`import fastvideo` is quick, and gives what the documentation says."""

import subprocess
import sys
from importlib import metadata

import pytest

import fastvideo


def test_the_names() -> None:
    from fastvideo import PipelineConfig, SamplingParam, VideoGenerator, __version__
    from fastvideo.api.sampling_param import SamplingParam as ThroughApi
    from fastvideo.configs.sample import SamplingParam as ThroughConfigs

    assert SamplingParam is ThroughApi is ThroughConfigs
    assert VideoGenerator.__name__ == "VideoGenerator"
    assert PipelineConfig.__name__ == "PipelineConfig"
    assert __version__.count(".") == 2
    assert dir(fastvideo) == ["PipelineConfig", "SamplingParam", "VideoGenerator", "__version__"]


def test_the_version_is_that_of_the_distribution() -> None:
    try:
        installed = metadata.version("fastvideo")
    except metadata.PackageNotFoundError:
        pytest.skip("fastvideo is not installed")
    assert fastvideo.__version__ == installed


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'VideoGenerater'"):
        fastvideo.VideoGenerater  # noqa: B018


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = (
        "import sys; from fastvideo import SamplingParam, PipelineConfig; import fastvideo.fastvideo_args;"
        "print(*{'torch', 'diffusers', 'transformers', 'numpy', 'av'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, timeout=120, capture_output=True, text=True)
    assert done.stdout.split() == []
