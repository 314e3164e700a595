"""README and docs against the code: links, code blocks, commands, flags, keys, variables, names and defaults."""

import ast
import dataclasses
import importlib
import inspect
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from fastvideo import PipelineConfig, SamplingParam, VideoGenerator, envs
from fastvideo.configs.registry import COMPONENTS, MODELS
from fastvideo.entrypoints.cli import parser as cli
from fastvideo.fastvideo_args import FastVideoArgs
from fastvideo.models.loader.component_loader import IMAGE_PROCESSORS, TOKENIZERS
from fastvideo.models.schedulers import SCHEDULERS
from fastvideo.utils import resolve
from recipes.shapes.run import STAGES

ROOT = Path(__file__).parents[2]
PAGES = {str(path.relative_to(ROOT)): path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")))}
INVENTED = re.compile("lotus", re.IGNORECASE)
"""The family that pages take as an example does not exist."""
SHELLS = ("bash", "sh")


class Block(NamedTuple):
    """A fenced block."""

    language: str
    text: str


def blocks(page: str, *languages: str) -> list[Block]:
    """The fenced blocks of `page` in `languages`, without the indentation of the fence."""
    found = []
    for indent, language, text in re.findall(r"^( *)```(\w+)\n(.*?)^ *```$", read(page), re.M | re.S):
        if language in languages:
            found.append(Block(language, re.sub(f"^{indent}", "", text, flags=re.M)))
    return found


def read(page: str) -> str:
    """The text of `page`."""
    return PAGES[page].read_text(encoding="utf-8")


def prose(page: str) -> str:
    """The text of `page` without fenced blocks."""
    return re.sub(r"^ *```.*?^ *```$", "", read(page), flags=re.M | re.S)


def section(page: str, heading: str) -> str:
    """What stands under `heading`, up to the next heading of the same level or above."""
    level = heading.split(" ")[0]
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{len(level)}}} |\Z)", prose(page), re.M | re.S)
    assert found, f"{page} has no {heading!r}"
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables in `text`, without headings."""
    tables = [line for line in text.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables]
    rules = [number for number, row in enumerate(cells) if all(re.fullmatch(":?-+:?", cell) for cell in row)]
    return [row for number, row in enumerate(cells) if number not in rules and number + 1 not in rules]


def first_column(text: str) -> dict[str, list[str]]:
    """The rows of the tables in `text` whose first cell is one name in backticks, by that name."""
    return {row[0].strip("`"): row for row in rows(text) if re.fullmatch("`[^`]+`", row[0])}


def anchors(page: str) -> set[str]:
    """The anchors that hosts of Markdown make of the headings."""
    titles = re.findall(r"^#+ (.*)$", prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(page: str) -> Iterator[list[str]]:
    """The commands in the shell blocks of `page`, without comments and settings of variables."""
    for block in blocks(page, *SHELLS):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words = words[1:]
            if words:
                yield words


# ---- Links and code ----


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = PAGES[page].parent / path if path else PAGES[page]
        assert file.exists(), f"{page} links to {target}, which does not exist"
        if anchor:
            linked = os.path.relpath(file, ROOT)
            assert anchor in anchors(linked), f"{page} links to {target}, and {linked} has no such heading"


def test_every_page_can_be_reached_from_the_index() -> None:
    linked = set(re.findall(r"\]\(([\w-]+\.md)\)", read("docs/index.md")))
    assert linked == {path.name for path in (ROOT / "docs").glob("*.md")} - {"index.md"}


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    pattern = r"`((?:fastvideo|recipes|tests|examples|benchmarks|docs)/[\w./-]+)`"
    named = [name for name in re.findall(pattern, prose(page)) if not INVENTED.search(name)]
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES)
def test_python_blocks_compile_and_import_what_is_there(page: str) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block.text, page)):
            if not isinstance(node, ast.ImportFrom) or not node.module or INVENTED.search(node.module):
                continue
            module = importlib.import_module(node.module)
            missing = [alias.name for alias in node.names if not hasattr(module, alias.name)]
            assert missing == [], f"{page}: {node.module} has no {missing}"


def test_every_block_says_its_language() -> None:
    for page in PAGES:
        fences = re.findall(r"^ *```(.*)$", read(page), re.M)
        assert set(fences[::2]) <= {"python", "yaml", "text", *SHELLS}, page
        assert set(fences[1::2]) <= {""}, page


# ---- Commands ----


@pytest.mark.parametrize("page", PAGES)
def test_fastvideo_commands_parse(page: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    for words in commands(page):
        if words[0] == "fastvideo":
            command, _ = cli.parse(words[1:])
            assert command == words[1]


@pytest.mark.parametrize("page", PAGES)
def test_other_commands_are_there(page: str) -> None:
    targets = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert targets
    for words in commands(page):
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= set(targets[1].split()), words
        elif words[:2] == ["python", "-m"]:
            check_script(Path(importlib.util.find_spec(words[2]).origin), words[3:])
        elif words[0] == "python":
            check_script(ROOT / words[1], words[2:])
        elif words[0] == "pytest":
            assert all((ROOT / word).exists() for word in words if word.startswith("tests/")), words
        else:
            known = ("fastvideo", "pip", "source", "torchrun", "ray", "curl", "docker", "kubectl", "systemctl", "cp",
                     "useradd", "runuser", "install", "python3")  # fmt: skip
            assert Path(words[0]).name in known, words


def check_script(script: Path, arguments: list[str]) -> None:
    """Check that `script` exists and knows the flags among `arguments`."""
    text = script.read_text()
    for flag in arguments:
        assert not flag.startswith("-") or f'"{flag}"' in text, f"{script.name} has no {flag}"


def test_stages_of_the_recipe() -> None:
    assert [*first_column(section("docs/shapes-t2v.md", "### Run it"))] == [*STAGES, "adopt"]


def test_yaml_blocks_are_configs(tmp_path: Path) -> None:
    found = [block.text for page in PAGES for block in blocks(page, "yaml")]
    assert found
    for text in [*found, (ROOT / "examples/run.yaml").read_text(), (ROOT / "examples/serve.yaml").read_text()]:
        file = tmp_path / "run.yaml"
        file.write_text(text)
        command = "serve" if {"server", "default_request"} & set(yaml.safe_load(text)) else "generate"
        _, options = cli.parse([command, "--config", str(file)])
        if "model" in yaml.safe_load(text).get("generator", {}):
            FastVideoArgs.from_kwargs(options.generator.model)


# ---- Flags, keys and variables ----


def subparsers() -> dict[str, cli.Parser]:
    """The parser of each command."""
    parser = cli.build_parser()
    return next(action.choices for action in parser._actions if isinstance(action.choices, dict))


def documented_flags(text: str) -> set[str]:
    """The flags in the first column of the tables in `text`."""
    return {flag for row in rows(text) for flag in re.findall(r"`(--?\w[\w.-]*\+?)", row[0])}


def test_every_command_has_a_section() -> None:
    headings = re.findall(r"^## fastvideo (\w+)$", read("docs/cli.md"), re.M)
    assert headings == list(cli.COMMANDS)


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_flags_of_commands(command: str) -> None:
    documented = documented_flags(section("docs/cli.md", f"## fastvideo {command}"))
    if command == "serve":  # its page says that it has these too
        engine = documented_flags(section("docs/cli.md", "## fastvideo generate"))
        documented |= {flag for flag in engine if flag.startswith("--generator.")}
        documented |= {"--server.cors_origins+", "--server.served_model_names+"}
    assert documented == set(cli.flags(subparsers()[command]))


def test_defaults_of_flags_are_those_of_the_help() -> None:
    default = re.compile(r"\(default: (.*?)\)")
    compared = []
    for command, parser in subparsers().items():
        told = {flag: str(action.help) for action in parser._actions for flag in action.option_strings}
        for row in rows(section("docs/cli.md", f"## fastvideo {command}")):
            for flag in re.findall(r"`(--?[\w-]+)", row[0]):
                here, there = default.search(row[1]), default.search(told.get(flag, ""))
                if here and there:
                    compared.append(flag)
                    assert here[1].replace("`", "") == there[1], (command, flag)
    assert "--num-gpus" in compared


def test_flags_before_the_command() -> None:
    actions = [action for action in cli.build_parser()._actions if not isinstance(action.choices, dict)]
    top = section("docs/cli.md", "# Command line").split("\n## ")[0]
    assert documented_flags(top) == {flag for action in actions for flag in action.option_strings}


def test_variables() -> None:
    names = re.compile(r"FASTVIDEO_[A-Z_]+[A-Z]")
    there = set(names.findall(inspect.getsource(envs)))
    assert set(first_column(section("docs/configuration.md", "## Environment variables"))) == there
    assert {name for page in PAGES for name in names.findall(read(page))} <= there


# ---- Names and defaults ----


def documented_defaults(heading: str) -> dict[str, str]:
    """Names and defaults in the tables of a section of the API page."""
    return {name: row[1].strip("`") for name, row in first_column(section("docs/api.md", heading)).items()}


def test_keywords_of_from_pretrained() -> None:
    defaults = FastVideoArgs(model="any").to_dict()
    del defaults["model"]
    assert documented_defaults("### from_pretrained") == {name: repr(value) for name, value in defaults.items()}


def test_fields_of_sampling_param() -> None:
    assert documented_defaults("## SamplingParam") == {k: repr(v) for k, v in SamplingParam().to_dict().items()}


def test_fields_of_pipeline_config() -> None:
    assert documented_defaults("## PipelineConfig") == {k: repr(v) for k, v in PipelineConfig().to_dict().items()}


def test_settings_of_the_server() -> None:
    from fastvideo.entrypoints.serve.keys import SCOPES
    from fastvideo.entrypoints.serve.settings import ServerSettings

    table = first_column(section("docs/serving.md", "## Settings"))
    assert {name: row[1].strip("`") for name, row in table.items()} == {
        name: repr(value) for name, value in ServerSettings().to_dict().items()
    }
    assert set(first_column(section("docs/serving.md", "### Keys"))) == set(SCOPES)


def test_fields_of_requests_to_the_server() -> None:
    from fastvideo.entrypoints.serve.requests import VideoRequest

    documented = first_column(section("docs/serving.md", "### The request"))
    assert set(documented) == set(VideoRequest.model_fields)


def test_fields_of_results_and_progress() -> None:
    from fastvideo.entrypoints.result import NAMES
    from fastvideo.pipelines.pipeline_batch_info import Progress

    assert list(first_column(section("docs/api.md", "## GenerationResult"))) == list(NAMES)
    documented = first_column(section("docs/api.md", "## Progress and cancelling"))
    assert list(documented) == list(Progress.__dataclass_fields__)


def test_methods_of_the_generator() -> None:
    before_subsections = section("docs/api.md", "## VideoGenerator").split("\n### ")[0]
    members = {name: value for kind in VideoGenerator.__mro__[:-1] for name, value in vars(kind).items()}
    public = {name for name, value in members.items() if callable(value) or isinstance(value, classmethod)}
    assert set(first_column(before_subsections)) == {name for name in public if not name.startswith("_")}


def test_arguments_of_generate_video() -> None:
    from fastvideo.entrypoints.video_generator import KEYWORDS

    assert set(first_column(section("docs/api.md", "### generate_video"))) == set(KEYWORDS)


def test_models() -> None:
    table = first_column(section("docs/models.md", "## What is supported"))
    assert list(table) == [entry.name for entry in MODELS]
    readme = section("README.md", "## Models")
    for entry in MODELS:
        _, ids, size, steps, guidance = table[entry.name]
        sampling = resolve(entry.sampling)()
        assert re.findall("`(.*?)`", ids) == list(entry.model_ids)
        assert size == f"{sampling.width}x{sampling.height}x{sampling.num_frames}, {sampling.fps}"
        assert (steps, guidance) == (str(sampling.num_inference_steps), f"{sampling.guidance_scale:g}")
        assert all(f"`{name}`" in readme for name in entry.model_ids)
        assert f"{sampling.width}x{sampling.height}, {sampling.num_frames} frames" in readme


def test_components() -> None:
    table = {row[0]: set(re.findall("`(.*?)`", row[1])) for row in rows(section("docs/models.md", "## Components"))}
    assert table["pipeline"] == {entry.pipeline_class for entry in MODELS}
    models = table["transformer"] | table["VAE"] | table["text encoder"] | table["image encoder"]
    assert models == {entry.class_name for entry in COMPONENTS}
    assert table["scheduler"] == set(SCHEDULERS)
    assert table["tokenizer"] == set(TOKENIZERS)
    assert table["image processor"] == set(IMAGE_PROCESSORS)


def test_attention_backends() -> None:
    from fastvideo.attention.selector import BACKENDS

    table = rows(section("docs/configuration.md", "## Attention backends"))
    assert [name for row in table for name in re.findall("`(.*?)`", row[0])] == ["auto", *BACKENDS]
    assert list(first_column(section("docs/attention.md", "## Which one"))) == list(BACKENDS)


def test_options_of_vmoba() -> None:
    from fastvideo.configs.attention import MoBAConfig

    documented = {
        name: row[1].strip("`") for name, row in first_column(section("docs/attention.md", "## VMoBA")).items()
    }
    defaults = {field.name: field.default for field in dataclasses.fields(MoBAConfig)}
    assert documented == {name: repr(value) for name, value in defaults.items()}


def test_the_table_of_the_readme_has_its_place() -> None:
    lines = read("README.md").splitlines()
    begin, end = lines.index("<!-- shapes-t2v: begin -->"), lines.index("<!-- shapes-t2v: end -->")
    assert begin < end


def test_words_of_the_model_in_the_package() -> None:
    from recipes.shapes.captions import LABELS

    table = {row[0]: row[1].split(", ") for row in rows(section("docs/shapes-t2v.md", "## What it draws"))}
    assert table == {name: list(words) for name, words in LABELS.items()}
