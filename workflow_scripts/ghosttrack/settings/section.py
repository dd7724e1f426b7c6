"""Base class and limits of all settings sections."""

from collections.abc import Iterator
from typing import Any, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator
from pydantic_core import PydanticCustomError

# A larger number is a typing error: no run has so many tokens, and sizes and hours are computed
# from them.
LARGEST = 10**12
# Maximum number of extraction jobs per layer: file names have four digits for them.
MOST_SHARDS = 9_999
LARGEST_SEED = 2**31 - 1


class Section(BaseModel):
    """A group of settings: unknown keys are errors, and values never change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value(cls, value: Any, info: ValidationInfo) -> Any:
        """Refuse `yes` and `true` where a number is expected: Python takes them for 1."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        kinds = {annotation, *get_args(annotation)}
        kinds |= {item for kind in kinds if get_origin(kind) is list for item in get_args(kind)}
        given = value if isinstance(value, list) else [value]
        if kinds & {int, float} and any(isinstance(item, bool) for item in given):
            raise PydanticCustomError("truth_value", "input should be a number, not a truth value")
        return value


def numbers(value: Any, key: str) -> Iterator[tuple[str, int | float]]:
    """Yield every number in nested settings with its dotted key; `key` is the prefix."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from numbers(inner, f"{key}.{name}" if key else name)
    elif isinstance(value, list):
        for item in value:
            yield from numbers(item, key)
    elif isinstance(value, int | float):
        yield key, value


def section_type(annotation: Any) -> type[BaseModel] | None:
    """The settings section in a field's annotation, or None."""
    for candidate in (annotation, *getattr(annotation, "__args__", ())):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None
