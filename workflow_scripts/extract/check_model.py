"""Check that a model is read correctly, and which fast ways of reading are exact."""

import gc
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from ghosttrack.activations import extraction, limits, model_check
from ghosttrack.activations.store import describe_layer
from ghosttrack.facts.statements import list_tables, load_table, sentence_of
from ghosttrack.inputs import model_precision, models
from ghosttrack.inputs.model_precision import FLOAT32, Precision
from ghosttrack.inputs.sites import Site
from ghosttrack.runtime import files, job, tables
from ghosttrack.runtime.allocator import keep_freed_memory
from ghosttrack.settings import DEFAULT_INFERENCE, InferenceSettings

log = logging.getLogger("ghosttrack")

# Sentences of each shipped fact table; together more tokens than the check reads.
SENTENCES = 30


def main(
    *,
    weights: Path,
    check: Path,
    table: Path,
    site: Site,
    min_scale: int,
    threads: int,
    inference: InferenceSettings = DEFAULT_INFERENCE,
    gpu: int = 1,
) -> None:
    """Write the limits and scales (model_check.json) and all comparisons (model_check.csv).

    A model that runs in another precision than float32 is checked in float32, too, if that fits
    into memory: rounding in half precision can hide a small error.
    """
    torch.set_num_threads(threads)
    keep_freed_memory()
    folder = weights.parent
    tokenizer = models.load_tokenizer(folder)
    facts = [fact for name in list_tables() for fact in load_table(name)[:SENTENCES]]
    text = " ".join(sentence_of(fact) for fact in facts)
    ids = np.array(
        tokenizer(text, add_special_tokens=False, verbose=False, split_special_tokens=True)[
            "input_ids"
        ],
        dtype=np.int64,
    )
    device = extraction.best_device()
    precision = model_precision.resolve(folder, device, inference)

    def checked(precision: Precision) -> model_check.ModelCheck:
        model = models.load_model(folder, device, precision, gpu)
        return model_check.check(model, ids, models.separator(tokenizer), site)

    result = checked(precision)
    exact, comparisons = result.limits, [(precision.name, one) for one in result.comparisons]
    if precision != FLOAT32:
        gc.collect()  # the model of the first check
        if device == "cuda":
            torch.cuda.empty_cache()
        if models.fits_in_float32(folder, device, gpu):
            reference = checked(FLOAT32)
            exact = exact.both(reference.limits)
            comparisons += [(FLOAT32.name, one) for one in reference.comparisons]
        else:
            log.warning(
                "the model does not fit into the GPUs in float32, so it was checked in %s alone, "
                "whose rounding can hide small errors",
                precision.name,
            )
    rows = pd.DataFrame(
        [{**one._asdict(), "precision": name, "exact": one.exact} for name, one in comparisons]
    ).drop(columns="allowed")
    with files.atomic_write(table) as stream:
        tables.write_csv(rows, stream)
    sublayers = (
        result.sublayers
        if isinstance(result.sublayers, str)
        else [sublayer._asdict() for sublayer in result.sublayers]
    )
    about: dict[str, Any] = {
        "limits": exact._asdict(),
        "precision": precision._asdict(),
        "sublayers": sublayers,
    }
    scales = model_check.scales(result.median_norms, min_scale)
    # Scales of 1 are not listed, so that the file of an ordinary model does not mention them.
    if listed := {limits.scale_key(layer): one for layer, one in scales.items() if one > 1}:
        about["scales"] = listed
    files.write_json(check, about)
    for layer, scale in scales.items():
        if scale > 1:
            log.info(
                "%s: median norm %s, stored in units of %d",
                describe_layer(layer, site),
                f"{result.median_norms[layer]:,.0f}",
                scale,
            )
    worst = rows[rows["exact"]][["hidden", "logprob"]].max()
    log.info(
        "in %s, packed sequences are exact up to %d tokens, padded batches up to %d; largest "
        "difference from the reference: %.1g of a hidden state's norm, %.1g nats",
        precision.name,
        exact.packed,
        exact.padded,
        worst["hidden"],
        worst["logprob"],
    )


if __name__ == "__main__":
    job.run(main, globals())
