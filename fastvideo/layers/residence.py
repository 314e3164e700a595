"""Where the weights of a model are while nobody uses it: the form, and that of a model that is always ready."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Residence(Protocol):
    """Whoever runs a model enters first, and leaves when the model is not needed for a while."""

    def enter(self) -> None:
        """Have the weights ready on the device, or on their way there."""

    def leave(self) -> None:
        """Give their memory on the device back. Doing it twice is the same as once."""


class OnDevice:
    """The weights are always on the device."""

    def enter(self) -> None:
        return

    def leave(self) -> None:
        return


class Resident(Protocol):
    """What has a residence: a model, or something that stands for one."""

    residence: Residence


@contextmanager
def ready(model: Resident) -> Iterator[None]:
    """Within the block the weights of `model`, which nobody else uses meanwhile, are on the device."""
    model.residence.enter()
    try:
        yield
    finally:
        model.residence.leave()
