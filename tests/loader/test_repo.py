"""Resolving a repo: local folders, official folders, the Hub, and what is missing in each."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

from fastvideo.configs import registry
from fastvideo.models.loader import repo as repo_module
from fastvideo.models.loader.files import HubFiles
from fastvideo.models.loader.inspect import inspect_repo
from fastvideo.models.loader.repo import resolve_repo, weight_sources
from tests.tiny_repos import make_wan_repo

HUB_ID = "Wan-AI/Wan2.1-T2V-1.3B-Diffusers"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def broken(wan_repo: Path, tmp_path: Path) -> Path:
    """A copy of the tiny repo, to break."""
    shutil.copytree(wan_repo, tmp_path / "repo")
    return tmp_path / "repo"


@pytest.fixture(scope="module")
def sharded_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_wan_repo(tmp_path_factory.mktemp("sharded") / "repo", max_shard_size="100KB")


def test_a_local_repo(wan_repo: Path) -> None:
    repo = resolve_repo(wan_repo)
    assert (repo.model, repo.revision, repo.entry.name) == (str(wan_repo), None, "wan2.1-t2v")
    assert repo.model_index == {"_class_name": "WanPipeline"}
    source = repo.components["transformer"]
    assert (source.library, source.class_name, source.official) == ("diffusers", "WanTransformer3DModel", False)
    assert source.config_file == wan_repo / "transformer" / "config.json"
    assert source.weight_files == (wan_repo / "transformer" / "diffusion_pytorch_model.safetensors",)
    assert {source.name for source in weight_sources(repo)} == {"text_encoder", "transformer", "vae"}
    assert repo.components["tokenizer"].local_folder() == wan_repo / "tokenizer"


def test_an_official_folder(official_repo: Path) -> None:
    repo = resolve_repo(official_repo)
    files = {source.name: source.weight_names() for source in weight_sources(repo)}
    assert files == {
        "transformer": ("diffusion_pytorch_model.safetensors",),
        "text_encoder": ("models_t5_umt5-xxl-enc-bf16.pth",),
        "vae": ("Wan2.1_VAE.pth",),
    }
    assert all(source.official for source in weight_sources(repo))
    assert repo.components["tokenizer"].local_folder() == official_repo / "google" / "umt5-xxl"


def test_a_split_file_is_read_through_its_index(sharded_repo: Path) -> None:
    names = resolve_repo(sharded_repo).components["text_encoder"].weight_names()
    assert names == tuple(sorted(path.relative_to(sharded_repo).as_posix() for path in
                                 (sharded_repo / "text_encoder").glob("*.safetensors")))  # fmt: skip
    assert len(names) > 1


def test_a_missing_piece_is_named(sharded_repo: Path, tmp_path: Path) -> None:
    shutil.copytree(sharded_repo, tmp_path / "repo")
    next((tmp_path / "repo" / "vae").glob("*-00002-of-*")).unlink()
    with pytest.raises(ValueError, match=r"vae/diffusion_pytorch_model-00002-of-.*: weight file is missing"):
        resolve_repo(tmp_path / "repo").components["vae"].weight_names()


@pytest.mark.parametrize("text", ["{}", '{"weight_map": []}', '{"weight_map": {"a": 3}}', "{"])
def test_a_broken_list_of_pieces(broken: Path, text: str) -> None:
    (broken / "vae" / "diffusion_pytorch_model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match=r"safetensors\.index\.json: "):
        resolve_repo(broken).components["vae"].weight_names()


def test_no_weights_at_all(broken: Path) -> None:
    (broken / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"component 'vae': no weights; expected vae/diffusion_pytorch_model") as error:
        resolve_repo(broken).components["vae"].weight_names()
    assert "there is config.json" in str(error.value)


def test_a_component_folder_that_is_missing(broken: Path) -> None:
    shutil.rmtree(broken / "tokenizer")
    with pytest.raises(ValueError, match=r"component 'tokenizer'.*has no files; download the repo again"):
        resolve_repo(broken).components["tokenizer"].local_folder()


def test_the_revision_is_for_hub_repos(wan_repo: Path) -> None:
    with pytest.raises(ValueError, match="revision='main': is of Hub repos"):
        resolve_repo(wan_repo, revision="main")


def test_the_model_in_the_package(wan_repo: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(repo_module, "SHIPPED_MODEL", wan_repo)
    repo = resolve_repo("shapes-t2v")
    assert (repo.model, repo.entry.name, repo.revision) == ("shapes-t2v", "shapes-t2v", None)
    monkeypatch.setattr(repo_module, "SHIPPED_MODEL", tmp_path / "nothing")
    with pytest.raises(ValueError, match="is missing from this installation; install the package again"):
        resolve_repo("shapes-t2v")


def test_an_unregistered_id_asks_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "HfApi", None)
    with pytest.raises(ValueError, match="model='somebody/else': no local folder and no registered model"):
        resolve_repo("somebody/else")


class Hub:
    """A stand-in for the Hub that has one repo, a local folder; counts what is downloaded."""

    def __init__(self, folder: Path, cache: Path, error: Exception | None = None) -> None:
        self.folder = folder
        self.cache = cache
        self.error = error
        self.downloaded: list[str] = []

    def __call__(self) -> "Hub":
        return self

    def repo_info(self, repo_id: str, revision: str | None = None) -> Any:
        if self.error is not None:
            raise self.error
        names = [path.relative_to(self.folder).as_posix() for path in self.folder.rglob("*") if path.is_file()]
        names += ["assets/picture.png", "examples/clip.mp4", ".gitattributes"]
        return SimpleNamespace(sha=COMMIT, siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(self, repo_id: str, revision: str, allow_patterns: list[str], **options: Any) -> str:
        assert revision == COMMIT
        for name in allow_patterns:
            target = self.cache / name
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.folder / name, target)
                self.downloaded.append(name)
        return str(self.cache)


@pytest.fixture
def hub(wan_repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    stand_in = Hub(wan_repo, tmp_path / "hub")
    monkeypatch.setattr(huggingface_hub, "HfApi", stand_in)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", stand_in.snapshot_download)
    return stand_in


def test_what_is_cached_is_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / f"models--{HUB_ID.replace('/', '--')}" / "snapshots" / COMMIT
    for name in ("vae/config.json", "model_index.json"):
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / name).write_text("{}")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    files = HubFiles(HUB_ID, frozenset(("vae/config.json", "model_index.json")), COMMIT)
    for names in (("vae/config.json",), ("model_index.json",), ("vae/config.json", "model_index.json")):
        assert files.fetch(names) == snapshot


def test_of_a_hub_repo_only_what_is_needed_is_fetched(hub: Hub) -> None:
    repo = resolve_repo(HUB_ID)
    assert (repo.model, repo.revision, repo.entry.name) == (HUB_ID, COMMIT, "wan2.1-t2v-1.3b")
    assert {Path(name).suffix for name in hub.downloaded} == {".json"}
    assert not any(name.startswith("tokenizer") for name in hub.downloaded)
    files = repo.components["vae"].weight_files
    assert files == (hub.cache / "vae" / "diffusion_pytorch_model.safetensors",)
    assert [name for name in hub.downloaded if name.endswith(".safetensors")] == [
        "vae/diffusion_pytorch_model.safetensors"
    ]
    assert (repo.components["tokenizer"].local_folder() / "tokenizer.json").is_file()
    assert not any(name.startswith(("assets", "examples", ".git")) for name in hub.downloaded)


def test_inspecting_a_hub_repo_fetches_no_weights(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors import safe_open

    def header(self: Hub, repo_id: str, name: str, revision: str) -> Any:
        tensors = {}
        with safe_open(self.folder / name, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118
                piece = file.get_slice(key)
                tensors[key] = SimpleNamespace(shape=piece.get_shape(), dtype=piece.get_dtype())
        return SimpleNamespace(tensors=tensors)

    monkeypatch.setattr(Hub, "parse_safetensors_file_metadata", header, raising=False)
    report = inspect_repo(HUB_ID)
    assert report.revision == COMMIT
    assert report.parameters > 100_000
    assert not any(name.endswith(".safetensors") for name in hub.downloaded)


@pytest.mark.parametrize(
    ("error", "revision", "message"),
    [
        (GatedRepoError, None, "access is restricted; accept its terms"),
        (RepositoryNotFoundError, None, "the Hub has no such repo, or it is private"),
        (RevisionNotFoundError, "v9", "revision='v9': .* has no such branch, tag or commit"),
        (ConnectionError, None, r"is not in the local cache, and the Hub cannot be reached \(no\)"),
    ],
)
def test_hub_errors_are_one_line(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, error: type[Exception], revision: str | None, message: str
) -> None:
    hub.error = ConnectionError("no") if error is ConnectionError else error.__new__(error)

    def no_cache(*args: Any, **kwargs: Any) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_cache)
    with pytest.raises(ValueError, match=message) as raised:
        resolve_repo(HUB_ID, revision)
    assert "\n" not in str(raised.value)


def test_a_download_that_breaks_off(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> str:
        raise OSError("[Errno 28] No space left on device")

    repo = resolve_repo(HUB_ID)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ValueError, match=r"download failed .* No space left on device.*; what has arrived is kept"):
        repo.files.fetch(("vae/diffusion_pytorch_model.safetensors",))
    assert isinstance(repo.files, HubFiles)


def test_without_a_network_the_cache_is_used(wan_repo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the layout of the Hub's own cache; HF_HUB_OFFLINE is set for all tests
    storage = tmp_path / f"models--{HUB_ID.replace('/', '--')}"
    (storage / "refs").mkdir(parents=True)
    (storage / "refs" / "main").write_text(COMMIT)
    snapshot = storage / "snapshots" / COMMIT
    shutil.copytree(wan_repo, snapshot)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    repo = resolve_repo(HUB_ID)
    assert (repo.revision, repo.entry.name) == (COMMIT, "wan2.1-t2v-1.3b")
    assert repo.components["vae"].weight_files[0].parent == snapshot / "vae"
    (snapshot / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ValueError, match="component 'vae': no weights"):
        resolve_repo(HUB_ID).components["vae"].weight_names()


def test_with_neither_network_nor_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ValueError, match="is not in the local cache, and the Hub cannot be reached") as error:
        resolve_repo(HUB_ID)
    assert "\n" not in str(error.value)


def test_a_hub_repo_of_another_class(hub: Hub, broken: Path) -> None:
    path = broken / "model_index.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_class_name": "WanImageToVideoPipeline"}))
    hub.folder = broken
    with pytest.raises(ValueError, match=r"_class_name='WanImageToVideoPipeline' .* must be 'WanPipeline'"):
        resolve_repo(HUB_ID)


def test_the_shipped_model_is_a_folder_of_the_package() -> None:
    assert registry.SHIPPED_MODEL.parent.name == "assets"
    assert registry.SHIPPED_MODEL.parent.parent == Path(registry.__file__).parent.parent
