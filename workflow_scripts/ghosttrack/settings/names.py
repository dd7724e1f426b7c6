"""Names and paths from the settings, checked before they become a folder, a rule, a URL or an argument of pip.

Each function returns its value, or raises `InvalidNameError` with what is wrong and what to write instead. `configuration`
puts the settings key in front. The Snakefile imports this module, so `packaging` is imported where it is needed.
"""

import re
import reprlib
from pathlib import Path
from string import Formatter
from typing import Annotated, Any

from pydantic import AfterValidator, Field

LONGEST_NAME = 100
MODEL_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]*"
# Folders and files directly below results/ that belong to no model.
_RESERVED_MODELS = frozenset({"comparison", "logs", "benchmarks", "refreshed_data", "readme.md"})
_DATASET = re.compile(r"\w[\w .+()-]*")
# Beside the folders of data sets lie files of these kinds, such as detection/scores.parquet.
_RESERVED_ENDINGS = (
    ".parquet",
    ".csv",
    ".tsv",
    ".json",
    ".safetensors",
    ".zarr",
    ".log",
    ".gpu",
    ".partial",
)
_HUB_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_HUB_ID = re.compile(rf"(?:{_HUB_PART}/)?{_HUB_PART}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")
_SHA256 = re.compile(r"sha256:[0-9a-f]{64}")
_PARTITION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.,+-]*")
_GPU_MODEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.]*")
_LAYER_WIDTH = re.compile(r"(?:0?\d?d)?")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class InvalidNameError(ValueError):
    """A value that the workflow cannot use as a name or a path; the message goes behind the settings key."""


# Values in errors: the beginning of long ones, so that a list of thousands does not fill the screen.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlevel = 3


def short(value: Any) -> str:
    """A value of the settings for a message, cut where it is long or nested deeply."""
    return _SHORT.repr(value)


def quotes_needed(value: Any) -> str:
    """Why a value that YAML does not read as text (2024, true, null, 1.10) cannot be a name, and the remedy."""
    kinds = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        type(None): "no value at all",
    }
    kind = kinds.get(type(value), f"a {type(value).__name__}")
    return f"{short(value)} is read as {kind}, not as text; write it in quotation marks"


def model(name: str) -> str:
    """A model's name, which becomes the folder results/NAME and a part of rule names."""
    _check_length(name)
    if not re.fullmatch(MODEL_PATTERN, name) or name.endswith("."):
        raise InvalidNameError(
            f"{name!r} cannot name a folder of results; use letters, digits, dots, dashes and underscores, "
            "with a letter or digit in front and no dot at the end"
        )
    if name.lower() in _RESERVED_MODELS:
        raise InvalidNameError(
            f"{name!r} is the name of a folder or file that results/ has for all models; choose another name"
        )
    return name


def dataset(name: str) -> str:
    """A data set's name, which becomes folders and file names below results/MODEL."""
    _check_length(name)
    if not _DATASET.fullmatch(name) or name[-1] in " .":
        raise InvalidNameError(
            f"{name!r} cannot name files of results; use letters, digits, spaces and _ . + - ( ), "
            "with a letter or digit in front and no space or dot at the end"
        )
    if name.lower().endswith(_RESERVED_ENDINGS):
        ending = name.lower().rpartition(".")[2]
        raise InvalidNameError(
            f"{name!r} ends in .{ending} as files of results do; choose another name, such as {name[: -len(ending) - 1]!r}"
        )
    return name


def _check_length(name: str) -> None:
    if len(name) > LONGEST_NAME:
        raise InvalidNameError(
            f"{name[:20]!r}... has {len(name)} characters; a name has at most {LONGEST_NAME}"
        )


def wheel(requirement: str) -> str:
    """NAME==VERSION, a distribution name (PEP 508) and one version (PEP 440): nothing that pip could read as an option, a URL or a path."""
    from packaging.utils import InvalidName, canonicalize_name
    from packaging.version import InvalidVersion, Version

    name, _, version = requirement.partition("==")
    try:
        canonicalize_name(name, validate=True)
        if Version(version) and version == version.strip():
            return requirement
    except (InvalidName, InvalidVersion):
        pass
    raise InvalidNameError(
        f"{requirement!r} is not NAME==VERSION, a package and its exact version, as source.kind: wheel expects"
    )


def hub_id(repository: str) -> str:
    """OWNER/NAME or NAME on the Hugging Face hub."""
    if (
        _HUB_ID.fullmatch(repository)
        and ".." not in repository
        and "--" not in repository
        and len(repository) <= 96
    ):
        return repository
    raise InvalidNameError(
        f"{repository!r} is not a hub repository, OWNER/NAME, as source.kind: hub expects; "
        "for a local directory set source.kind: directory"
    )


def revision(name: str) -> str:
    """A commit, branch or tag of a hub repository, or the SHA-256 of a wheel's weights."""
    if _SHA256.fullmatch(name) or (
        _REVISION.fullmatch(name) and ".." not in name and "//" not in name
    ):
        return name
    raise InvalidNameError(
        f"{name!r} is not a commit; expected the 40 hexadecimal digits that the repository shows"
    )


def local_path(path: str) -> str:
    """A path with `~` replaced by the home directory.

    Snakemake takes braces in a path for wildcards, so they are refused.
    """
    path = home_expanded(path)
    if "{" in path or "}" in path:
        raise InvalidNameError(
            f"{path!r} holds a brace, which Snakemake takes for a wildcard; rename the file or folder, "
            "or make a symbolic link to it without braces"
        )
    return path


def home_expanded(path: str) -> str:
    """A path with `~` replaced by the home directory; line breaks and other control characters are refused."""
    if _CONTROL.search(path):
        raise InvalidNameError(
            f"{path!r} holds a line break or another control character; rename the file or folder"
        )
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise InvalidNameError(
            f"{path!r} begins with the home directory of a user who is not known here; write the whole path"
        ) from None


def layer_pattern(source: str) -> str:
    """A folder or hub path in which only {layer} and {next_layer} stand in braces, perhaps with a width as in {layer:02d}."""
    try:
        fields = [
            (name, form, conversion)
            for _, name, form, conversion in Formatter().parse(source)
            if name is not None
        ]
        known = all(
            name in ("layer", "next_layer")
            and not conversion
            and _LAYER_WIDTH.fullmatch(form or "")
            for name, form, conversion in fields
        )
    except ValueError:
        known = False
    if not known or "{{" in source or "}}" in source:
        raise InvalidNameError(
            f"{source} may hold {{layer}} and {{next_layer}} in braces, nothing else"
        )
    return source


def hub_folder(source: str) -> str:
    """OWNER/NAME or OWNER/NAME/FOLDER of a hub repository; the folder stays inside the repository."""
    owner, *parts = source.split("/")
    if (
        parts
        and all(part not in ("", ".", "..") for part in parts)
        and "\\" not in source
        and _HUB_ID.fullmatch(f"{owner}/{parts[0]}")
    ):
        return source
    raise InvalidNameError(
        f"with sae.revision it names a hub repository, OWNER/NAME or OWNER/NAME/FOLDER, found {source}"
    )


def partition(name: str) -> str:
    """A Slurm partition, or several separated by commas."""
    if _PARTITION.fullmatch(name):
        return name
    raise InvalidNameError(
        f"{name!r} is not a Slurm partition; use letters, digits and _ . + -, several separated by commas"
    )


def gpu_model(name: str) -> str:
    """Slurm's name for a type of GPU."""
    if _GPU_MODEL.fullmatch(name):
        return name
    raise InvalidNameError(
        f"{name!r} is not a type of GPU as Slurm names it; use letters, digits, dots and underscores"
    )


ModelName = Annotated[
    str, AfterValidator(model), Field(json_schema_extra={"pattern": f"^{MODEL_PATTERN}$"})
]
DatasetName = Annotated[str, AfterValidator(dataset)]
LocalPath = Annotated[str, AfterValidator(local_path)]
LayerPattern = Annotated[str, AfterValidator(home_expanded), AfterValidator(layer_pattern)]
Revision = Annotated[str, AfterValidator(revision)]
Partition = Annotated[str, AfterValidator(partition)]
GpuModel = Annotated[str, AfterValidator(gpu_model)]
