"""What can be known before any job runs: bytes, waves under a disk budget, and whether the inputs fit.

The Snakefile imports this: nothing here may import numpy, torch, zarr or pandas.
"""

import contextlib
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ghosttrack.activations.layout import CHUNK_ROWS, CHUNKS_PER_SHARD
from ghosttrack.errors import UserError
from ghosttrack.inputs import cells, corpus_sources, file_kinds, model_sizes, pretrained, rows
from ghosttrack.planning.configuration import reachable
from ghosttrack.runtime import files, records
from ghosttrack.runtime.progress import amount
from ghosttrack.settings import Settings

# A crc32c behind every chunk and behind every index (zarr v3, sharding_indexed).
CRC_BYTES = 4
# The index at the end of a shard file: offset and size of each of its chunks, 8 bytes each.
INDEX_BYTES = 16 * CHUNKS_PER_SHARD + CRC_BYTES
# int8s: mean and scale of a channel, float32 each, once a chunk; scale of a row, float32.
CHANNEL_BYTES, ROW_SCALE_BYTES = 8, 4
# int8s: rows kept exactly, one float16 per channel and 8 bytes for their place; beside first positions at most one in this many.
OUTLIER_ONE_IN = 100
# While a store is written, each finished shard file leaves a record: the rows' norms in float32, the small arrays, 2 kB.
NORM_BYTES, RECORD_BYTES = 4, 2000
# Metadata of zarr, Snakemake's stamp and the manifest: 3 to 4 kB, up to four times that in blocks of the file system.
STORE_EXTRA_BYTES = 16_000


def store_bytes(rows: int, d_model: int, storage: str, context: int) -> int:
    """Most disk of one store and its manifest, in bytes: while it is written, with the records that let it resume.

    For `int8s` an upper bound, because only the data know how many rows are kept exactly: the first of each
    `context`, where attention collects, and one in a hundred others.
    """
    chunks = -(-rows // CHUNK_ROWS)
    shards = -(-chunks // CHUNKS_PER_SHARD)
    # The last chunk is written whole. One massive-row flag a row.
    total = shards * (INDEX_BYTES + RECORD_BYTES) + rows * (1 + NORM_BYTES) + STORE_EXTRA_BYTES
    if storage == "fp16":
        return total + chunks * (CHUNK_ROWS * d_model * 2 + CRC_BYTES)
    outliers = (-(-rows // OUTLIER_ONE_IN) + -(-rows // context)) * (2 * d_model + 8)
    small = chunks * d_model * CHANNEL_BYTES + rows * ROW_SCALE_BYTES + outliers
    return (
        total + chunks * (CHUNK_ROWS * d_model + CRC_BYTES) + 2 * small
    )  # in the store and in the records


def layer_bytes(settings: Settings) -> int:
    """Disk of one layer's training activations over all its extraction jobs, in bytes."""
    assert settings.dimensions is not None
    context, storage = settings.corpus.context, settings.activations.storage
    full, rest = divmod(settings.contexts, settings.contexts_per_shard)
    width = settings.dimensions.d_model
    total = full * store_bytes(settings.contexts_per_shard * context, width, storage, context)
    return total + (store_bytes(rest * context, width, storage, context) if rest else 0)


def heldout_bytes(settings: Settings) -> int:
    """Disk of the held-out stores of all layers, which stay, in bytes."""
    assert settings.dimensions is not None
    rows = -(-settings.corpus.heldout_tokens // settings.corpus.context) * settings.corpus.context
    return len(settings.layers) * store_bytes(
        rows, settings.dimensions.d_model, "fp16", settings.corpus.context
    )


def waves(settings: Settings) -> list[list[int]]:
    """Analysed layers in groups that one forward pass serves and that fit the disk budget together.

    The held-out stores, which stay, are taken off the budget first. The SAEs of a wave train side by side, and the next wave waits for them. So of the sizes that fit,
    the one with the fewest rounds of training on `plan.gpus` accelerators is taken, and of those the
    one with the fewest forward passes, and of those the smallest: where six layers fit, four accelerators train 24 layers in
    waves of four in 6 rounds, in waves of six in 8. An anchor, which all others wait for, is in the first wave.

    Pretrained SAEs need no training activations: no wave.

    Raises:
        UserError: when the budget holds not even one layer, or not all where one dictionary needs all, with the
            number that would do.
    """
    layers, budget = settings.layers, settings.activations.disk_budget_gb
    if not settings.sae.trained:
        return []
    if budget is None:
        return [layers]
    if (anchor := settings.anchor) is not None:
        layers = [anchor, *(layer for layer in layers if layer != anchor)]
    layer, heldout = layer_bytes(settings), heldout_bytes(settings)
    most = int((budget * 1e9 - heldout) // layer)
    if most < 1:
        least = (
            math.ceil((layer + heldout) / 1e8) / 10
            if layer + heldout > 1e8
            else math.ceil((layer + heldout) / 1e5) / 1e4
        )
        raise UserError(
            f"activations.disk_budget_gb: {budget:g} GB holds no layer of {settings.model}: {settings.corpus.tokens:,} tokens "
            f"of one layer take {amount(layer)}, the held-out text of all layers {amount(heldout)}. Raise it to at least "
            f"{least:g}, or lower corpus.tokens"
        )
    if settings.sae.shared:
        if most >= len(layers):
            return [layers]
        raise UserError(
            f"activations.disk_budget_gb: {budget:g} GB holds {counted(most, 'layer')} of {len(layers)}, and sae.dictionaries: "
            f"shared trains on all at once. Raise it to at least {math.ceil((len(layers) * layer + heldout) / 1e8) / 10:g}, lower "
            "corpus.tokens, or choose other dictionaries"
        )
    choices = [_cut(layers, size) for size in range(1, min(most, len(layers)) + 1)]
    return min(choices, key=lambda each: (training_rounds(each, settings.plan.gpus), len(each)))


def _cut(layers: list[int], size: int) -> list[list[int]]:
    return [sorted(layers[start : start + size]) for start in range(0, len(layers), size)]


def training_digest(settings: Settings, codes: Sequence[str]) -> str:
    """Hex SHA-256 over the settings that a model's SAEs follow from and the digests of the code that makes them."""
    chosen = settings.model_dump(
        mode="json",
        include={
            "seed": True,
            "source": True,
            "corpus": True,
            "activations": {"site", "storage", "rows_per_job"},
            "sae": True,
        },
    )
    return files.sha256_json([chosen, *codes])


def is_made_from(folder: Path, digest: str) -> bool:
    """Whether an SAE's folder holds a finished autoencoder that follows from the settings and code of `digest`."""
    if not (folder / "sae_weights.safetensors").exists() or not (folder / "cfg.json").exists():
        return False
    found = files.read_json(folder / "cfg.json")
    return isinstance(found, dict) and found.get("metadata", {}).get("made_from") == digest


def layers_waited_for(
    missing: Sequence[Sequence[int]], may_start_at_once: Callable[[int], bool]
) -> list[int]:
    """Layers whose SAEs the extraction of the last of some waves waits for, so that the disk holds one wave at a time.

    Nearest wave first. A layer that must be extracted waits by itself for the waves before its own: naming those again
    for each of thousands of jobs would take most of the planning. One that may start at once does not.

    Args:
        missing: the layers of each wave that have no SAE yet, in the order of the waves; the last wave is the waiting one.
        may_start_at_once: whether a layer's training needs no extraction that would wait.
    """
    found: list[int] = []
    if not missing or not missing[-1]:
        return found
    for layers in reversed(missing[:-1]):
        found += layers
        if not all(may_start_at_once(layer) for layer in layers):
            break
    return found


def training_rounds(groups: Sequence[Sequence[int]], gpus: int) -> int:
    """How many SAEs train one after the other when `gpus` train at once and waves wait for each other."""
    return sum(-(-len(layers) // gpus) for layers in groups)


def peak_bytes(settings: Settings, groups: Sequence[Sequence[int]]) -> int:
    """Most disk that training activations take at once, in bytes."""
    return max((len(layers) for layers in groups), default=0) * layer_bytes(settings)


def forward_passes(groups: Sequence[Sequence[int]]) -> float:
    """Forward cost of all waves, in passes that stop at the highest analysed layer; 1 without a budget."""
    depths = [layers[-1] + 1 for layers in groups]
    return sum(depths) / max(depths, default=1)


def extraction_rounds(settings: Settings) -> int:
    """How many extraction jobs of one wave run one after the other on `plan.gpus` accelerators."""
    return -(-settings.shards // settings.plan.gpus)


def extraction_busy(settings: Settings) -> float:
    """Accelerators that work on average while a wave is extracted; its jobs taken as equally long."""
    return settings.shards / extraction_rounds(settings)


def training_busy(settings: Settings, groups: Sequence[Sequence[int]]) -> float:
    """Accelerators that work on average while SAEs train; their jobs taken as equally long."""
    if settings.sae.shared:
        return 1.0
    return len(settings.layers) / training_rounds(groups, settings.plan.gpus) if groups else 0.0


def summary(settings: Settings, groups: Sequence[Sequence[int]]) -> str:
    """The plan in three lines, for the screen of a dry run."""
    gpus, layer = settings.plan.gpus, layer_bytes(settings)
    return (
        f"Plan of {settings.model}: {described_waves(groups)}; {described_peak(settings, groups)}\n"
        f"  a layer in {settings.activations.storage} takes {amount(layer)}, all layers "
        f"{amount(layer * len(settings.layers))}; forward cost {described_cost(groups)}\n"
        f"  GPUs busy: {extraction_busy(settings):.1f} of {gpus} in extraction, "
        f"{training_busy(settings, groups):.1f} of {gpus} in SAE training\n"
    )


def described_waves(groups: Sequence[Sequence[int]]) -> str:
    """As `24 layers in 8 waves of 3`."""
    sizes = [len(layers) for layers in groups]
    layers = counted(sum(sizes), "layer")
    if len(sizes) == 1:
        return f"{layers} in 1 wave"
    return f"{layers} in {len(sizes)} waves of {'' if min(sizes) == max(sizes) else 'up to '}{max(sizes)}"


def counted(number: int, noun: str) -> str:
    """As `1 layer` or `24 layers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def described_peak(settings: Settings, groups: Sequence[Sequence[int]]) -> str:
    """As `at most 61.6 GB of training activations at once and 5.05 GB held-out, budget 70 GB`."""
    budget = settings.activations.disk_budget_gb
    promise = f"budget {budget:g} GB" if budget else "no budget"
    peak, heldout = peak_bytes(settings, groups), heldout_bytes(settings)
    return f"at most {amount(peak)} of training activations at once and {amount(heldout)} held-out, {promise}"


def described_cost(groups: Sequence[Sequence[int]]) -> str:
    """As `4.5 passes instead of 1`."""
    return f"{forward_passes(groups):.1f} passes instead of 1" if len(groups) > 1 else "1 pass"


def pass_name(layers: Sequence[int]) -> str:
    """How logs and benchmarks name one forward pass: by its lowest and highest layer, whichever wave that is."""
    return f"layers_{layers[0]:02d}_to_{layers[-1]:02d}"


def rule_names(models: Sequence[str]) -> dict[str, str]:
    """Each model's name as part of a rule's name: `_` for what no identifier holds, one more where two would be equal."""
    names: dict[str, str] = {}
    for model in models:
        name = re.sub(r"\W", "_", model)
        while name in names.values():
            name += "_"
        names[model] = name
    return names


def require_room(folder: Path, own: Sequence[Path], planned: int, budget: int) -> None:
    """Refuse to write where stores of other layers leave no room: the last word on a disk budget.

    Waves keep it by waiting for each other; but Snakemake can be told to train again what is finished, all at once.

    Args:
        folder: all training activations of the model.
        own: the stores that the job is about to write or go on with; what stands of them does not count.
        planned: bytes that they will take. budget: bytes.
    Raises:
        UserError: with what stands, what is needed, and what to do.
    """
    mine = {
        path.with_suffix(ending) for path in own for ending in (".zarr", ".json", ".zarr.partial")
    }
    used: dict[str, int] = {}
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if Path(place) / name not in mine]
        for path in (Path(place) / name for name in names):
            with contextlib.suppress(FileNotFoundError):  # just removed or renamed
                layer = path.relative_to(folder).parts[0]
                used[layer] = used.get(layer, 0) + (0 if path in mine else path.stat().st_size)
    if sum(used.values()) + planned > budget:
        others = ", ".join(
            f"{layer} {amount(size)}" for layer, size in sorted(used.items()) if size
        )
        raise UserError(
            f"activations.disk_budget_gb: {folder} holds {amount(sum(used.values()))} of other layers or jobs ({others}), this job "
            f"needs {amount(planned)}, the budget leaves {amount(budget)} for training activations. Once their SAEs are trained they "
            "are removed: run again then; or raise the budget. Which of them no SAE waits for any more, and how to delete those, says: "
            "snakemake --profile YOURS verify_activations"
        )


def pretrained_locally(settings: Settings) -> dict[int, pretrained.Pretrained]:
    """The pretrained autoencoder of every layer, where they lie in a local folder; else none.

    Raises:
        UserError: one is missing, does not fit layer, site or width, or was trained on another model.
    """
    assert settings.dimensions is not None
    sae, site, width = settings.sae, settings.activations.site, settings.dimensions.d_model
    if sae.trained or sae.revision:
        return {}
    found = {
        layer: pretrained.read(pretrained.locate(sae, layer, site), layer, site, width)
        for layer in settings.layers
    }
    for each in found.values():
        pretrained.require_model(each, settings.model, settings.source)
    return found


def check_sources(settings: Mapping[str, Settings], results: Path) -> None:
    """Check what the settings name: corpus, model directory, pretrained SAEs, and the model of finished results.

    Inputs that would be longer than the model takes are refused where its config.json or its settings state the limit.

    Raises:
        UserError: naming the key and the remedy.
    """
    for model, wanted in settings.items():
        with reachable("corpus.source"):
            _check_corpus(wanted)
        with reachable("source.id"):
            if wanted.source.kind == "directory" and (
                reason := file_kinds.not_a_folder(Path(wanted.source.id))
            ):
                raise UserError(f"source.id: {reason}")
        for key in ("texts", "context"):
            path = getattr(wanted.score, key)
            with reachable(f"score.{key}"):
                if path and (
                    reason := file_kinds.not_a_file(Path(path)) or file_kinds.refusal(Path(path))
                ):
                    raise UserError(f"score.{key}: {reason}")
        with reachable("sae.source"):
            pretrained_locally(wanted)
        manifest = results / model / "model" / "source.json"
        if manifest.exists():
            _check_weights(model, wanted, files.read_json(manifest))
        _check_lengths(model, wanted, _known_limit(model, wanted, results))


def _check_corpus(wanted: Settings) -> None:
    """Check that the corpus can be read, and of a .jsonl file that its first row has the text column."""
    source, column = wanted.corpus.source, wanted.corpus.text_column
    if reason := corpus_sources.refusal(source):
        raise UserError(reason)
    if (
        corpus_sources.is_file(source)
        and (row := next(rows.rows_ahead(Path(source), "corpus.source"), None)) is not None
    ):
        cells.require_columns(row, [("corpus.text_column", column)], source)


def _known_limit(model: str, wanted: Settings, results: Path) -> int:
    """Longest input of a model in tokens, from its settings, its directory or its fetched config.json; else sys.maxsize.

    Raises:
        UserError: the model's directory holds a config.json that cannot be read or states other sizes than the settings.
    """
    assert wanted.dimensions is not None
    limits = [wanted.dimensions.max_position_embeddings or sys.maxsize]
    fetched = results / model / "model" / "config.json"
    if fetched.is_file():
        with contextlib.suppress(UserError):  # damaged: its job makes it again
            limits.append(model_sizes.read_limit(fetched, "source.id"))
    own = Path(wanted.source.id) / "config.json"
    if wanted.source.kind == "directory" and own.is_file():
        sizes = model_sizes.read_sizes(own, "source.id")
        for key in ("n_layers", "d_model"):
            if (said := getattr(wanted.dimensions, key)) != (found := getattr(sizes, key)):
                raise UserError(
                    f"dimensions.{key}: the settings say {said}, {own} says {found}; set it to {found}"
                )
        limits.append(sizes.max_context)
    return min(limits)


def _check_lengths(model: str, wanted: Settings, limit: int) -> None:
    """Check the lengths in the settings against the longest input of the model, all in tokens."""
    model_sizes.require_context(wanted.corpus.context, limit, model)
    if wanted.generation.max_new_tokens >= limit:
        raise UserError(
            f"generation.max_new_tokens: {wanted.generation.max_new_tokens} tokens leave no room for a prompt in the "
            f"{limit} that {model} takes; set it well below {limit}"
        )


def _check_weights(model: str, wanted: Settings, found: Mapping[str, str]) -> None:
    source = wanted.source
    if source.kind == "directory":
        same = found.get("source_sha256") == records.model_digest(Path(source.id))
    else:
        same = (found.get("kind"), found.get("id")) == (source.kind, source.id)
        same = same and source.revision in (None, found.get("revision"))
    if not same:
        raise UserError(
            f"results/{model} was made with {found.get('kind')} {found.get('id')} {found.get('revision') or ''}, now "
            f"{source.kind} {source.id} {source.revision or ''} holds other weights, another configuration or another "
            f"tokenizer. Give that model a name of its own (model=NAME model_path=DIRECTORY, or a new file in config/models), or move results/{model} away"
        )
