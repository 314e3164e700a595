"""From checkpoint tensors to a model's parameters: translate, check, slice, cast, place."""

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastvideo import envs
from fastvideo.configs.models.base import ParamNamesMapping, Target
from fastvideo.distributed.placement import local_rows
from fastvideo.distributed.tensor import TensorShard
from fastvideo.layers.tensor_parallel import TensorParallel
from fastvideo.logger import init_logger
from fastvideo.models.loader.checkpoint import TensorInfo, merge_headers, read_header, stream_tensors
from fastvideo.models.loader.packing import hold_packed, put, unpacked
from fastvideo.models.loader.repo import Repo, weight_sources
from fastvideo.utils import atomic_path, read_json, sha256_file

logger = init_logger(__name__)


def plan_loading(
    model: nn.Module, found: Mapping[str, TensorInfo], mapping: ParamNamesMapping, what: str = ""
) -> dict[str, Target]:
    """Where each tensor of a checkpoint goes, with every key accounted for. Reads no tensor.

    Args:
        model: may be on the meta device.
        found: the checkpoint's tensors by name.
        mapping: from the names there to the model's.
        what: what the checkpoint is, for messages.

    Returns:
        A target for each tensor to load; those that `mapping` drops are left out.

    Raises:
        ValueError: a tensor that is unexpected, misshapen, there twice, missing, or of a dtype that holds no weights.
    """
    state = _state(model)
    what = what or type(model).__name__
    repeated = mapping.repeated(found)
    targets: dict[str, Target] = {}
    unexpected: list[str] = []
    filled: dict[str, dict[int, str]] = {}
    for name, info in found.items():
        target = None if name in repeated else mapping(name)
        if target is None:
            continue
        if target.name not in state:
            unexpected.append(f"{name!r} in {info.file}")
            continue
        _check_tensor(info, target, state[target.name], shard_of(model, target.name), what)
        pieces = filled.setdefault(target.name, {})
        for other in pieces.values():
            if target.part in pieces or targets[other].parts != target.parts:
                raise ValueError(f"{what}: weights {other!r} and {name!r} are both {target.name!r}; remove one of them")
        pieces[target.part] = name
        targets[name] = target
    missing = [source for name in state for source in _lacking(mapping.sources(name), filled.get(name, {}), targets)]
    if missing:
        hint = f" (and there is {unexpected[0]}, which has no place)" if unexpected else ""
        raise ValueError(f"{what}: weight {_some(map(repr, missing))} is missing{hint}; download the weights again")
    if unexpected:
        raise ValueError(f"{what}: weight {_some(unexpected)} is unexpected: the model has no place for it; "
                         "check that config.json belongs to these weights")  # fmt: skip
    return targets


def dtype_of(parameter: str, dtype: torch.dtype, keep_fp32: Collection[str]) -> torch.dtype:
    """Of the parameter of that name: fp32 when the name contains one of `keep_fp32`, else `dtype`."""
    return torch.float32 if any(part in parameter for part in keep_fp32) else dtype


def give_dtypes(model: nn.Module, dtype: torch.dtype, keep_fp32: Collection[str]) -> None:
    """Let `model`, on the meta device, have the dtypes of the weights that it will get; see `dtype_of`."""
    for name, tensor in model.state_dict(keep_vars=True).items():
        owner, _, leaf = name.rpartition(".")
        wanted = dtype_of(name, dtype, keep_fp32) if tensor.is_floating_point() else tensor.dtype
        typed = torch.empty_like(tensor, dtype=wanted, requires_grad=False)
        parameter = isinstance(tensor, nn.Parameter)
        setattr(model.get_submodule(owner), leaf, nn.Parameter(typed, requires_grad=False) if parameter else typed)


def load_into(
    model: nn.Module,
    files: Iterable[Path],
    mapping: ParamNamesMapping,
    *,
    dtype: torch.dtype | None = None,
    keep_fp32: Collection[str] = (),
    device: torch.device | str = "cpu",
    report: Callable[[int], object] | None = None,
    finish: Callable[[str], object] | None = None,
    what: str = "",
    only: Collection[str] | None = None,
) -> None:
    """Load the weights in `files` into `model`, one tensor at a time; of a parameter that is spread over ranks, only
    this rank's part is read.

    At most the model's parameters, one tensor and some mapped pages of its file are in memory at once.

    Args:
        model: parameters on the meta device get memory on `device`; others keep theirs, and their dtype.
        files: safetensors or `torch.save` files that together hold each weight once.
        mapping: from the names there to the model's.
        dtype: of the parameters; None is fp32.
        keep_fp32: parameters whose names contain one of these are fp32 whatever `dtype`.
        device: where the parameters go.
        report: is told the bytes of each tensor when it is done, whether all of it belongs here or not.
        finish: is told the name of each parameter when all of it is there, and may then replace it.
        what: what the checkpoint is, for messages.
        only: our names of the parameters to load, where the others stay as they are.

    Raises:
        ValueError: a file is missing, truncated or holds no weights (it names the file); or a weight is missing,
            unexpected, misshapen or there twice (it names the weight). The model may be partly loaded only when a
            file changes while it is read.
    """
    paths = list(files)
    header = merge_headers(read_header(path) for path in paths)
    targets = plan_loading(model, header, mapping, what)
    if only is not None:
        targets = {name: target for name, target in targets.items() if target.name in only}
    packed = hold_packed(model, header, targets, dtype or torch.float32)
    lacking: dict[str, int] = {}
    for name, tensor in stream_tensors(paths, targets):
        target = targets[name]
        wanted = dtype_of(target.name, dtype or torch.float32, keep_fp32)
        if target.name in packed:
            put(packed[target.name], target.part, header[name], tensor, torch.device(device))
        else:
            with torch.no_grad():
                parameter = _allocated(model, target.name, wanted, torch.device(device))
                fill(parameter, unpacked(tensor, header[name]), target, shard_of(model, target.name))
                del parameter  # what `finish` replaces is let go then
        lacking[target.name] = lacking.get(target.name, target.parts) - 1
        if finish is not None and not lacking[target.name]:
            finish(target.name)
        if report is not None:
            report(tensor.nbytes)


def module_state(checkpoint: Mapping[str, torch.Tensor], mapping: ParamNamesMapping) -> dict[str, torch.Tensor]:
    """A checkpoint's state dict under our names, with stacked parameters stacked."""
    repeated = mapping.repeated(checkpoint)
    pieces: dict[str, dict[int, torch.Tensor]] = {}
    for name, tensor in checkpoint.items():
        target = None if name in repeated else mapping(name)
        if target is not None:
            pieces.setdefault(target.name, {})[target.part] = tensor
    return {
        name: torch.cat([parts[part] for part in sorted(parts)]) if len(parts) > 1 else next(iter(parts.values()))
        for name, parts in pieces.items()
    }


def checkpoint_state(state: Mapping[str, torch.Tensor], mapping: ParamNamesMapping) -> dict[str, torch.Tensor]:
    """A state dict of ours under the checkpoint's names, ready to be saved: the inverse of `module_state`."""
    checkpoint: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        sources = mapping.sources(name)
        for source, piece in zip(sources, tensor.detach().chunk(len(sources)), strict=True):
            checkpoint[source] = piece.contiguous().clone() if len(sources) > 1 else piece.contiguous()
    return checkpoint


def _state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The parameters and persistent buffers of `model`, each once."""
    return dict(model.state_dict(keep_vars=True))


def _check_tensor(
    info: TensorInfo, target: Target, parameter: torch.Tensor, shard: TensorShard | None, what: str
) -> None:
    expected = list(parameter.shape)
    if shard is not None:
        expected[shard.dim] = shard.full
    if target.parts > 1:
        expected[0] //= target.parts
    if _significant(info.shape) != _significant(expected) and not _flat(info.shape, expected):
        raise ValueError(
            f"{what}: weight {info.name!r} in {info.file} has shape {list(info.shape)}, must be {expected}; "
            "check that config.json belongs to these weights"
        )
    if parameter.is_floating_point() and not info.dtype.is_floating_point:
        raise ValueError(
            f"{what}: weight {info.name!r} in {info.file} is {info.dtype}, must be a floating-point type; "
            "quantized weights cannot be loaded"
        )


def _significant(shape: Sequence[int]) -> list[int]:
    """`shape` without the ones that it begins and ends with: [1, 257, d] holds what [257, d] does."""
    kept = [dim for dim, extent in enumerate(shape) if extent != 1]
    return list(shape[kept[0] : kept[-1] + 1]) if kept else []


def _ones_behind(shape: Sequence[int]) -> int:
    """How many ones `shape` ends with, if it is not of ones alone."""
    last = max((dim for dim, extent in enumerate(shape) if extent != 1), default=len(shape) - 1)
    return len(shape) - 1 - last


def _flat(shape: Sequence[int], expected: Sequence[int]) -> bool:
    """Whether `shape` is that of a convolution's weight, `expected`, as a matrix: what patches are multiplied with."""
    return len(shape) == 2 < len(expected) and list(shape) == [expected[0], math.prod(expected[1:])]


def shard_of(model: nn.Module, name: str) -> TensorShard | None:
    """Which slice of parameter `name` this rank holds; None for all of it."""
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    return owner.shards.get(leaf) if isinstance(owner, TensorParallel) else None


def fill(parameter: torch.Tensor, tensor: torch.Tensor, target: Target, shard: TensorShard | None) -> None:
    """Copy what of `tensor` belongs in this rank's part of `parameter`; the rest is not touched, so not read."""
    if _flat(tensor.shape, parameter.shape):
        tensor = tensor.reshape(parameter.shape)
    whole = list(parameter.shape)
    if shard is not None:
        whole[shard.dim] = shard.full
    behind = _ones_behind(whole)
    if tensor.ndim != len(whole) or _ones_behind(tensor.shape) != behind:  # in ones at the beginning or the end
        held = _significant(tensor.shape)
        ones = max(0, len(whole) - len(held) - behind)
        tensor = tensor.reshape((1,) * ones + tuple(held) + (1,) * behind)
    if shard is not None:
        start, stop = shard.bounds(tensor.shape[shard.dim])
        tensor = tensor.narrow(shard.dim, start, stop - start)
    memory, first, last = local_rows(parameter)
    if parameter.ndim == 0:
        memory.copy_(tensor)
        return
    # the piece is rows begin and on of the parameter, of which rows first to last are here
    begin = target.part * (parameter.shape[0] // target.parts)
    low, high = max(first, begin), min(last, begin + tensor.shape[0])
    if low < high:
        memory[low - first : high - first].copy_(tensor[low - begin : high - begin])


def _allocated(model: nn.Module, name: str, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Parameter or buffer `name`, with memory: what is still on the meta device gets it now."""
    owner_name, _, leaf = name.rpartition(".")
    owner = model.get_submodule(owner_name)
    current: torch.Tensor = getattr(owner, leaf)
    if not current.is_meta:
        return current
    dtype = dtype if current.is_floating_point() else current.dtype
    memory = torch.empty(current.shape, dtype=dtype, device=device)
    if isinstance(current, nn.Parameter):
        setattr(owner, leaf, nn.Parameter(memory, requires_grad=current.requires_grad))
    else:
        setattr(owner, leaf, memory)
    return memory


def _lacking(sources: tuple[str, ...], pieces: Mapping[int, str], targets: Mapping[str, Target]) -> list[str]:
    """Those of a parameter's `sources` that its `pieces`, by number, leave out."""
    if pieces and len(pieces) == targets[next(iter(pieces.values()))].parts:
        return []
    return [source for source in sources if source not in pieces.values()]


def _some(names: Iterable[str]) -> str:
    """The first of `names`, and how many more there are."""
    listed = list(names)
    return listed[0] if len(listed) == 1 else f"{listed[0]} (and {len(listed) - 1} more)"


def weight_hashes(repo: Repo) -> dict[str, str]:
    """The SHA-256 of each weight file of `repo`, by its name there; see `file_hashes`."""
    files: dict[str, Path] = {}
    for source in weight_sources(repo):
        files.update(zip(source.weight_names(), source.weight_files, strict=True))
    return file_hashes(files)


def file_hashes(files: Mapping[str, Path]) -> dict[str, str]:
    """The SHA-256 of each of `files`, by its name.

    A hash is computed once and kept in the cache folder for as long as the file's size and time of change stay.
    """
    cache_file = envs.cache_root() / "weight_hashes.json"
    try:
        cache: dict[str, Any] = read_json(cache_file)
    except ValueError:
        cache = {}
    hashes: dict[str, str] = {}
    computed = False
    for name, path in files.items():
        status = path.stat()
        key = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}"
        if key not in cache:
            cache[key] = sha256_file(path)
            computed = True
        hashes[name] = cache[key]
    if computed:
        try:
            with atomic_path(cache_file) as temporary:
                temporary.write_text(json.dumps(cache, indent=1))
        except OSError as error:
            logger.debug("%s: weight hashes are not kept (%s)", cache_file, error)
    return hashes
