"""Which attention backend runs: the one that was asked for, or an error; with "auto", the best that can."""

import torch
from torch import nn

from fastvideo import envs
from fastvideo.attention.backends.base import AttentionBackend, AttentionCall
from fastvideo.attention.layer import DistributedAttention, LocalAttention
from fastvideo.logger import init_logger
from fastvideo.utils import nearest, resolve

logger = init_logger(__name__)

BACKENDS: dict[str, str] = {"TORCH_SDPA": "fastvideo.attention.backends.sdpa:SDPABackend"}
"""Names of the backends that there are, best first, as "module:Class"."""

NOT_AVAILABLE: dict[str, str] = {
    "FLASH_ATTN": "has no backend of its own in this version; TORCH_SDPA uses PyTorch's flash kernels where they run",
    "SAGE_ATTN": "is not available in this version",
    "SAGE_ATTN_THREE": "is not available in this version",
    "VIDEO_SPARSE_ATTN": "is not available in this version",
    "SLIDING_TILE_ATTN": "is not available in this version",
    "VMOBA_ATTN": "is not available in this version",
}
"""Names that users know and that are refused, each with the reason."""


def select_backend(name: str | None, call: AttentionCall) -> AttentionBackend:
    """The backend `name` for calls like `call`.

    Args:
        name: a name in `BACKENDS`, in any case; "auto" for the best that can run `call`; None for what
            FASTVIDEO_ATTENTION_BACKEND says, or else "auto".
        call: what the backend must be able to run.

    Raises:
        ValueError: the name is unknown, or its backend cannot run `call`; the message gives the reason and lists those
            that can.
    """
    wanted = (name or envs.attention_backend() or "auto").upper()
    backends = [resolve(reference)() for reference in BACKENDS.values()]
    running: dict[str, AttentionBackend] = {b.name: b for b in backends if b.why_not(call) is None}
    listed = ", ".join(running) or "none"
    if wanted == "AUTO":
        if not running:
            raise ValueError(f"attention backend 'auto': none can run {call}")
        return next(iter(running.values()))
    if wanted in running:
        return running[wanted]
    reason = NOT_AVAILABLE.get(wanted) or next((b.why_not(call) for b in backends if b.name == wanted), None)
    if reason is None:
        close = nearest(wanted, [*BACKENDS, *NOT_AVAILABLE])
        reason = "is no attention backend" + (f"; did you mean {close!r}?" if close else "")
    raise ValueError(f"attention backend {wanted!r}: {reason}; those that can run here: {listed}; or 'auto'")


def set_attention_backend(
    model: nn.Module,
    name: str | None,
    *,
    device: torch.device | str,
    dtype: torch.dtype,
    head_dim: int,
    ring: bool = False,
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

    Raises:
        ValueError: as in `select_backend`.
    """
    device_type = torch.device(device).type
    full = [module for module in model.modules() if isinstance(module, DistributedAttention)]
    local = [module for module in model.modules() if isinstance(module, LocalAttention)]
    for layer in local:
        call = AttentionCall(device=device_type, dtype=dtype, head_dim=head_dim, has_bias=True, causal=layer.causal)
        layer.backend = _preferred(name, call)
    for exchanged in full:
        call = AttentionCall(device=device_type, dtype=dtype, head_dim=head_dim, logsumexp=ring)
        exchanged.backend = select_backend(name, call)


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
        reason = backend.why_not(call)
        if reason is None:
            return backend
        logger.debug("attention with a bias: %s cannot run it (%s), another backend does", wanted, reason)
        return select_backend("auto", call)
    return select_backend(wanted, call)
