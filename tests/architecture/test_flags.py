"""The flags of the command line, frozen: adding, removing or renaming one is a decision, and changes this list."""

from fastvideo.entrypoints.cli.parser import all_actions, build_parser

FLAGS: dict[str, tuple[str, ...]] = {
    "": ("--help", "--version", "-h"),
    "generate": (
        "--config",
        "--contact-sheet",
        "--frames",
        "--generator.VSA_sparsity",
        "--generator.attention_backend",
        "--generator.cfg_size",
        "--generator.device",
        "--generator.dist_timeout",
        "--generator.distributed_executor_backend",
        "--generator.dit_cpu_offload",
        "--generator.dit_layerwise_offload",
        "--generator.enable_torch_compile",
        "--generator.image_encoder_cpu_offload",
        "--generator.lora_nickname",
        "--generator.lora_path",
        "--generator.model",
        "--generator.num_gpus",
        "--generator.pin_cpu_memory",
        "--generator.pipeline_config.dit_precision",
        "--generator.pipeline_config.flow_shift",
        "--generator.pipeline_config.image_encoder_precision",
        "--generator.pipeline_config.text_encoder_precisions",
        "--generator.pipeline_config.text_len",
        "--generator.pipeline_config.vae_precision",
        "--generator.pipeline_config.vae_sp",
        "--generator.pipeline_config.vae_tiling",
        "--generator.precision",
        "--generator.revision",
        "--generator.ring_size",
        "--generator.sp_size",
        "--generator.text_encoder_cpu_offload",
        "--generator.torch_compile_kwargs",
        "--generator.tp_size",
        "--generator.ulysses_size",
        "--generator.use_fsdp_inference",
        "--generator.vae_cpu_offload",
        "--guidance",
        "--help",
        "--model",
        "--negative",
        "--output",
        "--request.negative_prompt",
        "--request.output_path",
        "--request.prompt",
        "--request.prompt+",
        "--request.sampling.fps",
        "--request.sampling.guidance_rescale",
        "--request.sampling.guidance_scale",
        "--request.sampling.height",
        "--request.sampling.num_frames",
        "--request.sampling.num_inference_steps",
        "--request.sampling.num_videos_per_prompt",
        "--request.sampling.seed",
        "--request.sampling.width",
        "--seed",
        "--size",
        "--steps",
        "-h",
        "-o",
        "prompt",
    ),
    "replay": ("--force", "--help", "--model", "--output", "-h", "-o", "clip"),
    "models": ("--help", "-h"),
    "inspect": ("--help", "-h", "model"),
    "plan": (
        "--cfg-size",
        "--fsdp",
        "--help",
        "--memory",
        "--num-gpus",
        "--precision",
        "--ring-size",
        "--sp-size",
        "--tp-size",
        "--ulysses-size",
        "-h",
        "model",
    ),
    "verify": ("--help", "-h", "model"),
    "bench": (
        "--device",
        "--full",
        "--help",
        "--json",
        "--no-compile",
        "--output",
        "--precision",
        "--profile",
        "--rounds",
        "--threads",
        "--tiny",
        "-h",
        "cases",
    ),
}
"""By command; a name without a dash is a positional argument."""


def flags_of_commands() -> dict[str, tuple[str, ...]]:
    """What there is."""
    parser = build_parser()
    found = {"": tuple(sorted(flag for action in parser._actions for flag in action.option_strings))}
    for action in parser._actions:
        if not isinstance(action.choices, dict):
            continue
        for command, sub in action.choices.items():
            names = [action.option_strings or [action.dest] for action in all_actions(sub)]
            found[command] = tuple(sorted({name for several in names for name in several}))
    return found


def test_flags_are_those_of_the_list() -> None:
    assert flags_of_commands() == FLAGS
