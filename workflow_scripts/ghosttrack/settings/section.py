"""What every settings section has in common."""

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ConfigDict

# Numbers beyond this are typing errors: no run has as many tokens, and sizes and hours are computed from them.
LARGEST = 10**12


# Extraction jobs of a layer: file names count them with four digits.
MOST_SHARDS = 9_999
LARGEST_SEED = 2**31 - 1


class Section(BaseModel):
    """A group of settings: unknown keys are errors, values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def numbers(value: Any, key: str) -> Iterator[tuple[str, int | float]]:
    """Every number in nested settings with its key."""
    if isinstance(value, dict):
        for name, each in value.items():
            yield from numbers(each, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for each in value:
            yield from numbers(each, key)
    elif isinstance(value, int | float):
        yield key, value


def section_type(annotation: Any) -> type[BaseModel] | None:
    """The settings section that a field holds, if it holds one."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
