"""What can be known before any job runs: waves under a disk budget, and whether the inputs fit."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ghosttrack import files
from ghosttrack.errors import UserError
from ghosttrack.settings import Settings

# fp16 on disk, and what zarr adds: checksums, the index, metadata and the massive-row flags.
BYTES_PER_VALUE = 2
OVERHEAD = 1.005


def layer_bytes(settings: Settings) -> int:
    """Disk of one layer's training activations, in bytes."""
    assert settings.dimensions is not None
    rows = settings.contexts * settings.corpus.context
    return int(rows * (settings.dimensions.d_model * BYTES_PER_VALUE + 1) * OVERHEAD)


def waves(settings: Settings) -> list[list[int]]:
    """Analysed layers in groups that one forward pass serves and that fit the disk budget together.

    Raises:
        UserError: when the budget holds not even one layer, with the number that would do.
    """
    layers, budget = settings.layers, settings.activations.disk_budget_gb
    if budget is None:
        return [layers]
    size = int(budget * 1e9 // layer_bytes(settings))
    if size < 1:
        need = layer_bytes(settings) / 1e9
        raise UserError(
            f"activations.disk_budget_gb: {budget:g} GB holds no layer of {settings.model}; one layer of "
            f"{settings.corpus.tokens:,} tokens takes {need:.3g} GB. Raise it to at least {need + 0.1:.1f}, or lower corpus.tokens"
        )
    return [layers[start : start + size] for start in range(0, len(layers), size)]


def training_digest(settings: Settings, codes: Sequence[str]) -> str:
    """Hex SHA-256 over the settings that a model's SAEs follow from and the digests of the code that makes them."""
    chosen = settings.model_dump(
        mode="json",
        include={"seed": True, "source": True, "corpus": True, "activations": {"site", "storage"}, "sae": True},
    )
    return files.sha256_json([chosen, *codes])


def is_made_from(folder: Path, digest: str) -> bool:
    """Whether an SAE's folder holds a finished autoencoder that follows from the settings and code of `digest`."""
    if not (folder / "sae_weights.safetensors").exists() or not (folder / "cfg.json").exists():
        return False
    found = files.read_json(folder / "cfg.json")
    return isinstance(found, dict) and found.get("metadata", {}).get("made_from") == digest


def is_local_file(source: str) -> bool:
    """Whether a corpus source names a file of the user's own rather than a hub data set."""
    return Path(source).suffix in (".txt", ".jsonl", ".parquet")


def check_sources(settings: Mapping[str, Settings], results: Path) -> None:
    """Refuse a missing local corpus, and other weights under the name of finished results.

    Raises:
        UserError: naming the key and the remedy.
    """
    for model, wanted in settings.items():
        if is_local_file(wanted.corpus.source) and not Path(wanted.corpus.source).is_file():
            raise UserError(f"corpus.source: there is no file {wanted.corpus.source}")
        manifest = results / model / "model" / "source.json"
        if manifest.exists():
            _check_weights(model, wanted, files.read_json(manifest))


def _check_weights(model: str, wanted: Settings, found: Mapping[str, str]) -> None:
    source = wanted.source
    if source.kind == "directory":
        same = found.get("source_sample_sha256") == files.sampled_sha256(files.weight_files(Path(source.id)))
    else:
        same = (found.get("kind"), found.get("id")) == (source.kind, source.id)
        same = same and source.revision in (None, found.get("revision"))
    if not same:
        raise UserError(
            f"results/{model} was made with {found.get('kind')} {found.get('id')} {found.get('revision') or ''}, now "
            f"{source.kind} {source.id} {source.revision or ''} holds other weights. Give them a name of their own "
            f"(model=NAME model_path=DIRECTORY, or a new file in config/models), or move results/{model} away"
        )
