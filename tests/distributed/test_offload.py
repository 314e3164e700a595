"""Weights that come when they are needed and go after: in which order, how many at once, and with what result."""

import gc
import threading
import weakref
from collections.abc import Collection

import pytest
import torch
from torch import nn

from fastvideo.distributed.offload import HostHome, Offloaded, Weights

CPU = torch.device("cpu")


class Stack(nn.Module):
    """A few layers between an input and an output that belong to none; a buffer too."""

    def __init__(self, layers: int = 4) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.embed = nn.Linear(6, 8)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(layers))
        self.register_buffer("scale", torch.linspace(0.5, 1.5, 8))
        self.requires_grad_(False)

    def forward(self, x: torch.Tensor, run: Collection[int] | None = None) -> torch.Tensor:
        x = self.embed(x)
        for number, layer in enumerate(self.layers):
            if run is None or number in run:
                x = layer(x)
        return x * self.scale


class Watched:
    """A home that notes what is read, by which thread, and which of its copies are alive."""

    def __init__(self, model: nn.Module) -> None:
        self.home = HostHome(model.state_dict(keep_vars=True))
        self.read_groups: list[str] = []
        self.threads: set[str] = set()
        self.alive: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.storages: list[weakref.ref[torch.UntypedStorage]] = []
        self.most = 0

    def read(self, names: Collection[str], device: torch.device) -> Weights:
        names = list(names)
        self.read_groups.append(names[0].split(".")[1] if names[0].startswith("layers") else "rest")
        self.threads.add(threading.current_thread().name.split("_")[0])
        made = self.home.read(names, device)
        self.storages += [weakref.ref(x.untyped_storage()) for x in made.values()]
        self.most = max(self.most, self.count())
        return made

    def count(self) -> int:
        """Copies that have memory."""
        return sum(storage() is not None for storage in self.storages)


def inputs() -> torch.Tensor:
    """Two rows."""
    return torch.randn(2, 6, generator=torch.Generator().manual_seed(1))


def watched(by_layer: bool, again: bool = True, layers: int = 4) -> tuple[Stack, Watched, torch.Tensor]:
    """A model, its home, and what it computes while its weights are there."""
    model = Stack(layers)
    expected = model(inputs())
    home = Watched(model)
    model.residence = Offloaded(model, home, CPU, layers=tuple(model.layers) if by_layer else (), again=again)
    return model, home, expected


def test_no_weight_has_memory_while_nobody_uses_the_model() -> None:
    model, home, _ = watched(by_layer=True)
    assert all(x.is_meta for x in model.state_dict().values())
    assert home.read_groups == []
    assert [x.dtype for x in model.state_dict().values()] == [torch.float32] * 11


@pytest.mark.parametrize("by_layer", [False, True])
def test_the_result_is_the_same_bit_for_bit(by_layer: bool) -> None:
    model, home, expected = watched(by_layer)
    for _ in range(2):
        model.residence.enter()
        for _ in range(3):
            assert torch.equal(model(inputs()), expected)
        model.residence.leave()
        gc.collect()
        assert home.count() == 0
        assert all(x.is_meta for x in model.state_dict().values())
    assert home.threads == {"weights"}


def test_the_whole_is_read_once() -> None:
    model, home, _ = watched(by_layer=False)
    model.residence.enter()
    model.residence.enter()
    model(inputs())
    model(inputs())
    model.residence.leave()
    model.residence.leave()
    assert home.read_groups == ["rest"]
    assert home.most == 11


def test_layers_are_read_in_order_and_ahead() -> None:
    model, home, _ = watched(by_layer=True)
    seen: list[list[str]] = []
    for layer in model.layers:
        layer[1].register_forward_hook(lambda *_: seen.append(waited(home)))
    model.residence.enter()
    model(inputs())
    model(inputs())
    model.residence.leave()
    order = ["rest", *"01230123"]
    assert home.read_groups[:9] == order
    # while a layer runs, the next one has been asked for: the last run may see the first of another round
    assert [len(found) >= 2 for found in seen] == [True] * 8
    assert home.read_groups[9:] in ([], ["0"])


def waited(home: Watched) -> list[str]:
    """What was read, once the thread has had the time to read ahead."""
    for _ in range(200):
        if home.count() >= 7:
            break
        threading.Event().wait(0.005)
    return list(home.read_groups)


def test_at_most_two_layers_are_there() -> None:
    model, home, _ = watched(by_layer=True, layers=6)
    model.residence.enter()
    for layer in model.layers:
        layer[1].register_forward_hook(lambda *_: waited(home) and None)
    model(inputs())
    assert home.most == 3 + 2 * 2
    model.residence.leave()


def test_layers_that_run_once_are_read_once() -> None:
    model, home, expected = watched(by_layer=True, again=False)
    model.residence.enter()
    assert torch.equal(model(inputs()), expected)
    model.residence.leave()
    assert home.read_groups == ["rest", *"0123"]


def test_layers_may_be_skipped() -> None:
    whole = Stack()
    model, home, _ = watched(by_layer=True)
    model.residence.enter()
    for run in ((0,), (0, 3), (2,), (1, 2)):
        assert torch.equal(model(inputs(), run), whole(inputs(), run))
    model.residence.leave()
    gc.collect()
    assert home.count() == 0


def test_an_error_on_the_way_comes_out_and_leaves_nothing() -> None:
    model, home, _ = watched(by_layer=True)
    home.home._weights.pop("layers.2.0.bias")
    model.residence.enter()
    with pytest.raises(KeyError, match=r"layers\.2\.0\.bias"):
        model(inputs())
    model.residence.leave()
    gc.collect()
    assert home.count() == 0
    assert threading.active_count() == len([t for t in threading.enumerate() if not t.name.startswith("weights")])


def test_a_layer_that_runs_outside_of_its_use_is_our_mistake() -> None:
    model, _, _ = watched(by_layer=True)
    with pytest.raises(AssertionError, match="nobody has entered"):
        model.layers[0](torch.zeros(1, 8))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("pin", [False, True])
@pytest.mark.parametrize("by_layer", [False, True])
def test_on_cuda(pin: bool, by_layer: bool) -> None:
    device, width, count = torch.device("cuda"), 1024, 8
    torch.manual_seed(3)
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(count))).requires_grad_(False)
    x = torch.randn(64, width, device=device)
    model.to(device)
    expected = model(x)
    model.to("cpu")
    home = HostHome(model.state_dict(keep_vars=True), pin)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    residence = Offloaded(model, home, device, layers=tuple(model) if by_layer else (), again=True)
    residence.enter()
    torch.cuda.reset_peak_memory_stats()
    for _ in range(5):
        assert torch.equal(model(x), expected)
    layer = 4 * width * (width + 1)
    # the layer that runs, the next one, and one whose memory waits for the stream
    most = 3 * layer if by_layer else count * layer
    assert torch.cuda.max_memory_allocated() - before <= most + 4 * x.nbytes + (1 << 20)
    residence.leave()
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + 2 * x.nbytes
