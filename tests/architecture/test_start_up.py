"""What answers at once must not import what takes seconds."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "diffusers", "transformers", "numpy", "av", "PIL")
LIGHT = (
    "fastvideo",
    "fastvideo.configs.sample",
    "fastvideo.configs.pipelines",
    "fastvideo.configs.registry",
    "fastvideo.fastvideo_args",
    "fastvideo.api.sampling_param",
    "fastvideo.entrypoints.cli.main",
)


def run(code: str) -> str:
    """What `code` prints in a process of its own."""
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert made.returncode == 0, made.stderr
    return made.stdout.strip()


@pytest.mark.parametrize("module", LIGHT)
def test_importing_it_is_quick(module: str) -> None:
    assert run(f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])") == "[]"


def test_the_configs_of_every_model_are_there_without_torch() -> None:
    code = """
import sys
from fastvideo import PipelineConfig, SamplingParam
from fastvideo.configs.registry import MODELS
from fastvideo.utils import resolve
for entry in MODELS:
    resolve(entry.sampling)()
    resolve(entry.pipeline_config)()
print("torch" in sys.modules)
"""
    assert run(code) == "False"


def test_a_clip_needs_neither_the_compiler_nor_the_reference() -> None:
    code = """
import sys
from fastvideo import VideoGenerator
with VideoGenerator.from_pretrained("shapes-t2v") as generator:
    generator.generate_video("a red circle", num_inference_steps=1, num_frames=5, save_video=False)
print([name for name in ("torch._dynamo", "diffusers", "transformers") if name in sys.modules])
"""
    assert run(code) == "[]"
