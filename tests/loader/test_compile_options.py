"""Keywords of `torch.compile` are checked before a weight is read."""

from pathlib import Path
from typing import Any

import pytest
from torch._dynamo.testing import CompileCounter

from fastvideo import PipelineConfig, VideoGenerator
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.loader.compile_options import check_compile_options
from fastvideo.models.loader.component_loader import load_components
from fastvideo.models.loader.repo import resolve_repo
from fastvideo.pipelines.basic.wan.wan_pipeline import WanPipeline


def asked(**kwargs: Any) -> FastVideoArgs:
    """Options with these keywords of `torch.compile`."""
    return FastVideoArgs.from_kwargs("m", enable_torch_compile=True, torch_compile_kwargs=kwargs)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"fullgrph": True}, "torch.compile has no keyword 'fullgrph'; did you mean 'fullgraph'? there are backend, "),
    ({"model": None}, "torch.compile has no keyword 'model'; "),
    ({"fullgraph": "yes"}, "fullgraph must be True or False"),
    ({"disable": True}, "disable leaves nothing compiled; set enable_torch_compile=False"),
    ({"mode": "nonsense"}, "torch.compile has no mode 'nonsense'; there are default, "),
    ({"mode": "max-autotun"}, "did you mean 'max-autotune'?"),
    ({"backend": "nope"}, "torch.compile has no backend 'nope'; there are aot_eager, "),
    ({"backend": "inducter"}, "did you mean 'inductor'?"),
    ({"backend": 3}, "backend must be a name or a function"),
    ({"backend": "eager", "mode": "max-autotune"}, "mode is about inductor, and not eager; leave one of them out"),
    ({"options": {"max_autotun": True}}, "no option 'max_autotun'; did you mean 'max_autotune'? there are those of "),
    ({"options": {"max_autotune": "yes"}}, "torch.compile refuses it; Unexpected type of attr max_autotune"),
    ({"mode": "default", "options": {"max_autotune": True}}, "torch.compile refuses it; Either mode or options"),
]


@pytest.mark.parametrize(("kwargs", "words"), BAD, ids=[str(kwargs) for kwargs, _ in BAD])
def test_what_torch_does_not_have_is_refused(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError) as error:
        check_compile_options(asked(**kwargs))
    assert str(error.value).startswith(f"torch_compile_kwargs={kwargs!r}: ")
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"mode": "max-autotune-no-cudagraphs", "fullgraph": True, "dynamic": None},
        {"backend": "inductor", "options": {"max-autotune": False, "triton.cudagraphs": False}},
        {"backend": "aot_eager", "dynamic": False},
        {"backend": CompileCounter(), "mode": "whatever it takes"},
    ],
    ids=["nothing", "mode", "options", "backend", "callable"],
)
def test_what_it_has_goes(kwargs: dict[str, Any]) -> None:
    check_compile_options(asked(**kwargs))


def test_a_check_changes_nothing() -> None:
    options = {"guard_filter_fn": list, "max_autotune": False}
    check_compile_options(asked(options=options))
    assert options == {"guard_filter_fn": list, "max_autotune": False}


def test_nothing_is_read_before(wan_repo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kwargs: dict[str, Any] = {"enable_torch_compile": True, "torch_compile_kwargs": {"mode": "nonsense"}}
    repo, config = resolve_repo(wan_repo), PipelineConfig.from_pretrained(wan_repo)
    args = FastVideoArgs.from_kwargs(wan_repo, device="cpu", **kwargs)
    monkeypatch.setattr("fastvideo.models.loader.component_loader.blueprint", None)
    with pytest.raises(ValueError, match="no mode 'nonsense'"):
        load_components(repo, WanPipeline._required_config_modules, args, config, progress=False)
    # a generator asks even before it looks for the repo, which may have to be fetched
    monkeypatch.setattr("fastvideo.entrypoints.video_generator.resolve_repo", None)
    with pytest.raises(ValueError, match="no mode 'nonsense'"):
        VideoGenerator.from_pretrained(wan_repo, device="cpu", **kwargs)
