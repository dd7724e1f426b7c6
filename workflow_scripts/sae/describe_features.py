"""Describe every feature of one layer: where it fires, what it promotes, similar features."""

import logging
from pathlib import Path

import numpy as np
import torch

from ghosttrack import sae
from ghosttrack.activations import extraction, limits
from ghosttrack.errors import UserError
from ghosttrack.inputs import corpus, models
from ghosttrack.inputs.token_text import TokenText
from ghosttrack.inputs.unembedding import read_unembedding
from ghosttrack.runtime import files, job
from ghosttrack.sae.features import describe, write

log = logging.getLogger("ghosttrack")


def main(
    *,
    weights: Path,
    cfg: Path,
    store: Path,
    manifest: Path,
    heldout: Path,
    heldout_manifest: Path,
    model_weights: Path,
    check: Path,
    features: Path,
    layer: int,
    threads: int,
) -> None:
    """Read the SAE, held-out rows with their tokens, and the unembedding; write the dictionary."""
    torch.set_num_threads(threads)
    directory = model_weights.parent
    tokens = corpus.read_tokens(heldout, heldout_manifest)
    if files.sha256_file(directory / "tokenizer.json") != tokens.manifest.get("tokenizer_sha256"):
        raise UserError(
            f"{heldout} was not made with {directory / 'tokenizer.json'} (its SHA-256 is not that "
            f"in {heldout_manifest}): delete {heldout.parent} and run again"
        )
    rows = extraction.open_packed(store, manifest, layer, directory, tokens.tokens)
    text = TokenText(models.load_tokenizer(directory))
    unembedding = read_unembedding(directory) if limits.read(check).named else None
    if unembedding is None:
        log.warning(
            "final norm and unembedding do not rank the tokens as the model does: features have no "
            "output tokens"
        )
    table = describe(sae.load_files(weights, cfg), rows, tokens, text, unembedding)
    origin = {
        key: rows.attributes[key] for key in ("layer", "weights_sha256", "tokens_sha256", "site")
    }
    write(table, features, {**origin, "rows": int((~rows.excluded).sum())})
    silent = int(np.sum(table["density"].to_numpy() == 0))
    log.info("layer %d: %d features, %d of them silent on held-out text", layer, len(table), silent)


if __name__ == "__main__":
    job.run(main, globals())
