"""What `fastvideo plan` predicts, beside what a process that does the work really needs. Linux only: it reads /proc.

    python benchmarks/plan_accuracy.py                 the model in the package, and a random one of some hundred MB
    python benchmarks/plan_accuracy.py --held-out      cases that the way to predict was not made with
    python benchmarks/plan_accuracy.py --only causal   those of one model alone
    python benchmarks/plan_accuracy.py --only shapes-t2v   those of the model in the package, which a slow test holds

Each case is measured in a process of its own: its peak, from its start to the finished file, is compared with the
prediction for it, which another process makes. The table also has each stage's peak and seconds.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

MB = 1e6
SHIPPED = "shapes-t2v"
"""The model in the package."""


def measure(model: str, options: dict[str, Any], config: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Make a video in this process; bytes of the process at its peak in each stage, and seconds."""
    from fastvideo import PipelineConfig, VideoGenerator
    from fastvideo.pipelines.stages import PipelineStage
    from fastvideo.platforms.cpu import CPUPlatform

    cpu, peaks = CPUPlatform(), {}
    pipeline_config = PipelineConfig.from_pretrained(model)
    pipeline_config.update(**config)
    with VideoGenerator.from_pretrained(model, device="cpu", pipeline_config=pipeline_config, **options) as generator:
        peaks["loading"] = cpu.peak_memory()
        for stage in generator._executor._pipeline.stages:  # type: ignore[union-attr]
            watch(stage, cpu, peaks)
        assert issubclass(type(stage), PipelineStage)
        with tempfile.TemporaryDirectory() as folder:
            request = request | shown(model, request)
            result = generator.generate_video("a red circle moving left", output_path=f"{folder}/clip.mp4", **request)
        peaks["saving"] = cpu.peak_memory()
    return {"peaks": peaks, "seconds": result.stage_times, "peak": max(peaks.values())}


def shown(model: str, request: dict[str, Any]) -> dict[str, Any]:
    """Grey media, as many as `model` needs."""
    import numpy as np

    from fastvideo import SamplingParam

    needs, size = SamplingParam.from_pretrained(model).needs, (request.get("height", 0), request.get("width", 0))
    media: dict[str, Any] = {"image_fit": "stretch"} if needs else {}
    for name in needs:
        frames = () if name == "image" else (request["num_frames"],)
        if name == "face_video":  # as large as the model looks at it
            size = (json.loads((Path(model) / "transformer" / "config.json").read_text())["motion_encoder_size"],) * 2
        media[name] = np.full((*frames, *size, 3), 128, dtype=np.uint8)
    return media


def watch(stage: Any, cpu: Any, peaks: dict[str, int]) -> None:
    """Have `stage` note its peak in `peaks`."""
    forward = stage.forward

    def watched(batch: Any, args: Any) -> Any:
        cpu.reset_peak_memory()
        try:
            return forward(batch, args)
        finally:
            peaks[stage.name] = cpu.peak_memory()
            cpu.reset_peak_memory()

    stage.forward = watched


def predict(model: str, options: dict[str, Any], config: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """What is foretold of `measure` with the same arguments, in this process."""
    import fastvideo.entrypoints.video_generator  # noqa: F401 - as in the process that is foretold
    from fastvideo import PipelineConfig, SamplingParam
    from fastvideo.entrypoints.planning.choose import ways
    from fastvideo.fastvideo_args import FastVideoArgs
    from fastvideo.models.loader.repo import resolve_repo

    sampling, args = SamplingParam.from_pretrained(model), FastVideoArgs(model=model, device="cpu", **options)
    sampling.update(**request)
    pipeline_config = PipelineConfig.from_pretrained(model)
    pipeline_config.update(**config)
    way = next(ways(
        resolve_repo(model), args, args.resolved_pipeline_config(pipeline_config), sampling,
        explicit=("pipeline_config", "disk_offload", "dit_layerwise_offload"), on_cpu=True, device_memory=0,
        host_memory=10**12,
    ))  # fmt: skip
    return {"predicted": way.host, "foretold": {stage.name: stage.seconds for stage in way.stages}}


LARGE = {"num_inference_steps": 2, "height": 192, "width": 256, "num_frames": 33}
SMALL = {"num_inference_steps": 1, "height": 128, "width": 192, "num_frames": 9}
Case = tuple[str, dict[str, Any], dict[str, Any], dict[str, Any]]
CASES: list[Case] = [
    ("", {}, {}, {"num_inference_steps": 2}),
    ("", {"disk_offload": True}, {}, {"num_inference_steps": 2}),
    ("", {"precision": "bf16"}, {}, LARGE),
    ("", {}, {}, LARGE),
    ("", {}, {"vae_tiling": True, "vae_tile_size": 64}, LARGE),
    ("random", {}, {}, SMALL),
    ("random", {"precision": "bf16"}, {}, SMALL),
    ("random", {"disk_offload": True}, {}, SMALL),
    ("random", {"disk_offload": True, "dit_layerwise_offload": True}, {}, SMALL),
    ("random", {"quantization": "int8", "text_encoder_quantization": "int8"}, {}, SMALL),
    ("random", {"quantization": "nf4", "disk_offload": ("text_encoder",)}, {}, SMALL),
    ("images", {}, {}, SMALL),
    ("images", {}, {}, {"num_inference_steps": 1, "height": 256, "width": 320, "num_frames": 17}),
    ("causal", {}, {}, {"height": 128, "width": 192, "num_frames": 33}),
    ("animate", {}, {}, {**SMALL, "num_frames": 33, "segment_frame_length": 17}),
]
"""The model ("" is the one in the package), options, pipeline config and request."""
HELD_OUT: list[Case] = [
    ("", {}, {}, {"num_inference_steps": 1, "height": 256, "width": 256, "num_frames": 9}),
    ("", {"precision": "bf16"}, {}, {"num_inference_steps": 1, "height": 320, "width": 448, "num_frames": 5}),
    ("", {}, {}, {"num_inference_steps": 1, "height": 160, "width": 160, "num_frames": 49}),
    ("", {"disk_offload": True}, {}, {"num_inference_steps": 1, "height": 192, "width": 320, "num_frames": 17}),
    (
        "",
        {},
        {"vae_tiling": True, "vae_tile_size": 128},
        {"num_inference_steps": 1, "height": 256, "width": 256, "num_frames": 17},
    ),
    (
        "",
        {"precision": "bf16"},
        {"vae_tiling": True, "vae_tile_size": 96},
        {"num_inference_steps": 1, "height": 192, "width": 192, "num_frames": 49},
    ),
    ("random", {}, {}, {"num_inference_steps": 1, "height": 240, "width": 320, "num_frames": 5}),
    (
        "random",
        {"disk_offload": ("text_encoder",)},
        {},
        {"num_inference_steps": 1, "height": 192, "width": 192, "num_frames": 13},
    ),
    (
        "random",
        {"precision": "bf16", "disk_offload": True},
        {},
        {"num_inference_steps": 1, "height": 160, "width": 256, "num_frames": 9},
    ),
    ("causal", {"precision": "bf16"}, {}, {"height": 160, "width": 160, "num_frames": 21}),
    (
        "animate",
        {},
        {},
        {"num_inference_steps": 1, "height": 160, "width": 224, "num_frames": 25, "segment_frame_length": 9},
    ),
]
"""Cases that were not looked at while the way to predict was made."""


def child(what: str, case: tuple[Any, ...]) -> dict[str, Any]:
    """`measure` or `predict` in a process of its own."""
    command = [sys.executable, __file__, "--child", what, json.dumps(case)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def random_repo(folder: Path, kind: str = "random") -> str:
    """A repo of some hundred MB: "images" is of image to video, "causal" makes chunks, "animate" segments."""
    from tests.causal_repos import make_causal_repo
    from tests.tiny_repos import make_animate_repo, make_i2v_repo, make_wan_repo

    sizes = {"num_attention_heads": 8, "attention_head_dim": 128, "num_layers": 8, "ffn_dim": 4096}
    whole: dict[str, Any] = {"transformer": sizes, "vae": {"base_dim": 32}, "text_encoder": {"num_heads": 4}}
    if kind == "images":
        return str(make_i2v_repo(folder, transformer={**sizes, "added_kv_proj_dim": 1024}))
    if kind == "animate":
        return str(make_animate_repo(folder, transformer={**sizes, "added_kv_proj_dim": 1024}))
    if kind == "causal":
        return str(make_causal_repo(folder, sizes=whole, sliding_window_num_frames=6, sink_size=1))
    return str(make_wan_repo(folder, **whole))


def main() -> None:
    """Measure, predict and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [name or SHIPPED for name in dict.fromkeys(case[0] for case in CASES)]
    parser.add_argument("--only", metavar="NAME", choices=names, help=f"cases of this model: {', '.join(names)}")
    parser.add_argument("--held-out", action="store_true", help="other cases, none of them looked at before")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON in the last line")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run = {"measure": measure, "predict": predict}[options.child[0]]
        print(json.dumps(run(*json.loads(options.child[1]))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        cases = HELD_OUT if options.held_out else CASES
        cases = [case for case in cases if options.only in (None, case[0] or SHIPPED)]
        made: dict[str, str] = {"": SHIPPED}
        for name, *rest in cases:
            if name not in made:
                made[name] = random_repo(Path(folder) / name, name)
            case = (made[name], *rest)
            found = {**child("measure", case), **child("predict", case)}
            rows.append({"case": f"{name or SHIPPED} {rest}", **found})
            error = found["predicted"] / found["peak"] - 1
            print(f"{found['peak'] / MB:8.0f} MB measured, {found['predicted'] / MB:8.0f} predicted, {error:+.1%}  "
                  f"{rows[-1]['case']}", flush=True)  # fmt: skip
    if options.json:
        print(json.dumps(rows))


if __name__ == "__main__":
    main()
