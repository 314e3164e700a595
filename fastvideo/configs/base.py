"""What the configs that users assign to have in common: a name that is not a field is an error, not a new attribute."""

import dataclasses
import math
import numbers
from typing import Any

from fastvideo.utils import require, require_known


class Assignable:
    """Mixin of a dataclass whose fields stay assignable, and nothing else does."""

    def __setattr__(self, name: str, value: Any) -> None:
        require_known((name,), self.field_names(), f"field of {type(self).__name__}")
        super().__setattr__(name, value)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """The names of all fields."""
        return tuple(field.name for field in dataclasses.fields(cls))  # type: ignore[arg-type]

    def update(self, **values: Any) -> None:
        """Assign each of `values` to the field of that name; nothing is assigned when one name is unknown.

        Raises:
            ValueError: an unknown name; it names the nearest field.
        """
        require_known(values, self.field_names(), f"field of {type(self).__name__}")
        for name, value in values.items():
            setattr(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """The fields and their values, as they stand."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}  # type: ignore[arg-type]


def require_whole(name: str, value: object, least: int, fix: str = "") -> None:
    """Raise a `ValueError` unless `value` is a whole number, `least` or more."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    require(whole and int(value) >= least, name, value, f"must be a whole number, at least {least}", fix)  # type: ignore[call-overload]


def require_number(name: str, value: object, least: float, most: float = math.inf) -> None:
    """Raise a `ValueError` unless `value` is a finite number from `least` to `most`."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    ok = number and math.isfinite(value) and least <= value <= most  # type: ignore[arg-type, operator]
    span = f"from {least:g} to {most:g}" if math.isfinite(most) else f"at least {least:g}"
    require(ok, name, value, f"must be a finite number, {span}")


def require_bool(name: str, value: object) -> None:
    """Raise a `ValueError` unless `value` is True or False."""
    require(isinstance(value, bool), name, value, "must be True or False")
