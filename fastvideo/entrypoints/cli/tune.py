"""`fastvideo tune`. Imports what computes on use."""

from jsonargparse import Namespace


def run(options: Namespace) -> int:
    """Measure a model; 1 when a level of quality has nothing to offer on it.

    Raises:
        ValueError: an option that cannot be, or a model that cannot be measured.
    """
    from fastvideo.entrypoints.tune.run import run as tune

    return tune(options)
