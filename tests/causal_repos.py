"""Small repos of models that make a video chunk by chunk."""

import json
from pathlib import Path
from typing import Any

from tests.tiny_repos import make_wan_repo


def make_causal_repo(
    path: Path,
    seed: int = 0,
    index_class: str = "CausalWanTransformer3DModel",
    sizes: dict[str, Any] | None = None,
    **fields: Any,
) -> Path:
    """A repo of a causal Wan pipeline in folder `path`, with the weights of `make_wan_repo(..., seed=seed)`.

    Args:
        path: the folder.
        seed: of the weights.
        index_class: of the transformer in the index.
        sizes: more arguments of `make_wan_repo`.
        fields: of the transformer's config beside those of the other, such as `sink_size`.

    Returns:
        `path`.
    """
    make_wan_repo(path, seed=seed, **(sizes or {}))
    index = json.loads((path / "model_index.json").read_text()) | {
        "_class_name": "WanCausalDMDPipeline",
        "transformer": ["diffusers", index_class],
        "scheduler": ["diffusers", "SelfForcingFlowMatchScheduler"],
    }
    config = json.loads((path / "transformer" / "config.json").read_text()) | fields
    config["_class_name"] = "CausalWanTransformer3DModel"
    scheduler = {
        "_class_name": "SelfForcingFlowMatchScheduler", "num_inference_steps": 1000, "shift": 5.0, "sigma_min": 0.0,
        "extra_one_step": True, "training": True,
    }  # fmt: skip
    (path / "model_index.json").write_text(json.dumps(index))
    (path / "transformer" / "config.json").write_text(json.dumps(config))
    (path / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    return path
