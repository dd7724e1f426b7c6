"""What `model_check` measured: how far each fast way is exact, and the scales of the stores."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.runtime import files


class Limits(NamedTuple):
    """Where each fast way gives what the reference gives; beyond it, jobs take a slower way.

    packed: longest packed sequence in tokens; 0: each text is read alone.
    padded: longest prompt with its continuation, in tokens, for which prompts of different lengths
        share a padded batch.
    cached: longest prompt with its continuation, in tokens, for which the KV cache is used.
    batched: whether inputs of the same length may share a batch.
    skipped: whether a pass may skip the blocks below a layer and reuse the output of the last.
    named: whether final norm and unembedding alone rank the tokens as the model does, so that
        features can be named by the tokens that they promote.
    """

    packed: int
    padded: int
    cached: int
    batched: bool
    skipped: bool
    named: bool


def read(path: Path) -> Limits:
    """The limits in a model's model_check.json.

    Raises:
        UserError: the file is missing, or was not written by the check of a model.
    """
    try:
        return Limits(**_read(path)["limits"])
    except TypeError as error:
        raise _refusal(path) from error


def scales(path: Path, layers: Sequence[int | None]) -> list[int]:
    """The scales of the stores of these layers (None: the token embedding), powers of two.

    Args:
        path: a model's model_check.json; it lists the scales other than 1.
    Raises:
        UserError: the file is missing, or was not written by the check of a model.
    """
    listed = _read(path).get("scales", {})
    try:
        return [int(listed.get(scale_key(layer), 1)) for layer in layers]
    except (AttributeError, TypeError, ValueError) as error:
        raise _refusal(path) from error


def scale_key(layer: int | None) -> str:
    """Name of a layer among the `scales` of model_check.json."""
    return "embedding" if layer is None else str(layer)


def _read(path: Path) -> Any:
    about: Any = files.read_json(path)
    if not isinstance(about, dict) or "limits" not in about:
        raise _refusal(path)
    return about


def _refusal(path: Path) -> UserError:
    return UserError(
        f"{path}: it does not hold the limits of a checked model; delete it and run again, "
        "then the check is repeated"
    )
