"""Fixtures for all tests: small repos, made once a session, and a cache folder of the test's own."""

import os
import signal
from pathlib import Path

import pytest

from tests import causal_repos, few_step_repos, fun_repos, official_repos, tiny_repos

# no test may depend on the network
os.environ["HF_HUB_OFFLINE"] = "1"


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """No variable of the user's reaches a test, and no test writes to the user's cache."""
    for name in [name for name in os.environ if name.startswith("FASTVIDEO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("FASTVIDEO_CACHE_ROOT", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="session")
def wan_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan 2.1 text-to-video repo with a UniPC scheduler. Read only."""
    return tiny_repos.make_wan_repo(tmp_path_factory.mktemp("repos") / "wan-tiny")


@pytest.fixture(scope="session")
def euler_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights with a flow-match Euler scheduler. Read only."""
    return tiny_repos.make_wan_repo(tmp_path_factory.mktemp("repos") / "wan-tiny-euler", scheduler="euler")


@pytest.fixture(scope="session")
def official_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as a flat folder under the authors' names. Read only."""
    return official_repos.make_official_repo(tmp_path_factory.mktemp("repos") / "wan-tiny-official")


@pytest.fixture(scope="session")
def i2v_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan 2.1 image-to-video repo. Read only."""
    return tiny_repos.make_i2v_repo(tmp_path_factory.mktemp("repos") / "wan-tiny-i2v")


@pytest.fixture(scope="session")
def flf2v_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan 2.1 repo of first and last frame. Read only."""
    return tiny_repos.make_i2v_repo(tmp_path_factory.mktemp("repos") / "wan-tiny-flf2v", last=True)


@pytest.fixture(scope="session")
def wan22_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan 2.2 text-to-video repo with two transformers. Read only."""
    return tiny_repos.make_wan22_repo(tmp_path_factory.mktemp("repos") / "wan22-tiny")


@pytest.fixture(scope="session")
def wan22_i2v_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan 2.2 image-to-video repo with two transformers. Read only."""
    return tiny_repos.make_wan22_repo(tmp_path_factory.mktemp("repos") / "wan22-tiny-i2v", images=True)


@pytest.fixture(scope="session")
def ti2v_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan 2.2 text-and-image-to-video repo. Read only."""
    return tiny_repos.make_ti2v_repo(tmp_path_factory.mktemp("repos") / "wan22-tiny-ti2v")


@pytest.fixture(scope="session")
def dmd_repo(wan_repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Wan 2.1 text-to-video repo as one that was distilled to three steps. Read only."""
    return tiny_repos.make_renamed_repo(tmp_path_factory.mktemp("repos") / "dmd", wan_repo, "WanDMDPipeline")


@pytest.fixture(scope="session")
def causal_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny causal Wan repo, of chunks of three latent frames that see six, the first of the video among them.
    Read only."""
    return causal_repos.make_causal_repo(
        tmp_path_factory.mktemp("repos") / "causal", sliding_window_num_frames=6, sink_size=1
    )


@pytest.fixture(scope="session")
def lucy_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Lucy Edit repo. Read only."""
    return tiny_repos.make_lucy_repo(tmp_path_factory.mktemp("repos") / "lucy-tiny")


@pytest.fixture(scope="session")
def vace_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan 2.1 VACE repo. Read only."""
    return tiny_repos.make_vace_repo(tmp_path_factory.mktemp("repos") / "wan-tiny-vace")


@pytest.fixture(scope="session")
def rcm_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Wan 2.1 text-to-video weights in a folder of rCM. Read only."""
    return few_step_repos.make_rcm_repo(tmp_path_factory.mktemp("repos") / "rcm")


@pytest.fixture(scope="session")
def causal_i2v_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny causal Wan repo whose first frame is a chunk of its own. Read only."""
    return causal_repos.make_causal_repo(
        tmp_path_factory.mktemp("repos") / "causal-i2v", sliding_window_num_frames=6, sink_size=1,
        independent_first_frame=True,
    )  # fmt: skip


@pytest.fixture(scope="session")
def fun_control_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny folder of Wan 2.1 Fun Control. Read only."""
    return fun_repos.make_fun_repo(tmp_path_factory.mktemp("repos") / "fun-control", "control")


@pytest.fixture(scope="session")
def animate_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Wan 2.2 Animate repo. Read only."""
    return tiny_repos.make_animate_repo(tmp_path_factory.mktemp("repos") / "wan22-tiny-animate")


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> None:
    """Whoever starts the tests in the background has Ctrl-C ignored, and Python then leaves it so."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
