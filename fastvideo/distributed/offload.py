"""Weights that are on the device only while a model, or a layer of it, is in use; and at home meanwhile.

A home is host memory, or the files on disk. A model is either brought whole, or layer by layer: while one layer
computes, the next one's weights are read by a thread of their own, on a CUDA device over a stream of its own. So at
most two layers are on the device beside what does not belong to a layer. The numbers are the same wherever they came
from.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol

import torch
from torch import nn

Weights = dict[str, torch.Tensor]
"""Parameters and buffers of a model, by name."""


class Home(Protocol):
    """Where weights are kept."""

    def read(self, names: Collection[str], device: torch.device) -> Weights:
        """New copies on `device` of the weights called `names`; any thread may ask."""


class HostHome:
    """The weights in host memory."""

    def __init__(self, weights: Mapping[str, torch.Tensor], pin: bool = False) -> None:
        """`pin` keeps them where a CUDA device reads them without the processor's help."""
        self._weights = {name: x.detach().pin_memory() if pin else x.detach() for name, x in weights.items()}

    def read(self, names: Collection[str], device: torch.device) -> Weights:
        return {name: self._weights[name].to(device, copy=True, non_blocking=True) for name in names}


Change = Callable[[str, torch.Tensor], None]
"""Changes a weight, by name, in place."""


class Lane:
    """What is on its way to the device, read in the background in the order in which it was asked for."""

    def __init__(self, home: Home, device: torch.device, change: Change | None = None) -> None:
        """`change` is done to each weight before anybody takes it."""
        self._home, self._device, self._change = home, device, change
        self._cuda = device.type == "cuda"
        self._stream = torch.cuda.Stream(device) if self._cuda else None
        self._thread = ThreadPoolExecutor(1, "weights")

    def ask(self, names: Collection[str], after: "torch.cuda.Event | None") -> "Future[tuple[Weights, object]]":
        """Start to read `names`; on CUDA once the work before event `after` is done, whose memory can be used again."""
        return self._thread.submit(self._read, names, after)

    def _read(self, names: Collection[str], after: "torch.cuda.Event | None") -> tuple[Weights, object]:
        with torch.no_grad():
            if not self._cuda:
                return self._changed(names), None
            if after is not None:
                after.synchronize()
            with torch.cuda.stream(self._stream):
                return self._changed(names), torch.cuda.current_stream().record_event()

    def _changed(self, names: Collection[str]) -> Weights:
        weights = self._home.read(names, self._device)
        if self._change is not None:
            for name, weight in weights.items():
                self._change(name, weight)
        return weights

    def take(self, coming: "Future[tuple[Weights, object]]") -> Weights:
        """What was asked for, once it is there; raises what reading it raised."""
        weights, arrived = coming.result()
        if self._cuda:
            compute = torch.cuda.current_stream(self._device)
            compute.wait_event(arrived)  # type: ignore[arg-type]
            for tensor in weights.values():
                tensor.record_stream(compute)
        return weights

    def done(self) -> "torch.cuda.Event | None":
        """An event after all that the device was given to compute so far; None where it computes at once."""
        return torch.cuda.current_stream(self._device).record_event() if self._cuda else None

    def close(self) -> None:
        """End the thread; what nobody took is dropped."""
        self._thread.shutdown(wait=True, cancel_futures=True)


class Offloaded:
    """The residence of a model whose weights are at `home` while it is not in use."""

    def __init__(
        self,
        model: nn.Module,
        home: Home,
        device: torch.device,
        *,
        layers: Sequence[nn.Module] = (),
        again: bool = False,
        freed: Callable[[], None] = lambda: None,
    ) -> None:
        """From now on `model` has no weights but between `enter` and `leave`.

        Args:
            model: its parameters and persistent buffers have the dtypes that they have at home.
            home: has all of them, by name.
            device: to compute on.
            layers: modules of `model` that run one after another and are brought one by one; none to bring all at once.
            again: whether all layers run several times, so that the first follows on the last.
            freed: is called when all weights were dropped.
        """
        self._home, self._device, self._freed = home, device, freed
        self._again = again
        self._change: Change | None = None
        self._lane: Lane | None = None
        owners = dict(model.named_modules())
        inside = {module: number for number, layer in enumerate(layers) for module in layer.modules()}
        self._layers: list[list[_Slot]] = [[] for _ in layers]
        self._rest: list[_Slot] = []
        for name, tensor in model.state_dict(keep_vars=True).items():
            owner, _, leaf = name.rpartition(".")
            slot = _Slot(name, owners[owner], leaf, tensor)
            number = inside.get(owners[owner])
            (self._rest if number is None else self._layers[number]).append(slot)
        for number, layer in enumerate(layers):
            layer.register_forward_pre_hook(partial(self._before, number))
            layer.register_forward_hook(partial(self._after, number))
        self._coming: tuple[int, Future[tuple[Weights, object]]] | None = None
        self._idle: torch.cuda.Event | None = None
        self._drop_all()

    def change(self, change: Change | None) -> None:
        """Have `change` done to each weight that is brought from now on, while nobody uses the model; its home stays
        as it is."""
        assert self._lane is None, "the model is in use"
        self._change = change

    def enter(self) -> None:
        """See `Residence`: all weights, or those that do not belong to a layer, and the first layer's on their way."""
        if self._lane is not None:
            return
        lane = self._lane = Lane(self._home, self._device, self._change)
        rest = lane.ask([slot.name for slot in self._rest], None)
        self._ask(0)
        _fill(self._rest, lane.take(rest))

    def leave(self) -> None:
        """See `Residence`."""
        if self._lane is None:
            return
        lane, self._lane, self._coming, self._idle = self._lane, None, None, None
        lane.close()
        self._drop_all()
        self._freed()

    def _ask(self, number: int) -> None:
        """Start to bring layer `number`, where there is one."""
        assert self._lane is not None
        if self._again and self._layers:
            number %= len(self._layers)
        if number < len(self._layers):
            names = [slot.name for slot in self._layers[number]]
            self._coming = number, self._lane.ask(names, self._idle)

    def _before(self, number: int, layer: nn.Module, inputs: object) -> None:
        """Have layer `number`, and ask for the next one."""
        assert self._lane is not None, "a layer runs, and nobody has entered the residence of its model"
        if self._coming is None or self._coming[0] != number:
            # layers were skipped: what is on its way is of no use now
            self._coming = None
            self._ask(number)
        assert self._coming is not None
        _, coming = self._coming
        self._coming = None
        _fill(self._layers[number], self._lane.take(coming))
        self._ask(number + 1)

    def _after(self, number: int, layer: nn.Module, inputs: object, outputs: object) -> None:
        """Let the weights of layer `number` go."""
        assert self._lane is not None
        _drop(self._layers[number])
        self._idle = self._lane.done()

    def _drop_all(self) -> None:
        for slots in (self._rest, *self._layers):
            _drop(slots)


class _Slot:
    """The place of one weight in a model."""

    def __init__(self, name: str, owner: nn.Module, leaf: str, tensor: torch.Tensor) -> None:
        self.name, self.owner, self.leaf = name, owner, leaf
        self.parameter = isinstance(tensor, nn.Parameter)
        self.empty = torch.empty_like(tensor, device="meta", requires_grad=False)

    def put(self, tensor: torch.Tensor) -> None:
        """Let the model compute with `tensor`."""
        setattr(self.owner, self.leaf, nn.Parameter(tensor, requires_grad=False) if self.parameter else tensor)


def _fill(slots: Sequence[_Slot], weights: Weights) -> None:
    for slot in slots:
        slot.put(weights.pop(slot.name))


def _drop(slots: Sequence[_Slot]) -> None:
    for slot in slots:
        slot.put(slot.empty)
