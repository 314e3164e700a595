"""Groups of ranks and what they say to each other. On one rank every collective is the identity."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from fastvideo.distributed.layout import Layout

AXES = ("cfg", "ring", "ulysses", "tp")
"""The mesh's dimensions, slowest first."""

traffic: Counter[str] = Counter()
"""Bytes that this rank has sent to others, by the name of the group and the kind of operation: "ulysses.all_to_all"."""
waiting: list[str] = []
"""The collective that this rank is in now, innermost last; tells who waits and who is waited for."""


class Group:
    """Some ranks that work on one thing together. Every member makes the same calls in the same order.

    All data travels as bytes, so that any dtype does; sums are taken in the tensor's dtype.
    """

    def __init__(self, name: str, process_group: dist.ProcessGroup | None = None) -> None:
        """The group of this rank alone when there is no `process_group`."""
        self.name = name
        self.process_group = process_group
        self.size = 1 if process_group is None else process_group.size()
        self.rank = 0 if process_group is None else process_group.rank()

    def all_gather(self, x: torch.Tensor, dim: int = 0) -> torch.Tensor:
        """The tensors of all ranks, of one shape, joined along `dim` in the order of ranks."""
        if self.size == 1:
            return x
        sent = _bytes(x)
        received = sent.new_empty(self.size, sent.numel())
        with self._counted("all_gather", sent.numel() * (self.size - 1)):
            dist.all_gather(list(received.unbind()), sent, group=self.process_group)
        parts = received.view(x.dtype).view(self.size, *x.shape)
        return torch.cat(parts.unbind(), dim=dim)

    def all_to_all(self, x: torch.Tensor) -> torch.Tensor:
        """`x` [size, ...]: row i goes to rank i; the result's row i came from rank i."""
        if self.size == 1:
            return x
        assert x.shape[0] == self.size
        sent = _bytes(x)
        received = torch.empty_like(sent)
        with self._counted("all_to_all", sent.numel() // self.size * (self.size - 1)):
            dist.all_to_all_single(received, sent, group=self.process_group)
        return received.view(x.dtype).view(x.shape)

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum of all ranks' tensors, the same on every rank; a new tensor where there is more than one rank."""
        if self.size == 1:
            return x
        total = x.contiguous().clone()
        with self._counted("all_reduce", 2 * x.nbytes * (self.size - 1) // self.size):
            dist.all_reduce(total, group=self.process_group)
        return total

    def broadcast(self, x: torch.Tensor, source: int = 0) -> torch.Tensor:
        """The tensor of rank `source` of the group on every rank; the others give one of its shape."""
        if self.size == 1:
            return x
        data = _bytes(x) if self.rank == source else torch.empty_like(_bytes(x))
        with self._counted("broadcast", data.numel() if self.rank == source else 0):
            dist.broadcast(data, group_src=source, group=self.process_group)
        return data.view(x.dtype).view(x.shape)

    def shift(self, x: torch.Tensor) -> Callable[[], torch.Tensor]:
        """Start to send `x` to the next rank of the ring; the function returned waits for the previous rank's, of the
        same shape."""
        if self.size == 1:
            return lambda: x
        sent = _bytes(x)
        received = torch.empty_like(sent)
        finish = self.exchange([(sent, (self.rank + 1) % self.size)], [(received, (self.rank - 1) % self.size)])

        def wait() -> torch.Tensor:
            finish()
            return received.view(x.dtype).view(x.shape)

        return wait

    def exchange(
        self, send: Sequence[tuple[torch.Tensor, int]], receive: Sequence[tuple[torch.Tensor, int]]
    ) -> Callable[[], None]:
        """Start to send and receive contiguous tensors to and from ranks of the group; the function returned waits.

        Tensors between two ranks arrive in the order in which they were sent. Those to receive into are ready, and
        those sent may change, when the function returns.
        """
        group = self.process_group
        operations = [dist.P2POp(dist.isend, _bytes(x), group=group, group_peer=peer) for x, peer in send]
        operations += [dist.P2POp(dist.irecv, _bytes(x), group=group, group_peer=peer) for x, peer in receive]
        with self._counted("exchange", sum(x.nbytes for x, _ in send)):
            works = dist.batch_isend_irecv(operations) if operations else []

        def wait() -> None:
            with self._counted("exchange", 0):
                for work in works:
                    work.wait()

        return wait

    def _counted(self, operation: str, sent: int) -> "_Counted":
        return _Counted(f"{self.name}.{operation}", sent)


class _Counted:
    """Notes an operation as going on while it does, and its bytes."""

    def __init__(self, name: str, sent: int) -> None:
        self.name, self.sent = name, sent

    def __enter__(self) -> None:
        waiting.append(self.name)
        traffic[self.name] += self.sent

    def __exit__(self, *raised: object) -> None:
        waiting.pop()


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """The bytes of `x` [n], in its own memory when it is contiguous."""
    return x.contiguous().view(-1).view(torch.uint8)


@dataclass(frozen=True, kw_only=True)
class Groups:
    """The groups that this rank is in. The default is one rank by itself."""

    layout: Layout = field(default_factory=Layout)
    world: Group = field(default_factory=lambda: Group("world"))
    """All ranks."""
    control: Group = field(default_factory=lambda: Group("control"))
    """All ranks, for small tensors on the CPU whatever the device."""
    tp: Group = field(default_factory=lambda: Group("tp"))
    ulysses: Group = field(default_factory=lambda: Group("ulysses"))
    ring: Group = field(default_factory=lambda: Group("ring"))
    sp: Group = field(default_factory=lambda: Group("sp"))
    """The ring of Ulysses groups: rank = ring rank * ulysses size + ulysses rank."""
    cfg: Group = field(default_factory=lambda: Group("cfg"))
    replicas: DeviceMesh | None = None
    """The ranks that hold equal weights; what FSDP shards over. None on one rank."""

    @property
    def rank(self) -> int:
        """Of this process among all."""
        return self.world.rank


ONE_RANK = Groups()


def build_groups(layout: Layout, device_type: str) -> Groups:
    """The groups of `layout` among the ranks of the default process group, which must be as many.

    Raises:
        ValueError: the numbers differ.
    """
    if dist.get_world_size() != layout.world:
        raise ValueError(f"{layout}: needs {layout.world} processes, and there are {dist.get_world_size()}")
    if layout.world == 1:
        return ONE_RANK
    mesh = init_device_mesh(device_type, tuple(getattr(layout, axis) for axis in AXES), mesh_dim_names=AXES)
    axes = {axis: Group(axis, mesh.get_group(axis)) for axis in AXES}
    sp = mesh["ring", "ulysses"]._flatten("sp")
    replicas = mesh["cfg", "ring", "ulysses"]._flatten("replicas")
    world = dist.group.WORLD
    if device_type != "cpu":
        # messages between single ranks must not be the first thing that a group of this backend does
        dist.all_reduce(torch.zeros(1, device=device_type))
    control = world if device_type == "cpu" else dist.new_group(backend="gloo")
    return Groups(
        layout=layout,
        world=Group("world", world),
        control=Group("control", control),
        sp=Group("sp", sp.get_group()),
        replicas=replicas if replicas.size() > 1 else None,
        **axes,
    )
