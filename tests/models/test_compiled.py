"""Compiled blocks: one graph each, and none again for another step or a longer prompt."""

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from fastvideo import VideoGenerator
from fastvideo.distributed.offload import Home, Weights
from fastvideo.models.loader.component_loader import blueprint
from fastvideo.models.loader.offload import DiskHome, host_home, offload
from fastvideo.models.loader.repo import resolve_repo
from tests.models.reference import error, ours

CPU = torch.device("cpu")


class Counted:
    """A home that knows how many of its copies have memory."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.storages: list[weakref.ref[torch.UntypedStorage]] = []

    def read(self, names: Collection[str], device: torch.device) -> Weights:
        made = self.home.read(names, device)
        self.storages += [weakref.ref(x.untyped_storage()) for x in made.values()]
        return made

    def count(self) -> int:
        """Copies that have memory."""
        gc.collect()
        return sum(storage() is not None for storage in self.storages)


def offloaded(repo: Path, kind: str, by_layer: bool) -> tuple[Any, Counted]:
    """The transformer of `repo`, its weights at a home of `kind`."""
    model = ours(repo, "transformer")
    if kind == "disk":
        source = resolve_repo(repo).components["transformer"]
        home = Counted(DiskHome(model.to("meta"), source.weight_files, blueprint(source).mapping))
    else:
        home = Counted(host_home(model))
    offload(model, home, CPU, by_layer=by_layer)
    return model, home


def inputs(length: int, time: float) -> dict[str, torch.Tensor]:
    """One request of a step."""
    generator = torch.Generator().manual_seed(length)
    latents = torch.randn(2, 16, 3, 6, 8, generator=generator)
    return {
        "latents": latents,
        "timestep": torch.full((2,), time),
        "text": torch.randn(2, length, 36, generator=generator),
    }


@torch.no_grad()
def test_one_graph_serves_every_step_and_prompt(wan_repo: Path) -> None:
    torch.compiler.reset()
    model, plain = (ours(wan_repo, "transformer") for _ in range(2))
    counter = CompileCounter()
    model.compile_blocks(backend=counter, fullgraph=True)
    for length, time in ((5, 999.0), (5, 500.5), (9, 10.0), (2, 10.0), (40, 3.0)):
        one = inputs(length, time)
        # the rotation is in real numbers there: the same up to rounding
        assert error(model(**one, text_padding=7), plain(**one, text_padding=7)) < 1e-6
    assert counter.frame_count == 1, "the blocks are alike, so one graph does for all of them"
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("kind", "by_layer"),
    [
        ("disk", True),
        pytest.param("host", True, marks=pytest.mark.slow),
        pytest.param("disk", False, marks=pytest.mark.slow),
        pytest.param("host", False, marks=pytest.mark.slow),
    ],
)
@torch.no_grad()
def test_weights_that_come_and_go(wan_repo: Path, kind: str, by_layer: bool) -> None:
    """The same bits, one graph still, and it holds on to no weight."""
    torch.compiler.reset()
    there = ours(wan_repo, "transformer")
    there.compile_blocks(backend="eager")
    requests = [inputs(length, time) for length, time in ((5, 999.0), (5, 500.5), (9, 10.0), (9, 3.0))]
    expected = [there(**one, text_padding=7) for one in requests]
    torch.compiler.reset()
    model, home = offloaded(wan_repo, kind, by_layer)
    counter = CompileCounter()
    model.compile_blocks(backend=counter, fullgraph=True)
    layer = len(model.blocks[0].state_dict())
    rest = len(model.state_dict()) - layer * len(model.blocks)
    for part in (slice(0, 3), slice(3, 4)):
        model.residence.enter()
        for one, video in zip(requests[part], expected[part], strict=True):
            assert torch.equal(model(**one, text_padding=7), video)
            # what has run is gone, but for layers on their way to the next pass
            assert home.count() <= (rest + layer if by_layer else len(model.state_dict()))
        model.residence.leave()
        assert home.count() == 0
    assert counter.frame_count == 1, "weights of another address do with the same graph"
    torch.compiler.reset()


@pytest.mark.slow
@pytest.mark.parametrize("by_layer", [False, True])
@torch.no_grad()
def test_weights_that_come_and_go_under_compiled_code(wan_repo: Path, by_layer: bool) -> None:
    torch.compiler.reset()
    there = ours(wan_repo, "transformer")
    there.compile_blocks()
    model, home = offloaded(wan_repo, "disk", by_layer)
    model.compile_blocks()
    for length in (5, 9, 2):
        one = inputs(length, 500.0)
        model.residence.enter()
        assert torch.equal(model(**one, text_padding=7), there(**one, text_padding=7))
        model.residence.leave()
        assert home.count() == 0
    torch.compiler.reset()


@pytest.mark.slow
@torch.no_grad()
def test_compiled_to_code(wan_repo: Path) -> None:
    model, plain = (ours(wan_repo, "transformer") for _ in range(2))
    model.compile_blocks()
    for length in (5, 9):
        one = inputs(length, 500.0)
        assert error(model(**one, text_padding=7), plain(**one, text_padding=7)) < 1e-5


@pytest.mark.slow
def test_a_generator_compiles_for_its_first_step_alone(wan_repo: Path) -> None:
    """Neither another step, nor another number of them, nor a prompt of another length is compiled for again."""
    torch.compiler.reset()
    graphs = torch._dynamo.utils.counters["stats"]
    lengths: set[int] = set()
    graphs.clear()
    options: dict[str, Any] = {"enable_torch_compile": True, "torch_compile_kwargs": {"backend": "eager"}}
    request: dict[str, Any] = {"height": 32, "width": 48, "num_frames": 5, "guidance_scale": 3.0, "save_video": False}

    def note(_: Any, args: Any, given: dict[str, torch.Tensor]) -> None:
        lengths.add(given["text"].shape[1])

    with VideoGenerator.from_pretrained(str(wan_repo), device="cpu", precision="fp32", **options) as generator:
        model = generator._executor._pipeline.components["transformer"]  # type: ignore[union-attr]
        model.register_forward_pre_hook(note, with_kwargs=True)
        generator.generate_video("a red circle", num_inference_steps=1, **request)
        compiled = graphs["unique_graphs"]
        with torch._dynamo.config.patch(error_on_recompile=True):
            for prompt, steps in (("a", 2), ("a red circle moving left, and a blue square", 3), ("circle " * 20, 1)):
                generator.generate_video(prompt, num_inference_steps=steps, **request)
    assert len(lengths) > 3
    assert graphs["unique_graphs"] == compiled == 1
    torch.compiler.reset()


COMPILE = """
import json, sys
from torch._dynamo.utils import counters  # a program may import the compiler before us
from fastvideo import VideoGenerator
with VideoGenerator.from_pretrained(sys.argv[1], device="cpu", precision="fp32", enable_torch_compile=True) as made:
    made.generate_video("a red circle", height=32, width=48, num_frames=5, num_inference_steps=1, save_video=False)
print(json.dumps({**counters["inductor"], "graphs": counters["stats"]["unique_graphs"]}))
"""


@pytest.mark.slow
def test_the_next_program_starts_with_the_code_of_the_last(wan_repo: Path, tmp_path: Path) -> None:
    """Two processes, one after the other, with one cache folder: the second compiles nothing that the first did."""
    environment = {**os.environ, "FASTVIDEO_CACHE_ROOT": str(tmp_path)}
    for name in [name for name in environment if name.startswith("TORCHINDUCTOR_")]:
        del environment[name]
    counted = []
    for _ in range(2):
        command = [sys.executable, "-c", COMPILE, str(wan_repo)]
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
        counted.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = counted
    assert first["graphs"] == second["graphs"] == 1
    assert (first.get("fxgraph_cache_hit", 0), first["fxgraph_cache_miss"]) == (0, 1)
    assert (second["fxgraph_cache_hit"], second.get("fxgraph_cache_miss", 0)) == (1, 0)
    assert (tmp_path / "compiled" / "fxgraph").is_dir()
