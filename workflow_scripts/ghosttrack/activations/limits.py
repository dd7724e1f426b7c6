"""How far each fast way of reading a model is exact, as `model_check` measured it."""

from pathlib import Path
from typing import Any, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.inputs.model_precision import Precision
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

    def both(self, other: "Limits") -> "Limits":
        """What is exact under these limits and under `other`."""
        return Limits(
            min(self.packed, other.packed),
            min(self.padded, other.padded),
            min(self.cached, other.cached),
            self.batched and other.batched,
            self.skipped and other.skipped,
            self.named and other.named,
        )


def read(path: Path) -> Limits:
    """The limits in a model's model_check.json.

    Raises:
        UserError: the file is missing, or was not written by the check of a model.
    """
    about: Any = files.read_json(path)
    try:
        return Limits(**about["limits"])
    except (KeyError, TypeError) as error:
        raise _other_file(path, "limits") from error


def read_precision(path: Path) -> Precision:
    """The precision in which a model was checked, from its model_check.json.

    Raises:
        UserError: as `read`.
    """
    about: Any = files.read_json(path)
    try:
        # Checks from before this key ran in float32.
        return Precision(**about.get("precision", {}))
    except (AttributeError, TypeError) as error:
        raise _other_file(path, "precision") from error


def _other_file(path: Path, what: str) -> UserError:
    return UserError(
        f"{path}: it does not hold the {what} of a checked model; delete it and run again, then "
        "the check is repeated"
    )


def require_precision(path: Path, precision: Precision) -> None:
    """Check that a job runs the model in the precision of the run's model_check.json.

    Raises:
        UserError: they differ, e.g. because jobs with `inference.dtype: auto` ran on different
            devices.
    """
    checked = read_precision(path)
    if checked == precision:
        return
    raise UserError(
        f"this job would run the model in {precision.name}, but {path} was written in "
        f"{checked.name}: all jobs of a run need one precision. Run all of them on machines with a "
        f"GPU or all without, or set inference.dtype: {checked.dtype} in the model's file; to "
        f"start anew in {precision.name}, delete {path}"
    )
