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
from ghosttrack.inputs import hub, model_names, sae_fields
from ghosttrack.settings import SaeSettings, SourceSettings

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
_SITES = ("resid_post", "mlp_out", "attn_out")
_LFS = b"version https://git-lfs"
# Files of other forms, by how their names end, with whose they are.
_OTHER_FORMS = {"params.npz": "Gemma Scope", "ae.pt": "dictionary_learning"}
_CONVERT = (
    "load it with SAELens (SAE.from_pretrained), write it with its save_model(FOLDER/blocks.N.hook_SITE) and name FOLDER "
    "as sae.source"
)
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
        return [
            self.folder / CFG,
            self.weights,
            *([scaler] if self.form == "saelens" and scaler.is_file() else []),
        ]

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
    place = Path(sae.source_of(layer))
    if "{" not in sae.source:
        if not place.is_dir():
            raise UserError(
                f"sae.source: there is no folder {sae.source}; for a hub repository give its commit as sae.revision"
            )
        names = [path.parent.name for path in place.glob(f"*/{CFG}")]
        if not names:
            _refuse_other_forms(str(place), _files_below(place))
        place /= choose(names, layer, site, sae.source)
    if not (place / CFG).is_file():
        if place.is_dir():
            _refuse_other_forms(str(place), _files_below(place))
        raise UserError(
            f"sae.source: {place} has no {CFG}: there is no autoencoder of layer {layer}"
        )
    return place


def _files_below(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def _refuse_other_forms(where: str, paths: Sequence[str]) -> None:
    """Name what lies where no checkpoint of a known form does, if that can be told."""
    if CFG in paths:
        raise UserError(
            f"sae.source: {where} is the folder of one autoencoder (it holds {CFG}), expected the folder above it; or write "
            "{layer} for the layer's number in its path"
        )
    for path in paths:
        name = path.rsplit("/", 1)[-1]
        form = _OTHER_FORMS.get(name) or (
            "PyTorch or NumPy" if name.endswith((".pt", ".npz", ".pth")) else None
        )
        if form:
            raise UserError(
                f"sae.source: {where} holds {path}, a file of {form}; expected {CFG} with {' or '.join(WEIGHTS.values())} "
                f"(SAELens or sparsify): {_CONVERT}"
            )


def fetch(sae: SaeSettings, layer: int, site: str) -> Path:
    """The folder with the autoencoder of a layer, downloaded if `sae.revision` says that it lies in a hub repository."""
    if sae.revision is None:
        return locate(sae, layer, site)
    owner, name, *inside = sae.source_of(layer).split("/")
    below = "/".join(inside)

    def pick(paths: Sequence[str]) -> str:
        if "{" in sae.source:
            if f"{below}/{CFG}" not in paths:
                _refuse_other_forms(f"{owner}/{name}/{below}", _inside(paths, below))
                raise UserError(
                    f"sae.source: {owner}/{name} holds no {below}/{CFG}: there is no autoencoder of layer {layer}"
                )
            return below
        inner = _inside(paths, below)
        folders = [path[: -len(CFG) - 1] for path in inner if path.endswith(f"/{CFG}")]
        if not folders:
            _refuse_other_forms(f"{owner}/{name}", inner)
        found = choose([each for each in folders if "/" not in each], layer, site, sae.source)
        return f"{below}/{found}" if below else found

    return hub.folder(
        f"{owner}/{name}",
        sae.revision,
        pick,
        NEEDED,
        key="sae.source",
        instead="without the hub name a local folder, with no sae.revision",
    )


def _inside(paths: Sequence[str], folder: str) -> list[str]:
    """The paths below a folder, relative to it."""
    start = f"{folder}/" if folder else ""
    return [path[len(start) :] for path in paths if path.startswith(start)]


def choose(names: Collection[str], layer: int, site: str, where: str) -> str:
    """The one of the folder names that belongs to a site of a layer; `where` is for the error."""
    fitting = [
        name
        for name in names
        if (found := hook(name)) and found.layer == layer and found.site in (site, None)
    ]
    if len(fitting) == 1:
        return fitting[0]
    problem = (
        f"several for {site} of layer {layer}"
        if fitting
        else f"no autoencoder for {site} of layer {layer}"
    )
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
        return (
            Hook(number - 1, "resid_post") if kind == "resid_pre" and number else Hook(number, kind)
        )
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
            _refuse_other_forms(str(folder), [name for name in _files_below(folder) if name != CFG])
            raise UserError(f"sae.source: {folder} holds neither {' nor '.join(WEIGHTS.values())}")
        form = "sparsify"
    refuse_pointer(folder / WEIGHTS[form])
    found = _saelens(folder, cfg) if form == "saelens" else _sparsify(folder, cfg)
    _require_place(found, layer, site)
    if found.d_in != d_model:
        raise UserError(
            f"{path}: d_in is {found.d_in}, the model's width is {d_model}: it belongs to another model"
        )
    return found


def require_sublayer(found: Pretrained, site: str, sublayer: str) -> None:
    """Refuse an autoencoder of a module that is not the one whose output is added to the residual stream.

    Args:
        found: the autoencoder; only one that names a module of the model, and not a hook of TransformerLens, is checked.
        site: mlp_out or attn_out.
        sublayer: the module, within its block, whose output is the site in this model.
    Raises:
        UserError: the autoencoder names another one, such as the MLP of a model that normalises what its MLP returns.
    """
    named = str(
        found.metadata.get("hook_name") or found.metadata.get("hook_point") or found.folder.name
    )
    match = None if _HOOK.search(named) else _MODULE.search(named)
    if match and match[2] and match[2] != sublayer:
        raise UserError(
            f"{found.folder / CFG}: it reads the module {match[2]} ({named}), expected one of {sublayer}: in this model that is the "
            f"module whose output is added to the residual stream ({site}); choose other autoencoders"
        )


def require_model(found: Pretrained, model: str, source: SourceSettings) -> str | None:
    """Refuse an autoencoder whose configuration names another model.

    Args:
        found: the autoencoder.
        model: name of the model in this run.
        source: where its weights come from.
    Returns:
        A warning with both names where they differ but the model's origin is not known by name; else None.
    Raises:
        UserError: the model comes from the hub and has another name.
    """
    path, named = _named_model(found)
    if not named:
        return None
    known = [model, *([source.id.partition("==")[0]] if source.kind in ("hub", "wheel") else [])]
    if model_names.same(named, known):
        return None
    if source.kind == "hub" and not model_names.is_path(named):
        raise UserError(
            f"{path}: it was trained on the model {named}, expected {source.id}; choose autoencoders of that model, or, if "
            "the weights are those of the same model, write its name as model_name in a copy of that file"
        )
    return (
        f"{path}: it was trained on a model named {named}, and this one is {model} ({source.kind}); the names alone do not "
        "tell whether they are the same: see fvu in quality.json"
    )


def _named_model(found: Pretrained) -> tuple[Path, str | None]:
    """The file that names the model of the training, and the name; sparsify keeps it beside the folders."""
    path = found.folder / CFG
    named = found.metadata.get("model_name")
    if found.form == "sparsify":
        path = found.folder.parent / "config.json"
        named = read_object(path).get("model") if path.is_file() else None
    return path, named if isinstance(named, str) and named else None


def refuse_pointer(path: Path) -> None:
    """Refuse a git-lfs pointer in the place of a file."""
    with path.open("rb") as stream:
        if stream.read(len(_LFS)) == _LFS:
            raise UserError(
                f"sae.source: {path} is a git-lfs pointer, not the file itself; run `git lfs pull` in that repository, or "
                "download it with `hf download`"
            )


def read_object(path: Path) -> dict[str, Any]:
    """A checkpoint's JSON file; a UserError says what is wrong with it."""
    if path.is_file():
        refuse_pointer(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"sae.source: {path} cannot be read as JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected a JSON object, found {type(content).__name__}")
    return content


def _saelens(folder: Path, cfg: Mapping[str, Any]) -> Pretrained:
    path = folder / CFG
    if not isinstance(metadata := cfg.get("metadata") or {}, Mapping):
        raise UserError(f"{path}: metadata is {metadata!r}, expected a JSON object")
    kwargs = cfg.get("activation_fn_kwargs") or {}
    architecture = _architecture(path, cfg)
    sae_fields.require_known(path, cfg, sae_fields.SAELENS)
    _require_plain_input(folder, cfg)
    sae_fields.require_flag(path, cfg, "apply_b_dec_to_input", True)
    sae_fields.require_flag(path, cfg, "finetuning_scaling_factor", False)
    scaled = sae_fields.require_flag(path, cfg, "rescale_acts_by_decoder_norm", False)
    if scaled and "topk" not in architecture:
        raise UserError(
            f"{path}: rescale_acts_by_decoder_norm is true, expected false with architecture {architecture!r}"
        )
    if not isinstance(kwargs, Mapping) or set(kwargs) - {"k"}:
        raise UserError(f"{path}: activation_fn_kwargs is {kwargs!r}, only k can be read")
    k = None
    if architecture == "topk":
        k = _count(path, "k", cfg.get("k", kwargs.get("k")))
    d_in, d_sae = _count(path, "d_in", cfg.get("d_in")), _count(path, "d_sae", cfg.get("d_sae"))
    return Pretrained(folder, "saelens", cfg, architecture, d_in, d_sae, k)


def _architecture(path: Path, cfg: Mapping[str, Any]) -> str:
    """One of ARCHITECTURES, whose activation function is the one that it stands for."""
    function = cfg.get("activation_fn") or cfg.get("activation_fn_str")
    architecture = cfg.get("architecture") or "standard"
    if architecture == "standard" and function == "topk":  # the form before version 6
        architecture = "topk"
    _one_of(path, "architecture", architecture, ARCHITECTURES)
    expected = "topk" if architecture == "topk" else "relu"
    if function not in (None, expected):
        raise UserError(
            f"{path}: activation_fn is {function!r}, only relu and topk can be read (architecture {architecture!r} needs "
            f"{expected!r})"
        )
    return str(architecture)


def _require_plain_input(folder: Path, cfg: Mapping[str, Any]) -> None:
    """Refuse an input that is normalised token by token, or reshaped."""
    path, given = folder / CFG, cfg.get("normalize_activations")
    normalisation = "expected_average_only_in" if given is True else given or "none"
    _one_of(path, "normalize_activations", normalisation, NORMALISATIONS)
    if normalisation != "none" and not (folder / SCALER).is_file():
        raise UserError(
            f"{path}: normalize_activations is {given!r}, and there is no {SCALER} beside it with the scale"
        )
    if (cfg.get("reshape_activations") or "none") != "none":
        raise UserError(
            f"{path}: reshape_activations is {cfg['reshape_activations']!r}, only 'none' can be read"
        )


def _sparsify(folder: Path, cfg: Mapping[str, Any]) -> Pretrained:
    path = folder / CFG
    _one_of(path, "activation", cfg.get("activation", "topk"), ("topk",))
    sae_fields.require_known(path, cfg, sae_fields.SPARSIFY)
    d_in = _count(path, "d_in", cfg.get("d_in"))
    d_sae = cfg.get("num_latents") or d_in * _count(
        path, "expansion_factor", cfg.get("expansion_factor", 32)
    )
    return Pretrained(
        folder,
        "sparsify",
        cfg,
        "topk",
        d_in,
        _count(path, "num_latents", d_sae),
        _count(path, "k", cfg.get("k", 32)),
    )


def _require_place(found: Pretrained, layer: int, site: str) -> None:
    path, metadata = found.folder / CFG, found.metadata if found.form == "saelens" else {}
    named = metadata.get("hook_name") or metadata.get("hook_point")
    shown = named or found.folder.name
    place = hook(str(shown))
    if named and place is None:
        raise UserError(f"{path}: hook_name {named!r} names no place in a block that is known here")
    if place and place.site not in (*_SITES, None):
        raise UserError(
            f"{path}: it reads {place.site} of layer {place.layer} ({shown}), expected {site} of layer {layer}; only what is "
            f"added to the residual stream, or the stream itself, can be read: {', '.join(_SITES)}"
        )
    if place and (place.layer != layer or place.site not in (site, None)):
        raise UserError(
            f"{path}: it reads {place.site or 'activations'} of layer {place.layer} ({shown}), expected "
            f"{site} of layer {layer}; check sae.source and activations.site"
        )
    for key in ("hook_head_index", "hook_point_head_index"):
        if metadata.get(key) is not None:
            raise UserError(
                f"{path}: {key} is {metadata[key]!r}: it reads one attention head, expected {site} of layer {layer}"
            )
    for key in sae_fields.SAELENS.off:
        if metadata.get(key) not in (None, False, "", named):
            raise UserError(
                f"{path}: {key} is {metadata[key]!r}: it is a transcoder, expected an autoencoder"
            )


def _one_of(path: Path, key: str, value: Any, known: Collection[str]) -> None:
    if value not in known:
        raise UserError(f"{path}: {key} is {value!r}; {', '.join(known)} can be read")


def _count(path: Path, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{path}: {key} is {value!r}, expected a positive whole number")
    return value
