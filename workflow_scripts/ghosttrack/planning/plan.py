"""The plan before any job runs: disk use, waves under a disk budget, and checks of the inputs.

The Snakefile imports this module: it must not import numpy, torch, zarr or pandas.
"""

import contextlib
import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ghosttrack.activations.layout import CHUNK_ROWS, CHUNKS_PER_SHARD
from ghosttrack.errors import UserError
from ghosttrack.inputs import (
    cells,
    corpus_sources,
    file_kinds,
    model_sizes,
    pretrained,
    rows,
    saelens,
)
from ghosttrack.planning import external_sources
from ghosttrack.planning.configuration import reachable
from ghosttrack.runtime import files, records
from ghosttrack.runtime.progress import amount
from ghosttrack.settings import Settings
from ghosttrack.settings.names import library_name

# Bytes of the crc32c after every chunk and every index (zarr v3, sharding_indexed).
CRC_BYTES = 4
# Bytes of the index at the end of a shard file: offset and size of each chunk, 8 bytes each.
INDEX_BYTES = 16 * CHUNKS_PER_SHARD + CRC_BYTES
# int8s: bytes per chunk for the mean and scale of a channel, and per row for its scale (float32).
CHANNEL_BYTES, ROW_SCALE_BYTES = 8, 4
# int8s: at most one row in this many is stored exactly (float16 and an 8-byte index), not counting
# the first row of each context.
OUTLIER_ONE_IN = 100
# While a store is written, each finished shard file has a record: norms of the rows in float32, the
# small arrays, and 2 kB.
NORM_BYTES, RECORD_BYTES = 4, 2000
# Metadata of zarr, Snakemake's timestamp and the manifest: 3 to 4 kB, up to four times as much on
# disk, because file systems allocate whole blocks.
STORE_EXTRA_BYTES = 16_000
# A commit of the hub, or the digest of a wheel's weights: it names one content for ever.
_WHOLE_REVISION = re.compile(r"[0-9a-f]{40}|sha256:[0-9a-f]{64}")


def store_bytes(rows: int, d_model: int, storage: str, context: int) -> int:
    """Maximum disk use of one store, its manifest and its write records, in bytes.

    For `int8s` this is an upper bound: the number of exactly stored rows (massive activations)
    depends on the data. It assumes the first row of each `context`, an attention sink, and one in a
    hundred others.
    """
    chunks = -(-rows // CHUNK_ROWS)
    shards = -(-chunks // CHUNKS_PER_SHARD)
    # The last chunk has full size. One byte per row is its massive-activation flag.
    total = shards * (INDEX_BYTES + RECORD_BYTES) + rows * (1 + NORM_BYTES) + STORE_EXTRA_BYTES
    if storage == "fp16":
        return total + chunks * (CHUNK_ROWS * d_model * 2 + CRC_BYTES)
    outliers = (-(-rows // OUTLIER_ONE_IN) + -(-rows // context)) * (2 * d_model + 8)
    small = chunks * d_model * CHANNEL_BYTES + rows * ROW_SCALE_BYTES + outliers
    # The small arrays are in the store and in the records.
    return total + chunks * (CHUNK_ROWS * d_model + CRC_BYTES) + 2 * small


def row_bytes(settings: Settings) -> int:
    """Bytes of one stored activation, without checksums and exact rows."""
    assert settings.dimensions is not None
    width = settings.dimensions.d_model
    return 2 * width if settings.activations.storage == "fp16" else width + ROW_SCALE_BYTES


def layer_bytes(settings: Settings) -> int:
    """Disk use of one layer's training activations, over all extraction jobs, in bytes."""
    assert settings.dimensions is not None
    context, storage = settings.corpus.context, settings.activations.storage
    full, rest = divmod(settings.contexts, settings.contexts_per_shard)
    width = settings.dimensions.d_model
    total = full * store_bytes(settings.contexts_per_shard * context, width, storage, context)
    return total + (store_bytes(rest * context, width, storage, context) if rest else 0)


def heldout_bytes(settings: Settings) -> int:
    """Disk use of the held-out stores of all layers, which are kept, in bytes."""
    assert settings.dimensions is not None
    rows = -(-settings.corpus.heldout_tokens // settings.corpus.context) * settings.corpus.context
    return len(settings.layers) * store_bytes(
        rows, settings.dimensions.d_model, "fp16", settings.corpus.context
    )


def waves(settings: Settings) -> list[list[int]]:
    """Groups of analysed layers whose training activations fit the disk budget together.

    One forward pass extracts a wave. The SAEs of a wave train in parallel, and the next wave waits
    for them. The held-out stores, which are kept, are subtracted from the budget. Of the wave sizes
    that fit, the one with the fewest rounds of training on `plan.gpus` accelerators is chosen; of
    those, the one with the fewest forward passes; of those, the smallest. For example, if six
    layers fit, four accelerators train 24 layers in 6 rounds with waves of four, but in 8 rounds
    with waves of six. The warm-start layer is in the first wave. Pretrained SAEs need no waves.

    Raises:
        UserError: the budget is too small for one layer, or for all layers of a shared dictionary;
            the message gives a sufficient budget.
    """
    layers, budget = settings.layers, settings.activations.disk_budget_gb
    if not settings.sae.trained:
        return []
    if budget is None:
        return [layers]
    if (first := settings.warm_start_layer) is not None:
        layers = [first, *(layer for layer in layers if layer != first)]
    layer, heldout = layer_bytes(settings), heldout_bytes(settings)
    most = max(0, int((budget * 1e9 - heldout) // layer))
    if most < 1 and not settings.sae.shared:
        least = (
            math.ceil((layer + heldout) / 1e8) / 10
            if layer + heldout > 1e8
            else math.ceil((layer + heldout) / 1e5) / 1e4
        )
        raise UserError(
            f"activations.disk_budget_gb: {budget:g} GB is too small for one layer of "
            f"{settings.model}: {settings.corpus.tokens:,} tokens of one layer take "
            f"{amount(layer)}, the held-out text of all layers takes {amount(heldout)}. Raise it "
            f"to at least {least:g}, or lower corpus.tokens"
        )
    if settings.sae.shared:
        if most >= len(layers):
            return [layers]
        raise UserError(
            f"activations.disk_budget_gb: {budget:g} GB is enough for {counted(most, 'layer')} of "
            f"{len(layers)}, but sae.dictionaries: shared trains on all layers at once. Raise it "
            f"to at least {math.ceil((len(layers) * layer + heldout) / 1e8) / 10:g}, lower "
            "corpus.tokens, or change sae.dictionaries"
        )
    choices = [_split(layers, size) for size in range(1, min(most, len(layers)) + 1)]
    return min(choices, key=lambda waves: (training_rounds(waves, settings.plan.gpus), len(waves)))


def _split(layers: list[int], size: int) -> list[list[int]]:
    return [sorted(layers[start : start + size]) for start in range(0, len(layers), size)]


def training_digest(settings: Settings, codes: Sequence[str]) -> str:
    """Hex SHA-256 over the settings that determine a model's SAEs, and over code digests."""
    chosen = settings.model_dump(
        mode="json",
        include={
            "seed": True,
            "source": True,
            "inference": True,
            "corpus": True,
            "activations": {"site", "storage", "rows_per_job", "min_scale"},
            "sae": True,
        },
    )
    return files.sha256_json([chosen, *codes])


def has_training_digest(folder: Path, digest: str) -> bool:
    """Whether `folder` has a finished SAE that was trained with the training digest `digest`."""
    if not (folder / "sae_weights.safetensors").exists() or not (folder / "cfg.json").exists():
        return False
    try:
        cfg = json.loads((folder / "cfg.json").read_bytes())
        return bool(cfg["metadata"]["training_digest"] == digest)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):  # its job writes it again
        return False


def layers_waited_for(
    missing: Sequence[Sequence[int]], may_start_at_once: Callable[[int], bool]
) -> list[int]:
    """Layers whose SAEs must be trained before the last wave is extracted.

    The disk has room for one wave. The layers of the nearest earlier wave come first. A layer that
    must itself be extracted already waits for the waves before it, so the search ends at its wave:
    to name all earlier layers in each of thousands of jobs would take most of the planning time.

    Args:
        missing: layers without an SAE in each wave, in order; the last wave is the one that waits.
        may_start_at_once: whether the training of a layer needs no further extraction.
    """
    waited_for: list[int] = []
    if not missing or not missing[-1]:
        return waited_for
    for layers in reversed(missing[:-1]):
        waited_for += layers
        if not all(may_start_at_once(layer) for layer in layers):
            break
    return waited_for


def training_rounds(groups: Sequence[Sequence[int]], gpus: int) -> int:
    """Rounds of SAE training, with `gpus` SAEs in parallel and one wave after another."""
    return sum(-(-len(layers) // gpus) for layers in groups)


def peak_bytes(settings: Settings, groups: Sequence[Sequence[int]]) -> int:
    """Peak disk use of training activations, in bytes."""
    return max((len(layers) for layers in groups), default=0) * layer_bytes(settings)


def forward_passes(groups: Sequence[Sequence[int]]) -> float:
    """Cost of all forward passes, relative to one pass up to the highest analysed layer."""
    depths = [layers[-1] + 1 for layers in groups]
    return sum(depths) / max(depths, default=1)


def extraction_rounds(settings: Settings) -> int:
    """Rounds of extraction jobs in one wave, with as many jobs in parallel as there are GPUs for."""
    return -(-settings.shards // max(1, settings.plan.gpus // settings.plan.gpus_per_model))


def extraction_busy(settings: Settings) -> float:
    """Mean number of busy accelerators during extraction, if all jobs take equally long."""
    return settings.shards * settings.plan.gpus_per_model / extraction_rounds(settings)


def training_busy(settings: Settings, groups: Sequence[Sequence[int]]) -> float:
    """Mean number of busy accelerators during SAE training, if all jobs take equally long."""
    if settings.sae.shared:
        return 1.0
    return len(settings.layers) / training_rounds(groups, settings.plan.gpus) if groups else 0.0


def summary(settings: Settings, groups: Sequence[Sequence[int]]) -> str:
    """The plan in three lines, printed by a dry run."""
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
    most = max(sizes)
    return f"{layers} in {len(sizes)} waves of {'' if min(sizes) == most else 'up to '}{most}"


def counted(number: int, noun: str) -> str:
    """As `1 layer` or `24 layers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def described_peak(settings: Settings, groups: Sequence[Sequence[int]]) -> str:
    """As `at most 61.6 GB of training activations at once and 5.05 GB held-out, budget 70 GB`."""
    budget = settings.activations.disk_budget_gb
    promise = f"budget {budget:g} GB" if budget else "no budget"
    peak, heldout = peak_bytes(settings, groups), heldout_bytes(settings)
    return (
        f"at most {amount(peak)} of training activations at once and {amount(heldout)} held-out, "
        f"{promise}"
    )


def described_cost(groups: Sequence[Sequence[int]]) -> str:
    """As `4.5 passes instead of 1`."""
    return f"{forward_passes(groups):.1f} passes instead of 1" if len(groups) > 1 else "1 pass"


def pass_name(layers: Sequence[int]) -> str:
    """Name of a forward pass in logs and benchmarks, from its lowest and highest layer."""
    return f"layers_{layers[0]:02d}_to_{layers[-1]:02d}"


def rule_names(models: Sequence[str]) -> dict[str, str]:
    """Models in rule names: `_` replaces special characters and is appended to duplicates."""
    names: dict[str, str] = {}
    for model in models:
        name = re.sub(r"\W", "_", model)
        while name in names.values():
            name += "_"
        names[model] = name
    return names


def require_room(folder: Path, own: Sequence[Path], planned: int, budget: int) -> None:
    """Refuse to write stores that do not fit the disk budget beside the stores of other layers.

    Waves keep the budget by waiting for each other, but a user can make Snakemake retrain all
    layers at once.

    Args:
        folder: all training activations of the model.
        own: stores that the job writes or resumes; files of these stores are not counted.
        planned: bytes of these stores when complete. budget: bytes.
    Raises:
        UserError: with the disk use, the need, and the remedy.
    """
    own_paths = {
        path.with_suffix(ending) for path in own for ending in (".zarr", ".json", ".zarr.partial")
    }
    used: dict[str, int] = {}
    for directory, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if Path(directory) / name not in own_paths]
        for path in (Path(directory) / name for name in names):
            with contextlib.suppress(FileNotFoundError):  # just removed or renamed
                layer = path.relative_to(folder).parts[0]
                used[layer] = used.get(layer, 0) + (0 if path in own_paths else path.stat().st_size)
    if sum(used.values()) + planned > budget:
        others = ", ".join(
            f"{layer} {amount(size)}" for layer, size in sorted(used.items()) if size
        )
        raise UserError(
            f"activations.disk_budget_gb: {folder} has {amount(sum(used.values()))} of other "
            f"layers or jobs ({others}), this job needs {amount(planned)}, and the budget leaves "
            f"{amount(budget)} for training activations. They are deleted once their SAEs are "
            "trained: run again after that, or raise the budget. To list stores that no SAE "
            "needs any more, and the command that deletes them, run: snakemake --profile YOURS "
            "verify_activations"
        )


def pretrained_locally(settings: Settings) -> dict[int, pretrained.Pretrained]:
    """The pretrained SAE of every layer, if they are in a local folder; otherwise {}.

    Raises:
        UserError: an SAE is missing, has another layer, site or width, or was trained on another
            model.
    """
    assert settings.dimensions is not None
    sae, site, width = settings.sae, settings.activations.site, settings.dimensions.d_model
    if not sae.local:
        return {}
    saes = {
        layer: pretrained.read(pretrained.locate(sae, layer, site), layer, site, width)
        for layer in settings.layers
    }
    for found in saes.values():
        pretrained.require_model(found, settings.model, settings.source)
    return saes


def check_sources(
    settings: Mapping[str, Settings], results: Path, *, own_environments: bool = False
) -> None:
    """Check the corpus, model, user texts and pretrained SAEs, and the model of earlier results.

    Inputs longer than the model's maximum are refused if its config.json or the settings state it.

    Args:
        settings: by model.
        results: the results folder.
        own_environments: whether jobs run in conda environments or containers, so that a library
            may be missing here.
    Raises:
        UserError: with the key and the remedy.
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
        external_sources.check(wanted.external)
        with reachable("sae.source"):
            pretrained_locally(wanted)
        if wanted.sae.from_library:
            _check_library_saes(wanted, results / model, own_environments)
        manifest = results / model / "model" / "source.json"
        if manifest.exists():
            _check_weights(model, wanted, manifest)
        _check_lengths(model, wanted, _known_limit(model, wanted, results))


def _check_library_saes(wanted: Settings, results: Path, own_environments: bool) -> None:
    """Check the names of SAEs that the SAELens library loads, unless they are fetched already."""
    saelens.require_pattern(wanted.sae, wanted.layers)
    if all(
        (results / "saes" / f"layer_{layer:02d}" / "cfg.json").exists() for layer in wanted.layers
    ):
        return
    if (registry := saelens.registry()) is None:
        if own_environments:
            return
        raise saelens.missing()
    if not registry.is_file():  # another version of the library; the job has the message
        return
    for layer in wanted.layers:
        source = wanted.sae.source_of(layer)
        entry = saelens.look_up(library_name(source), registry)
        pretrained.require_name(source, entry.model, wanted.model, wanted.source, saelens.RENAME)


def _check_corpus(wanted: Settings) -> None:
    """Check that the corpus can be read; the first row of a .jsonl file needs the text column."""
    source, column = wanted.corpus.source, wanted.corpus.text_column
    if reason := corpus_sources.refusal(source):
        raise UserError(reason)
    if (
        corpus_sources.is_file(source)
        and (row := next(rows.rows_ahead(Path(source), "corpus.source"), None)) is not None
    ):
        cells.require_columns(row, [("corpus.text_column", column)], source)


def _known_limit(model: str, wanted: Settings, results: Path) -> int:
    """Maximum input length of a model in tokens, or sys.maxsize where it is not known.

    It comes from the settings, the model's directory or the config.json in `results`.

    Raises:
        UserError: config.json in the model's directory cannot be read, or differs from the
            settings.
    """
    assert wanted.dimensions is not None
    limits = [wanted.dimensions.max_position_embeddings or sys.maxsize]
    fetched = results / model / "model" / "config.json"
    if fetched.is_file():
        with contextlib.suppress(UserError):  # damaged: its job writes it again
            limits.append(model_sizes.read_limit(fetched, "source.id"))
    own = Path(wanted.source.id) / "config.json"
    if wanted.source.kind == "directory" and own.is_file():
        sizes = model_sizes.read_sizes(own, "source.id")
        for key in ("n_layers", "d_model"):
            set_to, actual = getattr(wanted.dimensions, key), getattr(sizes, key)
            if set_to != actual:
                raise UserError(
                    f"dimensions.{key}: {set_to} in the settings, {actual} in {own}; set it to "
                    f"{actual}"
                )
        limits.append(sizes.max_context)
    return min(limits)


def _check_lengths(model: str, wanted: Settings, limit: int) -> None:
    """Check lengths in the settings against the model's maximum input length `limit`, in tokens."""
    model_sizes.require_context(wanted.corpus.context, limit, model)
    if wanted.generation.max_new_tokens >= limit:
        raise UserError(
            f"generation.max_new_tokens: {wanted.generation.max_new_tokens} tokens leave no room "
            f"for a prompt, because the maximum input of {model} is {limit} tokens; set it well "
            f"below {limit}"
        )


def _is_at(asked: str | None, found: str | None, manifest: Path) -> bool:
    """Whether a model at the commit `found` was fetched at the revision `asked`.

    The hub turned a branch, a tag or a short commit into `found`. The record of the manifest has what
    was asked then; without a record, the job that fetches the model runs again.
    """
    if asked in (None, found):
        return True
    if _WHOLE_REVISION.fullmatch(str(asked)):
        return False
    record = records.read(manifest)
    return record is None or dict(record.params.get("source") or {}).get("revision") == asked


def _check_weights(model: str, wanted: Settings, path: Path) -> None:
    """Check that earlier results of `model`, with the manifest `path`, have the weights in the settings."""
    source, manifest = wanted.source, files.read_object(path)
    if source.kind == "directory":
        same = manifest.get("source_sha256") == records.model_digest(Path(source.id))
    else:
        same = (manifest.get("kind"), manifest.get("id")) == (source.kind, source.id)
        same = same and _is_at(source.revision, manifest.get("revision"), path)
    if not same:
        raise UserError(
            f"results/{model} was made with {manifest.get('kind')} {manifest.get('id')} "
            f"{manifest.get('revision') or ''}, but {source.kind} {source.id} "
            f"{source.revision or ''} has other weights, another configuration or another "
            "tokenizer. Use another name for that model (model=NAME model_path=DIRECTORY, or a "
            f"new file in config/models), or move results/{model} away"
        )
