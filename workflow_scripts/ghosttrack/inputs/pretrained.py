"""Pretrained autoencoders: which folder is a layer's, and whether what its cfg.json says fits the model.

Two forms are known: SAELens (cfg.json, sae_weights.safetensors; that of versions before 6 too) and sparsify (cfg.json,
sae.safetensors). The Snakefile imports this: nothing here may import torch. `sae.conversion` reads the weights.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.inputs import hub
from ghosttrack.settings import SaeSettings

CFG = "cfg.json"
WEIGHTS = {"saelens": "sae_weights.safetensors", "sparsify": "sae.safetensors"}
# SAELens keeps the one factor of `expected_average_only_in` here, until it is folded into the weights.
SCALER = "activation_scaler.json"
NEEDED = (CFG, *WEIGHTS.values(), SCALER)

ARCHITECTURES = ("standard", "jumprelu", "topk", "batchtopk")
# What can be folded into weights. constant_norm_rescale and layer_norm divide each token by a number of its own.
NORMALISATIONS = ("none", "expected_average_only_in")
# Places in a block by TransformerLens's name, and by that of the module whose output is read.
_HOOK = re.compile(r"(?:^|\.)blocks\.(\d+)\.(?:\w+\.)?hook_(\w+)$")
_MODULE = re.compile(r"(?:^|\.)(?:layers?|blocks|h)[._](\d+)(?:\.(\w+))?$")
_PARTS = {"mlp": "mlp_out", "attn": "attn_out", "self_attn": "attn_out", "attention": "attn_out"}


class Pretrained(NamedTuple):
    """One layer's pretrained autoencoder as its cfg.json describes it."""

    folder: Path
    form: Literal["saelens", "sparsify"]
    cfg: Mapping[str, Any]
    architecture: str  # of ARCHITECTURES
    d_in: int
    d_sae: int
    k: int | None  # topk: active features of each token

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.folder / WEIGHTS[self.form]

    @property
    def files(self) -> list[Path]:
        """Every file that the autoencoder is made of."""
        scaler = self.folder / SCALER
        return [self.folder / CFG, self.weights, *([scaler] if self.form == "saelens" and scaler.is_file() else [])]

    @property
    def metadata(self) -> Mapping[str, Any]:
        """What SAELens says about model and data: a part of its own since version 6, among the rest before."""
        found = self.cfg.get("metadata")
        return found if isinstance(found, Mapping) else self.cfg

    @property
    def centred(self) -> bool:
        """Whether it was trained on a residual stream from which TransformerLens had taken each token's mean.

        Its `center_writing_weights` does so in models with LayerNorm. SAELens before version 6 asked for it
        unless told otherwise, and later versions write down what they asked for.
        """
        asked = self.metadata.get("model_from_pretrained_kwargs")
        if not isinstance(asked, Mapping):
            return self.form == "saelens" and "metadata" not in self.cfg
        return bool(asked.get("center_writing_weights", False))


def locate(sae: SaeSettings, layer: int, site: str) -> Path:
    """The local folder with the autoencoder of a layer.

    Raises:
        UserError: there is none, with those that there are; or several.
    """
    place = Path(sae.place(layer))
    if "{" not in sae.source:
        if not place.is_dir():
            raise UserError(
                f"sae.source: there is no folder {sae.source}; for a hub repository give its commit as sae.revision"
            )
        place /= choose([path.parent.name for path in place.glob(f"*/{CFG}")], layer, site, sae.source)
    if not (place / CFG).is_file():
        raise UserError(f"sae.source: {place} has no {CFG}: there is no autoencoder of layer {layer}")
    return place


def fetch(sae: SaeSettings, layer: int, site: str) -> Path:
    """The folder with the autoencoder of a layer, downloaded if `sae.revision` says that it lies in a hub repository."""
    if sae.revision is None:
        return locate(sae, layer, site)
    owner, name, *inside = sae.place(layer).split("/")
    below = "/".join(inside)

    def pick(paths: Sequence[str]) -> str:
        if "{" in sae.source:
            if f"{below}/{CFG}" not in paths:
                raise UserError(
                    f"sae.source: {owner}/{name} holds no {below}/{CFG}: there is no autoencoder of layer {layer}"
                )
            return below
        start = f"{below}/" if below else ""
        folders = [
            path[len(start) : -len(CFG) - 1] for path in paths if path.startswith(start) and path.endswith(f"/{CFG}")
        ]
        return start + choose([each for each in folders if "/" not in each], layer, site, sae.source)

    return hub.folder(
        f"{owner}/{name}", sae.revision, pick, NEEDED, key="sae.source", instead="without the hub name a local folder, with no sae.revision"
    )  # fmt: skip


def choose(names: Collection[str], layer: int, site: str, where: str) -> str:
    """The one of the folder names that belongs to a site of a layer; `where` is for the error."""
    fitting = [name for name in names if (found := hook(name)) and found.layer == layer and found.site in (site, None)]
    if len(fitting) == 1:
        return fitting[0]
    problem = f"several for {site} of layer {layer}" if fitting else f"no autoencoder for {site} of layer {layer}"
    known = ", ".join(sorted(fitting or names)[:6]) or f"no folder with a {CFG}"
    raise UserError(
        f"sae.source: {where} holds {problem} (found {known}). Say which, with {{layer}} in its place, or analyse other "
        "layers with activations.layers"
    )


class Hook(NamedTuple):
    """A place in the model; site None: the name does not say."""

    layer: int
    site: str | None


def hook(name: str) -> Hook | None:
    """Layer and site that a hook, module or folder name stands for; None if it names no block.

    What enters a block is what leaves the one before: blocks.5.hook_resid_pre is resid_post of layer 4.
    """
    if match := _HOOK.search(name):
        number, kind = int(match[1]), match[2]
        return Hook(number - 1, "resid_post") if kind == "resid_pre" and number else Hook(number, kind)
    if match := _MODULE.search(name):
        numbered = re.search(r"layer_\d+$", name)
        site = _PARTS.get(match[2], match[2]) if match[2] else None if numbered else "resid_post"
        return Hook(int(match[1]), site)
    return None


def read(folder: Path, layer: int, site: str, d_model: int) -> Pretrained:
    """Describe the autoencoder in a folder.

    Raises:
        UserError: naming the file, what it says and what was expected: another layer, site or width; something
            other than an autoencoder; an architecture or normalisation that cannot be turned into ours.
    """
    path = folder / CFG
    cfg = read_object(path)
    form: Literal["saelens", "sparsify"] = "saelens"
    if not (folder / WEIGHTS["saelens"]).is_file():
        if not (folder / WEIGHTS["sparsify"]).is_file():
            raise UserError(f"sae.source: {folder} holds neither {' nor '.join(WEIGHTS.values())}")
        form = "sparsify"
    found = _saelens(folder, cfg) if form == "saelens" else _sparsify(folder, cfg)
    _require_place(found, layer, site)
    if found.d_in != d_model:
        raise UserError(f"{path}: d_in is {found.d_in}, the model's width is {d_model}: it belongs to another model")
    return found


def read_object(path: Path) -> dict[str, Any]:
    """A checkpoint's JSON file; a UserError says what is wrong with it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"sae.source: {path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _saelens(folder: Path, cfg: Mapping[str, Any]) -> Pretrained:
    path = folder / CFG
    kwargs = cfg.get("activation_fn_kwargs") or {}
    function = cfg.get("activation_fn") or cfg.get("activation_fn_str") or "relu"
    architecture = cfg.get("architecture") or "standard"
    if architecture == "standard" and function == "topk":  # the form before version 6
        architecture = "topk"
    elif architecture == "standard" and function != "relu":
        raise UserError(f"{path}: activation_fn is {function!r}, only relu and topk can be read")
    _one_of(path, "architecture", architecture, ARCHITECTURES)
    given = cfg.get("normalize_activations")
    normalisation = "expected_average_only_in" if given is True else given or "none"
    _one_of(path, "normalize_activations", normalisation, NORMALISATIONS)
    if normalisation != "none" and not (folder / SCALER).is_file():
        raise UserError(
            f"{path}: normalize_activations is {given!r}, and there is no {SCALER} beside it with the scale"
        )
    if cfg.get("reshape_activations", "none") != "none":
        raise UserError(f"{path}: reshape_activations is {cfg['reshape_activations']!r}, only 'none' can be read")
    k = None
    if architecture == "topk":
        k = _count(path, "k", cfg.get("k", kwargs.get("k")))
    return Pretrained(
        folder, "saelens", cfg, architecture, _count(path, "d_in", cfg.get("d_in")), _count(path, "d_sae", cfg.get("d_sae")), k
    )  # fmt: skip


def _sparsify(folder: Path, cfg: Mapping[str, Any]) -> Pretrained:
    path = folder / CFG
    _one_of(path, "activation", cfg.get("activation", "topk"), ("topk",))
    for key in ("transcode", "skip_connection", "embed_skip", "gram_lookup"):
        if cfg.get(key):
            raise UserError(f"{path}: {key} is true: it is no plain autoencoder, and cannot be read")
    d_in = _count(path, "d_in", cfg.get("d_in"))
    d_sae = cfg.get("num_latents") or d_in * _count(path, "expansion_factor", cfg.get("expansion_factor", 32))
    return Pretrained(
        folder, "sparsify", cfg, "topk", d_in, _count(path, "num_latents", d_sae), _count(path, "k", cfg.get("k", 32))
    )


def _require_place(found: Pretrained, layer: int, site: str) -> None:
    named = found.metadata.get("hook_name") or found.metadata.get("hook_point") if found.form == "saelens" else None
    place = hook(str(named or found.folder.name))
    if named and place is None:
        raise UserError(f"{found.folder / CFG}: hook_name {named!r} names no place in a block that is known here")
    if place and (place.layer != layer or place.site not in (site, None)):
        raise UserError(
            f"{found.folder / CFG}: it reads {place.site or 'activations'} of layer {place.layer} ({named or found.folder.name}), expected "
            f"{site} of layer {layer}; check sae.source and activations.site"
        )
    if found.metadata.get("hook_head_index") is not None:
        raise UserError(f"{found.folder / CFG}: it reads one attention head, expected {site} of layer {layer}")


def _one_of(path: Path, key: str, value: Any, known: Collection[str]) -> None:
    if value not in known:
        raise UserError(f"{path}: {key} is {value!r}; {', '.join(known)} can be read")


def _count(path: Path, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{path}: {key} is {value!r}, expected a positive whole number")
    return value
