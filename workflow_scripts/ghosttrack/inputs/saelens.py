"""SAEs by their names in SAELens, an optional library (envs/saelens.txt, versions 6.x).

Its registry knows the hub repository and the file format of each published release, such as Gemma
Scope and Llama Scope. The Snakefile imports this module, so torch and the library are imported only
where an SAE is loaded.
"""

import contextlib
import difflib
import importlib.util
import os
import re
import sys
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import yaml

from ghosttrack.errors import UserError
from ghosttrack.inputs import hub
from ghosttrack.runtime import files
from ghosttrack.settings import SaeSettings
from ghosttrack.settings.names import LibraryName, library_name

TESTED = "6.54.12"
REQUIREMENTS = "envs/saelens.txt"
# Steps that give a local folder in the format of SAELens; the end of several error messages.
TO_FOLDER = (
    "write it to a folder with SAELens (SAE.from_pretrained, then "
    "save_model(FOLDER/blocks.N.hook_SITE)) and set sae.source to FOLDER"
)
RENAME = f"{TO_FOLDER}, with model_name changed in its cfg.json"
_SPARSITY = "sparsity.safetensors"  # how often each feature fires; no part of the SAE


class Entry(NamedTuple):
    """A release in the registry."""

    repository: str
    model: str
    l0: Mapping[str, float]  # expected L0 of each SAE id; 0 if it is not known


class Loaded(NamedTuple):
    """An SAE in memory, as the library loaded it."""

    cfg: Mapping[str, Any]  # as in the library's cfg.json
    tensors: Mapping[str, Any]  # name -> torch.Tensor, float32
    origin: Mapping[str, Any]  # repository, commit, version of the library, SHA-256 of the files


def require_pattern(sae: SaeSettings, layers: Sequence[int]) -> None:
    """Check that a name of one SAE is not used for several layers.

    Raises:
        UserError: the name has no {layer}, and several layers are analysed.
    """
    if len(layers) > 1 and "{" not in sae.source:
        raise UserError(
            f"sae.source: {sae.source} names one SAE, but {len(layers)} layers are analysed; write "
            "{layer} in place of the layer's number ({next_layer} if SAEs are named after the "
            "input of a block), or analyse one layer with activations.layers"
        )


def registry() -> Path | None:
    """The registry file of the installed library; None if it is not installed."""
    found = importlib.util.find_spec("sae_lens")
    folders = found.submodule_search_locations if found else None
    return Path(next(iter(folders))) / "pretrained_saes.yaml" if folders else None


def missing() -> UserError:
    """The error for a missing library: what to install, and in which environment."""
    return UserError(
        "sae.source: a name with `saelens:` needs the SAELens library, which is missing here; "
        f"install it with `{_python()} -m pip install -r {REQUIREMENTS}`; if jobs run in conda "
        f"environments, add sae-lens=={TESTED} to the pip packages in envs/fetch.yaml instead"
    )


def _python() -> str:
    """The interpreter, relative to the working directory where it is inside."""
    inside = os.path.relpath(sys.executable)
    return sys.executable if inside.startswith("..") else inside


def look_up(name: LibraryName, path: Path) -> Entry:
    """The registry's entry of a release that holds the SAE.

    Args:
        name: release and id.
        path: the registry file: a YAML mapping from releases to their properties.
    Raises:
        UserError: the release or the id is unknown; lists the most similar known ones.
    """
    entry = _release(name.release, path)
    if name.sae_id not in entry.l0:
        raise UserError(
            f"sae.source: SAELens's release {name.release} holds no SAE {name.sae_id}; most "
            f"similar of {len(entry.l0)}: {_similar(name.sae_id, entry.l0)}"
        )
    return entry


@cache
def _release(release: str, path: Path) -> Entry:
    """The entry of a release. Only its lines are parsed: the whole file takes a second."""
    text = path.read_text(encoding="utf-8")
    block = re.search(rf"^{re.escape(release)}:.*\n(?:(?:[ \-#].*)?\n)*", text, re.MULTILINE)
    if block is None:
        known = re.findall(r"^([^\s#'\"-][^\s:]*):", text, re.MULTILINE)
        raise UserError(
            f"sae.source: SAELens knows no release {release}; most similar: "
            f"{_similar(release, known)} (a hub repository is named without `saelens:`)"
        )
    (entry,) = yaml.load(block[0], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)).values()
    l0 = {str(sae["id"]): float(sae.get("l0") or 0) for sae in entry["saes"]}
    return Entry(entry["repo_id"], entry["model"], l0)


def _similar(name: str, known: Collection[str]) -> str:
    return ", ".join(difflib.get_close_matches(name, known, n=4, cutoff=0)) or "none"


def load(source: str, revision: str | None) -> Loaded:
    """Download an SAE at one commit with the library's converter for its release.

    Args:
        source: saelens:RELEASE/SAE_ID.
        revision: commit of the release's repository; None: the newest.
    Raises:
        UserError: the library is missing or has another version, the name is unknown, the files
            cannot be downloaded or converted, or the scale of the inputs is not known.
    """
    name = library_name(source)
    library, loaders = _library()
    entry = look_up(name, Path(str(library.__file__)).with_name("pretrained_saes.yaml"))
    instead = f"without the hub, {TO_FOLDER}"
    commit = hub.commit(entry.repository, revision, key="sae.source", instead=instead)
    try:
        with _at_commit(loaders, commit) as read, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about TransformerLens and HookedSAETransformer
            sae = library.SAE.from_pretrained_with_cfg_and_sparsity(
                *name, device="cpu", dtype="float32"
            )[0]
    except Exception as error:  # of many unrelated types: network, formats, shapes
        what = f"{source} ({entry.repository})"
        raise UserError(hub.reason("sae.source", what, commit, error, instead)) from error
    cfg = sae.cfg.to_dict()
    if cfg.get("normalize_activations") == "expected_average_only_in":
        raise UserError(
            f"sae.source: {source}: its inputs were scaled (normalize_activations: "
            "expected_average_only_in), but SAELens knows no scale (norm_scaling_factor) of it; "
            "choose other SAEs"
        )
    if l0 := entry.l0[name.sae_id]:
        cfg["metadata"] = {**cfg["metadata"], "l0": l0}
    return Loaded(
        cfg,
        {key: tensor.detach() for key, tensor in sae.state_dict().items()},
        {
            "source": source,
            "repository": entry.repository,
            "revision": commit,
            "sae_lens": library.__version__,
            "sha256": {file: files.sha256_file(path) for file, path in sorted(read.items())},
        },
    )


def _library() -> tuple[ModuleType, ModuleType]:
    """The library, and its module that downloads and converts."""
    if registry() is None:
        raise missing()
    try:
        import sae_lens

        version = sae_lens.__version__
        if version.partition(".")[0] == "6":
            from sae_lens.loading import pretrained_sae_loaders

            return sae_lens, pretrained_sae_loaders
    except Exception as error:  # of its many dependencies too
        raise UserError(
            f"sae.source: SAELens cannot be imported ({type(error).__name__}: "
            f"{str(error).partition(chr(10))[0]}); install the tested versions with "
            f"`{_python()} -m pip install -r {REQUIREMENTS}`"
        ) from error
    raise UserError(
        f"sae.source: SAELens {version} is installed, expected version 6 (tested: {TESTED}); "
        f"install it with `{_python()} -m pip install -r {REQUIREMENTS}`"
    )


@contextlib.contextmanager
def _at_commit(loaders: ModuleType, commit: str) -> Iterator[dict[str, Path]]:
    """Let the library's converters read one commit; they have no argument for it.

    Yields:
        The files that were read: path in the repository -> local path.
    """
    read: dict[str, Path] = {}
    download = loaders.hf_hub_download

    def at_commit(repo_id: str, filename: str, subfolder: str | None = None, **options: Any) -> str:
        path: str = download(
            repo_id, filename, subfolder=subfolder, **{**options, "revision": commit}
        )
        if filename.rpartition("/")[2] != _SPARSITY:
            read[f"{subfolder}/{filename}" if subfolder else filename] = Path(path)
        return path

    def shapes(repo_id: str, filename: str) -> dict[str, list[int]]:
        from safetensors import safe_open

        with safe_open(at_commit(repo_id, filename), "pt") as opened:
            names = opened.keys()
            return {name: opened.get_slice(name).get_shape() for name in names}

    # The second reads the shapes over HTTP from the newest commit; not in every version.
    ours = {"hf_hub_download": at_commit, "get_safetensors_tensor_shapes": shapes}
    theirs = {name: getattr(loaders, name) for name in ours if hasattr(loaders, name)}
    try:
        for name in theirs:
            setattr(loaders, name, ours[name])
        yield read
    finally:
        for name, function in theirs.items():
            setattr(loaders, name, function)
