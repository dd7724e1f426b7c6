"""Sizes that are known before a job runs: texts of data sets, parameters of a model.

The Snakefile imports this module: it must not import numpy, torch, zarr or pandas.
"""

import contextlib
import csv
import json
import math
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ghosttrack.errors import UserError
from ghosttrack.inputs import model_sizes
from ghosttrack.runtime import files
from ghosttrack.runtime.run_paths import RunPaths
from ghosttrack.settings import DatasetSettings, Settings

FACTS = Path(__file__).parents[1] / "data" / "facts"
# ASSUME: statements per row of an embedded fact table; 1.6 to 3.8 in the default data sets.
TEXTS_PER_FACT = 4
# Texts of the sources that are not local, without `max_examples`: HaluEval has two for each of
# 10,000 questions, TruthfulQA the answers to 817 questions. ASSUME: others.
TEXTS = {"halueval": 20_000, "truthfulqa": 6_000}
OTHER_TEXTS = 2000
# ASSUME: bytes of a text in a file whose rows are not counted: compressed, or above _COUNTED bytes.
_TEXT_BYTES, _COUNTED = 200, 64 * 2**20
# ASSUME: answer tokens of a statement about a fact, and of another text.
TOKENS_PER_STATEMENT, TOKENS_PER_TEXT = 2, 8
# Answer tokens of a text with hallucinated spans: 149 in RAGTruth QA.
TOKENS_PER_LONG_TEXT = 170
# Tokens of the longest text with its context: 2,100 in the summaries of RAGTruth. Also ASSUMEd for
# a file whose rows are not read here.
LONGEST_WITH_CONTEXT = 3000
# ASSUME: bytes per token of a long text.
_TOKEN_BYTES = 3
# Statements that factscore makes of a row: 27.
FACTS_PER_BIOGRAPHY = 30
# ASSUME: tokens that are read, relative to the tokens of the answer.
READ = {"answer": 1.0, "last": 0.5, "all": 5.0}
# Assumed vocabulary of a model whose settings and files do not give it, and that of random weights.
VOCABULARY, RANDOM_VOCABULARY = 100_000, 5_000
# There is a driver of NVIDIA's if this folder exists.
_DRIVER = Path("/proc/driver/nvidia")
# Bytes of a number in safetensors files, where a model runs in that data type on a GPU.
_BYTES = {"F32": 4, "BF16": 2, "F16": 2}
# Longest header of a safetensors file.
_HEADER = 100 * 2**20


class Texts(NamedTuple):
    """Size of a data set."""

    texts: int
    tokens: int  # of the texts, whose activations are stored
    longest: int = 0  # tokens of the longest text with its context; 0 without contexts
    marked: bool = False  # whether the answers have hallucinated spans


def known_texts(settings: Settings, name: str, dataset: DatasetSettings, results: Path) -> Texts:
    """Size of a data set: as stored in `results`, else estimated. A text has a stored token."""
    count, stored = texts(settings, dataset), stored_rows(settings.model, name, results)
    others = (_longest_text(settings, dataset), dataset.has_spans)
    if stored is None:
        return Texts(count, max(count, estimated_rows(settings, dataset)), *others)
    return Texts(min(count, stored), stored, *others)


def _longest_text(settings: Settings, dataset: DatasetSettings) -> int:
    """Estimated tokens of the longest text with its context, at most what the model reads."""
    if not dataset.has_contexts:
        return 0
    known = LONGEST_WITH_CONTEXT
    if dataset.source == "file" and dataset.path:
        known = _longest_row(Path(dataset.path).expanduser()) // _TOKEN_BYTES or known
    limit = settings.dimensions.max_position_embeddings if settings.dimensions else None
    return min(known, limit or known)


@cache
def _longest_row(path: Path) -> int:
    """Bytes of the longest row of a local file; 0 if it is not read here."""
    try:
        if path.stat().st_size > _COUNTED:
            return 0
        if path.suffix == ".jsonl":
            return max(map(len, path.read_bytes().splitlines()), default=0)
        if path.suffix in (".csv", ".tsv"):
            with path.open(encoding="utf-8", errors="replace", newline="") as stream:
                rows = csv.reader(stream, delimiter="\t" if path.suffix == ".tsv" else ",")
                return max((sum(len(cell.encode()) for cell in row) for row in rows), default=0)
    except (OSError, csv.Error):
        return 0
    return 0


def stored_rows(model: str, name: str, results: Path) -> int | None:
    """Rows of the activation stores of a data set, from a manifest; None without one."""
    manifest = RunPaths(results / model).example_activations(name) / "embedding.json"
    try:
        return int(files.read_object(manifest)["rows"])
    except (UserError, OSError, KeyError, TypeError, ValueError):
        return None


def estimated_rows(settings: Settings, dataset: DatasetSettings) -> int:
    """Estimated number of tokens of a data set whose activations are stored."""
    share = READ[settings.activations.positions]
    if dataset.mode == "generated":
        return round(texts(settings, dataset) * settings.generation.max_new_tokens * share)
    per_text = TOKENS_PER_STATEMENT if dataset.source == "facts" else TOKENS_PER_TEXT
    if dataset.has_spans:
        per_text = TOKENS_PER_LONG_TEXT
    return round(texts(settings, dataset) * per_text * share)


def texts(settings: Settings, dataset: DatasetSettings) -> int:
    """Estimated number of texts of a data set, at most its `max_examples`."""
    if dataset.mode == "generated":
        return min(
            settings.generation.questions, dataset.max_examples or settings.generation.questions
        )
    table = FACTS / f"{dataset.table}.csv"
    if dataset.source == "facts" and table.is_file():
        # A conflict set has two remarks for each statement.
        known = _lines(table) * TEXTS_PER_FACT * (2 if dataset.conflict else 1)
    elif dataset.path:
        known = _rows(Path(dataset.path).expanduser())
        if dataset.source == "factscore":
            known *= FACTS_PER_BIOGRAPHY
    else:
        known = TEXTS.get(dataset.source, dataset.max_examples or OTHER_TEXTS)
    return min(known, dataset.max_examples or known)


def _rows(path: Path) -> int:
    """Estimated rows of a local file; OTHER_TEXTS if it is not there."""
    try:
        size = path.stat().st_size
        if path.suffix in (".csv", ".tsv", ".jsonl") and size <= _COUNTED:
            return _lines(path)
    except OSError:
        return OTHER_TEXTS
    return max(1, size // _TEXT_BYTES)


@cache
def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n")


def fetched_width(settings: Settings, results: Path) -> int:
    """Most features of a pretrained SAE of a hub that is fetched already; 0 if there is none."""
    if settings.sae.trained or settings.sae.local:
        return 0
    paths = RunPaths(results / settings.model)
    widths = [0]
    for layer in settings.layers:
        with contextlib.suppress(UserError, OSError, KeyError, TypeError, ValueError):
            widths.append(int(files.read_object(paths.sae(layer) / "cfg.json")["d_sae"]))
    return max(widths)


class ModelNumbers(NamedTuple):
    """Sizes of a model."""

    vocabulary: int
    parameters: int | None  # None: not known
    stored: int = 4  # bytes of a parameter in the checkpoint
    transposed: bool = True  # whether dense layers are stored transposed, which loading mends


def model_numbers(settings: Settings, results: Path) -> ModelNumbers:
    """Vocabulary and number of parameters of a model.

    They come from the fetched model in `results`, from the model's directory, or from the settings.
    """
    folders = [results / settings.model / "model"]
    if settings.source.kind == "directory":
        folders.append(Path(settings.source.id))
    for folder in folders:
        if (known := _numbers(folder)) is not None:
            return known
    assert settings.dimensions is not None  # loaded settings always have it
    unknown = RANDOM_VOCABULARY if settings.source.kind == "random" else VOCABULARY
    return ModelNumbers(settings.dimensions.vocab_size or unknown, None)


_KNOWN: dict[Path, ModelNumbers] = {}


def _numbers(folder: Path) -> ModelNumbers | None:
    """Vocabulary and parameters of the model in a folder; None if it has no complete model."""
    if folder not in _KNOWN:
        found = checkpoint(sorted(folder.glob("*.safetensors")))
        try:
            sizes = model_sizes.read_sizes(folder / "config.json", "source.id")
        except UserError:
            return None
        if found is None or sizes.vocab_size is None:
            return None
        _KNOWN[folder] = ModelNumbers(sizes.vocab_size, *found, sizes.transposed)
    return _KNOWN[folder]


def checkpoint(weights: Sequence[Path]) -> tuple[int, int] | None:
    """Number of parameters in safetensors files, and bytes of one, from the files' headers.

    None without a file or if one is damaged.
    """
    sizes: Counter[int] = Counter()
    try:
        for path in weights:
            with path.open("rb") as stream:
                length = int.from_bytes(stream.read(8), "little")
                header = json.loads(stream.read(length)) if length <= _HEADER else {}
            for name, entry in header.items():
                if name != "__metadata__":
                    sizes[_BYTES.get(entry["dtype"], 4)] += math.prod(entry["shape"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    total = sum(sizes.values())
    return (total, sizes.most_common(1)[0][0]) if total else None


def uses_gpu(settings: Settings, cluster: bool) -> bool:
    """Whether jobs with an accelerator load the libraries of a GPU.

    On this machine they do so if it has a driver.
    """
    return settings.plan.device == "gpu" and (cluster or _DRIVER.exists())
