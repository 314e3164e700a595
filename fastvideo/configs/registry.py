"""The models and component classes that FastVideo knows: strings only, imported on use."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastvideo.configs import wan, wan_few_steps, wan_fun
from fastvideo.configs.entries import ComponentEntry, ModelEntry
from fastvideo.configs.official import OfficialLayout
from fastvideo.configs.repo_index import RepoIndex, read_folder_index
from fastvideo.configs.wan import SHIPPED_NAME
from fastvideo.utils import nearest, require, resolve

SHIPPED_MODEL = Path(__file__).parent.parent / "assets" / SHIPPED_NAME
"""The folder of the model in the package."""

MODELS: tuple[ModelEntry, ...] = (*wan.MODELS, *wan_few_steps.MODELS, *wan_fun.MODELS)
"""Of all families."""

COMPONENTS: tuple[ComponentEntry, ...] = (
    ComponentEntry(
        class_name="WanTransformer3DModel",
        model="fastvideo.models.dits.wanvideo:WanTransformer3DModel",
        arch="fastvideo.configs.models.dits.wanvideo:WanVideoArchConfig",
    ),
    ComponentEntry(
        class_name="CausalWanTransformer3DModel",
        model="fastvideo.models.dits.causal_wanvideo:CausalWanTransformer3DModel",
        arch="fastvideo.configs.models.dits.causal_wanvideo:CausalWanVideoArchConfig",
        reference="WanTransformer3DModel",
    ),
    ComponentEntry(
        class_name="WanFunTransformer3DModel",
        model="fastvideo.models.dits.wanfun:WanFunTransformer3DModel",
        arch="fastvideo.configs.models.dits.wanfun:WanFunArchConfig",
        reference="WanTransformer3DModel",
    ),
    ComponentEntry(
        class_name="WanVACETransformer3DModel",
        model="fastvideo.models.dits.wanvace:WanVACETransformer3DModel",
        arch="fastvideo.configs.models.dits.wanvace:WanVACEArchConfig",
    ),
    ComponentEntry(
        class_name="WanAnimateTransformer3DModel",
        model="fastvideo.models.dits.wananimate:WanAnimateTransformer3DModel",
        arch="fastvideo.configs.models.dits.wananimate:WanAnimateArchConfig",
    ),
    ComponentEntry(
        class_name="AutoencoderKLWan",
        model="fastvideo.models.vaes.wanvae:AutoencoderKLWan",
        arch="fastvideo.configs.models.vaes.wanvae:WanVAEArchConfig",
    ),
    ComponentEntry(
        class_name="CLIPVisionModel",
        model="fastvideo.models.encoders.clip:CLIPVisionModel",
        arch="fastvideo.configs.models.encoders.clip:CLIPVisionArchConfig",
    ),
    ComponentEntry(
        class_name="UMT5EncoderModel",
        model="fastvideo.models.encoders.t5:UMT5EncoderModel",
        arch="fastvideo.configs.models.encoders.t5:UMT5ArchConfig",
    ),
    ComponentEntry(
        class_name="T5EncoderModel",
        model="fastvideo.models.encoders.t5:T5EncoderModel",
        arch="fastvideo.configs.models.encoders.t5:T5ArchConfig",
    ),
)


def find_entry(
    model_index: Mapping[str, Any] | None = None,
    component_configs: Mapping[str, Mapping[str, Any]] | None = None,
    model_id: str | None = None,
) -> ModelEntry:
    """The entry of a model, by its id when one is given, else by what its configs say; never by a path.

    Args:
        model_index: `model_index.json`, parsed; only its `_class_name` counts.
        component_configs: each component's config.
        model_id: a Hub id or a registered name; None for a local folder.

    Raises:
        ValueError: nothing is registered for it; the message lists what is.
    """
    if model_id is not None:
        for entry in MODELS:
            if model_id in entry.model_ids:
                return entry
        ids = [name for entry in MODELS for name in entry.model_ids]
        close = nearest(model_id, ids)
        raise ValueError(
            f"model={model_id!r}: no local folder and no registered model; "
            + (f"did you mean {close!r}? " if close else "")
            + f"registered are {', '.join(ids)}; any other repo works from a local folder, if its pipeline is known"
        )
    class_name = (model_index or {}).get("_class_name")
    entries = [entry for entry in MODELS if entry.pipeline_class == class_name]
    if not entries:
        known = sorted({entry.pipeline_class for entry in MODELS})
        close = nearest(str(class_name), known)
        raise ValueError(
            f"_class_name={class_name!r}: no such pipeline; "
            + (f"did you mean {close!r}? " if close else "")
            + f"known are {', '.join(known)}"
        )
    matching = [entry for entry in entries if entry.matches(component_configs or {})]
    return max(matching, key=lambda entry: (len(entry.components), len(entry.signature)))


def entry_for(model: str | Path) -> ModelEntry:
    """The entry of `model`: a local folder, the name of the model in the package, or a registered Hub id.

    Raises:
        ValueError: nothing is registered for it, or the folder is no model repo.
    """
    folder = local_folder(model)
    if folder is not None:
        return entry_of_index(read_folder_index(folder, official_layouts()))
    return find_entry(model_id=str(model))


def local_folder(model: str | Path) -> Path | None:
    """The folder that `model` is; None when it is no folder. A folder wins over a registered name.

    Raises:
        ValueError: `model` is empty.
    """
    require(bool(str(model)), "model", str(model), "must be a Hub id, a local folder, or the name of a shipped model")
    folder = Path(model).expanduser()
    return folder if folder.is_dir() else None


def entry_of_index(index: RepoIndex) -> ModelEntry:
    """The entry of a local folder whose index is `index`."""
    return find_entry({"_class_name": index.class_name}, index.configs)


def official_layouts() -> list[OfficialLayout]:
    """The layouts of authors' own folders, each once."""
    return [resolve(name) for name in dict.fromkeys(e.official_layout for e in MODELS if e.official_layout)]


def find_component(class_name: str) -> ComponentEntry:
    """The entry of component class `class_name`.

    Raises:
        ValueError: nobody registered it; the message lists what is registered.
    """
    for entry in COMPONENTS:
        if entry.class_name == class_name:
            return entry
    known = [entry.class_name for entry in COMPONENTS]
    close = nearest(class_name, known)
    raise ValueError(
        f"component class {class_name!r}: not known; "
        + (f"did you mean {close!r}? " if close else "")
        + f"known are {', '.join(known)}"
    )
