"""Which attention backend runs: the one that was asked for, or an error; with "auto", the best that can."""

import torch
from torch import nn

from fastvideo import envs
from fastvideo.attention.backends.base import AttentionBackend, AttentionCall, LayerPlace
from fastvideo.attention.layer import DistributedAttention, LocalAttention
from fastvideo.configs.attention import AttentionOptions
from fastvideo.logger import init_logger
from fastvideo.utils import nearest, resolve

logger = init_logger(__name__)

BACKENDS: dict[str, str] = {
    "FLASH_ATTN": "fastvideo.attention.backends.flash_attn:FlashBackend",
    "TORCH_SDPA": "fastvideo.attention.backends.sdpa:SDPABackend",
    "SAGE_ATTN": "fastvideo.attention.backends.sage_attn:SageBackend",
    "SAGE_ATTN_THREE": "fastvideo.attention.backends.sage_attn:SageThreeBackend",
    "VIDEO_SPARSE_ATTN": "fastvideo.attention.backends.video_sparse_attn:VideoSparseBackend",
    "SLIDING_TILE_ATTN": "fastvideo.attention.backends.sliding_tile_attn:SlidingTileBackend",
    "VMOBA_ATTN": "fastvideo.attention.backends.vmoba_attn:VMoBABackend",
}
"""Names of the backends that there are, the one that "auto" tries first first, as "module:Class"."""


def select_backend(
    name: str | None,
    call: AttentionCall,
    options: AttentionOptions | None = None,
    place: LayerPlace | None = None,
) -> AttentionBackend:
    """The backend `name` for calls like `call`.

    Args:
        name: a name in `BACKENDS`, in any case; "auto" for the first that can run `call` and computes what the
            checkpoint says; None for what FASTVIDEO_ATTENTION_BACKEND says, or else "auto".
        call: what the backend must be able to run.
        options: of the backends that leave keys out.
        place: of the layer in its model.

    Raises:
        ValueError: the name is unknown, or its backend cannot run `call`; the message gives the reason and lists those
            that can.
    """
    wanted = (name or envs.attention_backend() or "auto").upper()

    def tried(reference: str) -> tuple[AttentionBackend, str | None]:
        """A backend, and why it cannot run; its module is imported now, and some take long."""
        backend: AttentionBackend = resolve(reference).for_layer(options or AttentionOptions(), place or LayerPlace())
        return backend, _why_not(backend, call)

    if wanted in BACKENDS:
        backend, reason = tried(BACKENDS[wanted])
        if reason is None:
            return backend
    elif wanted == "AUTO":
        for backend, reason in map(tried, BACKENDS.values()):
            # with a gate the backend that has it is what the checkpoint was trained with
            if reason is None and (backend.exact or call.gate):
                return backend
        raise ValueError(f"attention backend 'auto': none can run {call}")
    else:
        close = nearest(wanted, BACKENDS)
        reason = "is no attention backend" + (f"; did you mean {close!r}?" if close else "")
    running = [backend.name for backend, problem in map(tried, BACKENDS.values()) if problem is None]
    listed = ", ".join(running) or "none"
    raise ValueError(f"attention backend {wanted!r}: {reason}; those that can run here: {listed}; or 'auto'")


def _why_not(backend: AttentionBackend, call: AttentionCall) -> str | None:
    """The reason why `backend` cannot run `call`, or None."""
    if call.gate and not backend.gated:
        return "has no gate branch, and the checkpoint was trained with one (video sparse attention)"
    return backend.why_not(call)


def set_attention_backend(
    model: nn.Module,
    name: str | None,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    head_dim: int,
    ring: bool = False,
    options: AttentionOptions | None = None,
    heads: int | None = None,
    part: tuple[int, int] = (0, 1),
) -> None:
    """Give every attention layer in `model` its backend.

    `name`, as in `select_backend`, is about the full-sequence attention of a diffusion transformer
    (`DistributedAttention`), and must be able to run it. The other layers, whose logits may take a bias, get it where
    it can run them and the best that can where not; that is logged.

    Args:
        model: any module.
        name: see `select_backend`.
        device: that the model runs on.
        dtype: of queries, keys and values.
        head_dim: of the model's attention.
        ring: whether the full-sequence attention goes around a ring of ranks.
        options: of the backends that leave keys out.
        heads: of the model's full-sequence attention, on all ranks together.
        part: which part of them this rank attends with, and how many parts there are.

    Raises:
        ValueError: as in `select_backend`.
    """
    device_type = torch.device(device).type
    full = [module for module in model.modules() if isinstance(module, DistributedAttention)]
    local = [module for module in model.modules() if isinstance(module, LocalAttention)]
    for layer in local:
        call = AttentionCall(device=device_type, dtype=dtype, head_dim=head_dim, has_bias=True, causal=layer.causal)
        layer.backend = _preferred(name, call)
    for number, exchanged in enumerate(full):
        call = AttentionCall(
            device=device_type,
            dtype=dtype,
            head_dim=head_dim,
            logsumexp=ring,
            video=exchanged.on_grid,
            gate=exchanged.gated,
        )
        place = LayerPlace(layer=number, layers=len(full), heads=heads, part=part)
        exchanged.backend = select_backend(name, call, options, place)


def attention_backend_name(model: nn.Module) -> str | None:
    """The name of the backend of `model`'s full-sequence attention, or of its other attention when it has none of that
    kind; None when it has no attention layer."""
    layers = [module for module in model.modules() if isinstance(module, (DistributedAttention, LocalAttention))]
    layers.sort(key=lambda layer: not isinstance(layer, DistributedAttention))
    return layers[0].backend.name if layers else None


def _preferred(name: str | None, call: AttentionCall) -> AttentionBackend:
    """Backend `name` where it can run `call`, else the best that can."""
    wanted = (name or envs.attention_backend() or "auto").upper()
    if wanted in BACKENDS:
        backend: AttentionBackend = resolve(BACKENDS[wanted])()
        reason = _why_not(backend, call)
        if reason is None:
            return backend
        logger.debug("attention with a bias: %s cannot run it (%s), another backend does", wanted, reason)
        return select_backend("auto", call)
    return select_backend(wanted, call)
