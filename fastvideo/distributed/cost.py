"""What a step of denoising costs in bytes sent, by formula; tests compare it with what is counted."""

from collections import Counter
from dataclasses import dataclass

from fastvideo.distributed.layout import Layout


@dataclass(frozen=True, kw_only=True)
class StepShape:
    """The sizes that decide how much is sent in one prediction of a transformer."""

    layers: int
    hidden: int
    """Width of a token."""
    tokens: int
    """Of the whole sequence."""
    text: int
    """Tokens of the text that cross-attention sees."""
    patch: int
    """Numbers that a token is projected to in the end."""
    latents: int
    """Numbers in the latents of one video."""
    batch: int = 1
    itemsize: int = 2
    """Bytes of a number in the transformer's precision."""
    weight_bytes: int = 0
    """Of the transformer, without tensor parallelism."""

    def part(self, layout: Layout) -> int:
        """Tokens on one rank, padding included."""
        return -(-self.tokens // layout.sp)


def bytes_sent(shape: StepShape, layout: Layout) -> Counter[str]:
    """Bytes that one rank sends in one guided step, by group.

    With L tokens of width d, n layers, N ranks of a group and numbers of e bytes, where a part is L / sp tokens:

    - ulysses: 4 n tensors (query, key, value, output) of part * d / tp, of which (N - 1) / N leave the rank;
    - ring: 2 n (N - 1) tensors (key, value) of part * d / tp;
    - sp: the predicted patches of the part, to N - 1 ranks, once;
    - tp: 3 n sums of part * d, each 2 (N - 1) / N of it (a ring all-reduce), and the sums of squares of the norms;
    - cfg: one prediction of the latents;
    - fsdp: (N - 1) / N of the weights on a tensor-parallel rank, for each prediction.

    A step has two predictions unless `layout.cfg` is 2, which computes each on ranks of its own.
    """
    part = shape.part(layout) * shape.batch
    predictions = 2 // layout.cfg
    tensor = part * shape.hidden // layout.tp * shape.itemsize
    sent: Counter[str] = Counter()
    if layout.ulysses > 1:
        sent["ulysses"] = predictions * shape.layers * 4 * tensor * (layout.ulysses - 1) // layout.ulysses
    if layout.ring > 1:
        sent["ring"] = predictions * shape.layers * 2 * tensor * (layout.ring - 1)
    if layout.sp > 1:
        sent["sp"] = predictions * part * shape.patch * shape.itemsize * (layout.sp - 1)
    if layout.tp > 1:
        sums = 3 * part * shape.hidden * shape.itemsize
        # of queries, keys and the queries of cross-attention, and of the text's keys
        squares = 4 * (3 * part + shape.text * shape.batch)
        embedders = (shape.text + 1) * shape.batch * shape.hidden * shape.itemsize
        whole = shape.layers * (sums + squares) + embedders
        sent["tp"] = predictions * whole * 2 * (layout.tp - 1) // layout.tp
    if layout.cfg > 1:
        sent["cfg"] = shape.latents * shape.batch * shape.itemsize
    if layout.fsdp:
        sent["fsdp"] = predictions * shape.weight_bytes // layout.tp * (layout.replicas - 1) // layout.replicas
    return sent
