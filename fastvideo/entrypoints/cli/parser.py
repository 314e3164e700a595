"""The flags of every command, and the keys of config files. Importing this must stay quick: no torch."""

import argparse
import re
import textwrap
import typing
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace

from fastvideo import __version__
from fastvideo.configs.pipelines.base import PipelineConfig
from fastvideo.configs.quantization import QUANTIZATIONS
from fastvideo.configs.sample.base import SamplingParam
from fastvideo.entrypoints.bench.cases import CASES
from fastvideo.entrypoints.cli.serve_flags import keys_flags, router_flags, serve_flags
from fastvideo.entrypoints.serve.flags import router_keys, serve_keys
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.utils import nearest

REQUEST_KEYS = ("negative_prompt", "output_path")
"""Sampling fields that a config file has directly under `request`."""
NOT_ON_COMMAND_LINE = ("save_video", "return_frames")
"""Sampling fields that would do nothing: the command always saves."""
TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a string"}


@dataclass(frozen=True)
class Command:
    """One command: what runs it, as "module:function", and a line of help."""

    run: str
    help: str


COMMANDS = {
    "generate": Command("fastvideo.entrypoints.cli.generate:run", "make a video from a text prompt"),
    "replay": Command("fastvideo.entrypoints.cli.replay:run", "make the clip of a file again, from what the file says"),
    "models": Command("fastvideo.entrypoints.cli.report:models", "list the models that are registered"),
    "inspect": Command("fastvideo.entrypoints.cli.report:inspect", "show how a model repo maps to components"),
    "plan": Command("fastvideo.entrypoints.cli.plan:run", "show how a model would share its work among devices"),
    "verify": Command("fastvideo.entrypoints.cli.report:verify", "compare a model's output with the reference's"),
    "tune": Command("fastvideo.entrypoints.cli.tune:run", "measure what being faster costs on a model, and choose"),
    "bench": Command("fastvideo.entrypoints.bench.run:run", "measure speed and memory beside the reference"),
    "serve": Command("fastvideo.entrypoints.serve.run:run", "serve a model over HTTP, as OpenAI clients speak it"),
    "keys": Command("fastvideo.entrypoints.serve.keys_command:run", "add, list and revoke API keys of a server"),
    "router": Command("fastvideo.entrypoints.serve.router:run", "stand before several servers of one model"),
}
MEDIA_FLAGS: list[tuple[tuple[str, ...], type, str, str]] = [
    (("--image",), str, "IMAGE", "what the video starts with, a file or an http(s) URL, as those below"),
    (("--last-image",), str, "IMAGE", "what it ends with"),
    (("--video",), str, "VIDEO", "what it is made from"),
    (("--mask",), str, "MASK", "white where it is made anew: a video, or an image for all frames"),
    (("--pose-video",), str, "VIDEO", "poses that the one in the image takes"),
    (("--face-video",), str, "VIDEO", "a face whose expressions it takes"),
    (("--background-video",), str, "VIDEO", "what somebody is replaced in, with mode replace"),
    (("--mask-video",), str, "MASK", "white where that one is: a video, or an image for all frames"),
    (("--start-video",), str, "VIDEO", "the video whose frames it begins with, to go on from them"),
]
"""What a model may be shown beside the prompt."""


class UsageError(Exception):
    """The command line or a config file is wrong; `help` is the command that says what is right."""

    def __init__(self, message: str, help: str = "fastvideo --help") -> None:
        super().__init__(message)
        self.help = help


class Parser(ArgumentParser):
    """A jsonargparse parser whose errors are one line that names the value, the rule and the nearest choice."""

    def __init__(self, **options: Any) -> None:
        options = {"allow_abbrev": False, "formatter_class": argparse.RawDescriptionHelpFormatter, **options}
        super().__init__(**options)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise `UsageError`."""
        command = getattr(getattr(ex, "subcommand_parser", None), "prog", self.prog).replace(" [options]", "")
        raise UsageError(self.one_line(message), f"{command} --help") from ex

    def one_line(self, message: str) -> str:
        """jsonargparse's message, shorter."""
        if found := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
            first = found[1].split()[0]
            if not first.startswith("-"):
                return f"{found[1]!r}: one argument too many; put a prompt of several words in quotes"
            flag = first.split("=")[0]
            close = nearest(flag, flags(self))
            return f"{flag}: no such flag" + (f"; did you mean {close}?" if close else "")
        if found := re.match(r"argument COMMAND: invalid choice: '([^']*)'", message):
            close = nearest(found[1], COMMANDS)
            hint = f"did you mean {close!r}?" if close else f"there are {', '.join(COMMANDS)}"
            return f"{found[1]!r}: no such command; {hint}"
        if message.startswith('expected "command"'):
            return f"no command given; there are {', '.join(COMMANDS)}"
        if found := re.match(r"the following arguments are required: \w+\.(\w+)", message):
            return f"{found[1].upper()} is missing"
        if found := re.match(r'Parser key "([^"]+)":.*Given value: (.*)', message, re.DOTALL):
            action = next((action for action in all_actions(self) if action.dest == found[1]), None)
            name = found[1] if action is None or "." in found[1] else action.option_strings[-1]
            return f"{name}={found[2].strip()}: must be {type_name(getattr(action, '_typehint', None))}"
        return message


def all_actions(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The parser's actions and those of its commands."""
    actions = list(parser._actions)
    for action in parser._actions:
        if isinstance(action.choices, dict):
            actions += [deep for sub in action.choices.values() for deep in all_actions(sub)]
    return actions


def flags(parser: argparse.ArgumentParser) -> list[str]:
    """Every flag of the parser and its commands, once."""
    return sorted({flag for action in all_actions(parser) for flag in action.option_strings})


def type_name(hint: Any) -> str:
    """A type in words."""
    plain = [one for one in typing.get_args(hint) or (hint,) if one is not type(None)]
    if len(plain) == 1 and plain[0] in TYPE_NAMES:
        return TYPE_NAMES[plain[0]]
    return (
        f"of type {' or '.join(getattr(one, '__name__', str(one)) if one in TYPE_NAMES else str(one) for one in plain)}"
    )


def engine_keys() -> dict[str, Any]:
    """The type of every key under `generator` in a config file, by its dotted name."""
    keys: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(FastVideoArgs).items():
        if name != "pipeline_config":
            keys[f"generator.{name}"] = hint
    for name, hint in typing.get_type_hints(PipelineConfig).items():
        keys[f"generator.pipeline_config.{name}"] = hint
    return keys


def config_keys() -> dict[str, Any]:
    """The type of every key of a config file of `fastvideo generate`, by its dotted name."""
    keys = engine_keys()
    keys["request.prompt"] = str | list[str]
    hints = typing.get_type_hints(SamplingParam)
    for name in SamplingParam.field_names():
        if name not in NOT_ON_COMMAND_LINE:
            keys[f"request.{name}" if name in REQUEST_KEYS else f"request.sampling.{name}"] = hints[name]
    return keys


CONFIGS: dict[str, Callable[[], dict[str, Any]]] = {
    "generate": config_keys,
    "serve": lambda: engine_keys() | serve_keys(),
    "router": router_keys,
}
"""The keys of a config file, by the command that takes one."""


def build_parser() -> Parser:
    """The parser of the whole command line."""
    parser = Parser(prog="fastvideo", version=__version__, description="Text to video.")
    commands = parser.add_subcommands(dest="command", metavar="COMMAND")
    builders: dict[str, Callable[[Parser], None]] = {
        "generate": generate_flags, "replay": replay_flags, "inspect": inspect_flags, "verify": model_flags,
        "plan": plan_flags, "tune": tune_flags, "bench": bench_flags, "keys": keys_flags, "router": router_flags,
        "serve": lambda sub: serve_flags(sub, CONFIGS["serve"]()),
    }  # fmt: skip
    for name, command in COMMANDS.items():
        sub = Parser(description=f"{command.help[0].upper()}{command.help[1:]}.", print_config=None)
        if name in builders:
            builders[name](sub)
        commands.add_subcommand(name, sub, help=command.help)
        sub.prog = f"fastvideo {name}"
    return parser


def generate_flags(parser: Parser) -> None:
    """The flags of `fastvideo generate`."""
    parser.add_argument("prompt", nargs="?", type=str, help="what to show, in quotes")
    plain: list[tuple[tuple[str, ...], type, str, str]] = [
        (("--model",), str, "MODEL", "a Hub id, a local folder, or a shipped model (default: the one in the package)"),
        (("-o", "--output"), str, "PATH", "a file .mp4, .gif or .webp, or a folder for PNGs (default: an MP4 in "
                                          "outputs/, named after the prompt)"),
        (("--contact-sheet",), str, "PNG", "also write a picture with the frames side by side"),
        (("--seed",), int, "N", "of the initial noise"),
        (("--steps",), int, "N", "denoising steps"),
        (("--size",), str, "WxH", "such as 832x480"),
        (("--frames",), int, "N", "frames of the clip"),
        (("--guidance",), float, "G", "strength of the prompt; 1 is no guidance"),
        (("--negative",), str, "TEXT", "what to steer away from"),
        (("--quality",), str, "Q", "exact (default); high or fast, as fastvideo tune measured for the model"),
        *MEDIA_FLAGS,
        (("--image-fit",), str, "FIT", "area (default): the size follows the input's proportions; or stretch"),
    ]  # fmt: skip
    for names, kind, metavar, text in plain:
        parser.add_argument(*names, type=kind | None, metavar=metavar, help=text)
    parser.add_argument(
        "--reference", type=str, action="append", metavar="IMAGE", help="of what the video shows; repeatable"
    )
    parser.add_argument("--lora", action="append", type=str, metavar="PATH[:STRENGTH]",
                        help="a .safetensors file, a folder or a Hub id; may be given several times")  # fmt: skip
    parser.add_argument("--config", action=ActionConfigFile, metavar="YAML", help="a file with keys as below")
    for key, hint in config_keys().items():
        parser.add_argument(f"--{key}", type=hint | None, help=argparse.SUPPRESS)
    parser.epilog = generate_epilog()


def generate_epilog() -> str:
    """What the help says about defaults and config files."""
    sections: dict[str, list[str]] = {}
    for key in config_keys():
        section, _, name = key.rpartition(".")
        sections.setdefault(section, []).append(name)
    listed = [
        textwrap.fill(", ".join(names), 80, initial_indent=f"  {section}: ", subsequent_indent="      ")
        for section, names in sections.items()
    ]
    about = (
        "What is not given is the model's own default. A config file holds the keys below; each is a flag as well, "
        "such as --request.sampling.seed 42, which beats the file, and the flags above beat both."
    )
    return "\n".join([textwrap.fill(about, 80), *listed])


def replay_flags(parser: Parser) -> None:
    """The flags of `fastvideo replay`."""
    parser.add_argument("clip", type=str, help="a file that fastvideo wrote, or a folder of its PNGs")
    parser.add_argument("-o", "--output", type=str | None, metavar="PATH",
                        help="where to write it (default: beside the clip, with _replay in the name)")  # fmt: skip
    parser.add_argument("--model", type=str | None, metavar="MODEL", help="where the model is now, if it moved")
    for names, kind, metavar, text in MEDIA_FLAGS:
        parser.add_argument(*names, type=kind | None, metavar=metavar, help=f"{text}: where it is now")
    parser.add_argument("--reference", type=str, action="append", metavar="IMAGE", help="the same of these; repeatable")
    parser.add_argument("--lora", action="append", type=str, metavar="PATH",
                        help="where a LoRA of the clip is now, if it moved; may be given several times")  # fmt: skip
    parser.add_argument("--force", action="store_true", help="go on though the model or versions are not the same")


def model_flags(parser: Parser) -> None:
    """The flags of the commands about one model."""
    parser.add_argument("model", type=str, help="a Hub id, a local folder, or a shipped model")


def inspect_flags(parser: Parser) -> None:
    """The flags of `fastvideo inspect`."""
    model_flags(parser)
    for name, what in (("--quantization", "the transformer"), ("--text-encoder-quantization", "the text encoder")):
        parser.add_argument(name, type=str | None, metavar="NAME",
                            help=f"count {what} with weights quantized so: {', '.join(QUANTIZATIONS)}")  # fmt: skip


def plan_flags(parser: Parser) -> None:
    """The flags of `fastvideo plan`."""
    model_flags(parser)
    parser.add_argument(
        "--num-gpus", type=int | None, metavar="N", help="devices (default: 2; 1 with --gpu-memory, --ram or --quality)"
    )
    parser.add_argument("--gpu-memory", type=float | None, metavar="GB", help="plan for one GPU with so much memory")
    parser.add_argument("--ram", type=float | None, metavar="GB",
                        help="plan for one device, and so much host memory (default: what is free here)")  # fmt: skip
    parser.add_argument("--size", type=str | None, metavar="WxH", help="of the video to plan for on one device")
    parser.add_argument("--frames", type=int | None, metavar="N", help="of it")
    parser.add_argument("--memory", type=float | None, metavar="GB",
                        help="of each of several devices (default: of the one that is here)")  # fmt: skip
    parser.add_argument("--precision", type=str, default="auto", help="of the weights: auto, fp32, bf16 or fp16")
    parser.add_argument("--quality", type=str | None, metavar="Q",
                        help="exact, high or fast: plan for one device with the precision that it picks")  # fmt: skip
    for name, text in (
        ("--tp-size", "devices that hold a slice of each layer"),
        ("--sp-size", "devices that hold a part of the tokens"),
        ("--ulysses-size", "those of them that exchange heads for tokens"),
        ("--ring-size", "those of them that pass keys and values around"),
        ("--cfg-size", "2: guidance's two predictions at the same time"),
    ):
        parser.add_argument(name, type=int | None, metavar="N", help=text)
    parser.add_argument("--fsdp", action="store_true", help="shard the weights over devices that would hold equal ones")


def tune_flags(parser: Parser) -> None:
    """The flags of `fastvideo tune`."""
    model_flags(parser)
    parser.add_argument("--clips", type=int, default=6, metavar="N", help="to choose with (default: 6)")
    parser.add_argument("--held-out", type=int, default=24, metavar="N",
                        help="to check the choice with, of other prompts (default: 24)")  # fmt: skip
    parser.add_argument("--precision", type=str, default="auto", help="of the components: auto, fp32, bf16 or fp16")
    parser.add_argument("--device", type=str, default="auto", help="auto, cuda, cpu or mps")
    for name, kind, metavar, text in (
        ("--prompts", str, "FILE", "a prompt a line (default: prompts put together at random)"),
        ("--size", str, "WxH", "of the clips (default: the model's own, as for the next three)"),
        ("--frames", int, "N", "of the clips"),
        ("--steps", int, "N", "denoising steps"),
        ("--guidance", float, "G", "strength of the prompt"),
        ("--output", str, "FILE", "the measurements (default: where quality finds them)"),
        ("--plot", str, "PNG", "the curve (default: beside the measurements); not with --no-plot"),
    ):  # fmt: skip
        parser.add_argument(name, type=kind | None, metavar=metavar, help=text)
    parser.add_argument("--no-plot", action="store_true", help="draw no curve")


def bench_flags(parser: Parser) -> None:
    """The flags of `fastvideo bench`."""
    parser.add_argument("cases", nargs="*", type=str, default=[], help="names or globs such as 'vae-*' (default: all)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of all implementations (default: 5)")
    parser.add_argument("--precision", type=str, default="bf16", help="of the components: bf16 (default) or fp32")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int | None, metavar="N", help="of each process (default: PyTorch's choice)")
    for name, text in (
        ("--tiny", "sizes for tests: the numbers mean nothing"),
        ("--full", "all layers; on CUDA also whole models at their own size"),
        ("--no-compile", "leave out what is compiled, ours and the reference"),
    ):
        parser.add_argument(name, action="store_true", help=text)
    for name, metavar, text in (
        ("--output", "PAGE", "write the tables and how they came about, as Markdown"),
        ("--json", "FILE", "write all numbers"),
        ("--profile", "FOLDER", "write where the time goes, ours and the reference's, of each component that is timed"),
    ):
        parser.add_argument(name, type=str | None, metavar=metavar, help=text)
    parser.epilog = textwrap.fill(f"The cases are {', '.join(case.name for case in CASES)}.", 80)


def parse(argv: list[str]) -> tuple[str, Namespace]:
    """The command and its options.

    Raises:
        UsageError: a flag, its value, or a config file is wrong.
    """
    parser = build_parser()
    options = parser.parse_args(config_first(argv))
    command: str = options.command
    return command, options[command]


def config_first(argv: list[str]) -> list[str]:
    """The arguments with `--config` moved to the front, so that dotted flags beat the file wherever they stand.

    Raises:
        UsageError: a config file cannot be read, or has an unknown key.
    """
    command = "".join(argv[:1])
    if command not in CONFIGS:
        return argv
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", action="append", default=[])
    try:
        found, rest = finder.parse_known_args(argv[1:])
    except argparse.ArgumentError:
        return argv  # the real parser says what is wrong
    for path in found.config:
        check_config(path, command)
    return [command, *(f"--config={path}" for path in found.config), *rest]


def check_config(path: str, command: str = "generate") -> None:
    """Check that a config file can be read and has known keys only.

    Raises:
        UsageError: it names the file, and the key and the nearest known one.
    """
    try:
        with open(path, encoding="utf-8") as file:
            content = yaml.safe_load(file)
    except OSError as error:
        raise UsageError(f"--config={path}: cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"--config={path}: is not YAML: {error}") from error
    if not isinstance(content, dict):
        sections = dict.fromkeys(key.split(".")[0] for key in CONFIGS[command]())
        raise UsageError(f"--config={path}: must hold the keys {' and '.join(map(repr, sections))}")
    known = CONFIGS[command]()
    for key in dotted(content, known):
        if key not in known:
            close = nearest(key, known)
            hint = f"did you mean {close!r}?" if close else f"the keys are in fastvideo {command} --help"
            raise UsageError(f"{path}: {key!r}: unknown key; {hint}", f"fastvideo {command} --help")


def dotted(content: dict[Any, Any], known: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted names of all keys in a nested mapping; a known key is not looked into."""
    keys: list[str] = []
    for name, value in content.items():
        key = f"{prefix}{name}"
        inside = isinstance(value, dict) and value and key not in known
        keys += dotted(value, known, f"{key}.") if inside else [key]
    return keys
