"""The examples around the server: the client scripts as they stand, and the files for deployment."""

import re
import runpy
import shlex
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from fastvideo.entrypoints.cli import parser as cli
from fastvideo.entrypoints.media import read_frames
from fastvideo.entrypoints.serve.run import settings_of
from tests.serve.stand_in import FromImage, Running, StandIn, running, wait_until
from tests.serve.test_references import picture

EXAMPLES = Path(__file__).parents[2] / "examples"
DEPLOY = EXAMPLES / "deploy"
SERVE = ["serve", "--config", "/etc/fastvideo/serve.yaml"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A server of the stand-in model."""
    with running(tmp_path_factory.mktemp("served"), preview_every=2) as made:
        yield made


@pytest.fixture(autouse=True)
def _own_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


def run(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: object) -> None:
    """Run an example as a script."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


@pytest.mark.filterwarnings("ignore:The Sora API:DeprecationWarning")
def test_openai_client(served: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "openai_client.py", "a kite", served.url)
    assert capsys.readouterr().out.endswith("saved clip.mp4\nsaved clip.jpg\n")
    assert read_frames("clip.mp4").shape == (5, 32, 32, 3)
    with pytest.raises(SystemExit, match="failed: NaN"):
        run(monkeypatch, "openai_client.py", "fail", served.url)
    with pytest.raises(SystemExit, match="refused, because of prompt"):
        run(monkeypatch, "openai_client.py", "x" * 20_000, served.url)


def test_from_an_image(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "in.png").write_bytes(picture())
    monkeypatch.chdir(tmp_path)
    with running(tmp_path / "data", model=StandIn(FromImage)) as made:
        run(monkeypatch, "from_an_image.py", "in.png", "a kite", "it goes on", made.url)
        assert capsys.readouterr().out == "saved clip.mp4, 0.625 s of 32x16, and longer.mp4, 4.625 s\n"
        (tmp_path / "in.png").write_bytes(b"no image")
        with pytest.raises(SystemExit, match="refused, because of input_reference"):
            run(monkeypatch, "from_an_image.py", "in.png", "a kite", "it goes on", made.url)


def test_watch_a_stream(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsysbinary: Any) -> None:
    with running(tmp_path, model=StandIn(streams=True)) as made:
        made.model.pace = 0.5
        run(monkeypatch, "watch_a_stream.py", "a kite", made.url)
        assert b"moof" in capsysbinary.readouterr().out


def test_watch_a_job(served: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    served.model.go.clear()

    def begin() -> None:
        wait_until(lambda: served.server.hub.watched)
        served.model.go.set()

    threading.Thread(target=begin, daemon=True).start()
    run(monkeypatch, "watch_a_job.py", "a kite", "--url", served.url)
    said = capsys.readouterr().out
    assert "denoising 4 of 4, 0.0 s left" in said
    assert said.splitlines()[-1].startswith("video.completed")
    served.model.go.clear()
    run(monkeypatch, "watch_a_job.py", "a kite", "--url", served.url, "--after", 0)
    served.model.go.set()
    assert capsys.readouterr().out.splitlines()[-1] == "video.failed the job was cancelled"


def parsed(words: list[str]) -> Any:
    """The options of a command of a deployment file, whose config file is the one beside it."""
    return cli.parse([word.replace("/etc/fastvideo/serve.yaml", str(DEPLOY / "serve.yaml")) for word in words])[1]


def test_the_config_file_of_the_deployment_needs_keys() -> None:
    engine, settings, _ = settings_of(parsed(SERVE))
    settings.check()
    assert settings.needs_keys
    assert (engine["model"], settings.port, settings.data_dir) == ("shapes-t2v", 8000, "/var/lib/fastvideo")


def test_systemd_unit() -> None:
    text = (DEPLOY / "fastvideo.service").read_text()
    command = re.search(r"^ExecStart=\S+/fastvideo (.*)$", text, re.M)
    assert command
    assert command[1].split() == SERVE
    assert "StateDirectory=fastvideo" in text


def test_dockerfile() -> None:
    text = (DEPLOY / "Dockerfile").read_text()
    assert yaml.safe_load(text.splitlines()[-1].removeprefix("CMD ")) == SERVE
    for source in re.findall(r"^COPY (?:--\S+ )*(\S+) ", text, re.M):
        assert (EXAMPLES.parent / source).exists(), source


def test_kubernetes_manifest() -> None:
    made = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    assert [one["kind"] for one in made] == ["Service", "StatefulSet", "Deployment", "Service"]
    servers, router = (one["spec"]["template"]["spec"]["containers"][0] for one in made[1:3])
    script = servers["command"][-1].replace("${HOSTNAME##*-}", "0")
    options = parsed(shlex.split(script)[2:])
    assert options.server.replica == "r0"
    urls = parsed(router["args"]).router.replicas
    assert urls == [f"http://fastvideo-{n}.fastvideo:8000" for n in range(made[1]["spec"]["replicas"])]
    (mount,) = servers["volumeMounts"]
    assert mount["mountPath"] == "/var/lib/fastvideo"


def test_prometheus_reads_the_servers() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"][0]["targets"] == ["fastvideo-0.fastvideo:8000", "fastvideo-1.fastvideo:8000"]
    assert job.get("metrics_path", "/metrics") == "/metrics"
