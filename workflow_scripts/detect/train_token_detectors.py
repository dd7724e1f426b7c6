"""Train detectors of single tokens on the answers of a data set with hallucinated spans."""

from pathlib import Path

from threadpoolctl import threadpool_limits

from ghosttrack.activations import lookback as attention
from ghosttrack.detection import token_detectors
from ghosttrack.runtime import files, job, tables


def main(
    *,
    examples: Path,
    tokens: Path,
    audited: Path,
    without_context: list[Path],
    lookback: Path,
    stores: list[Path],
    manifests: list[Path],
    weights: list[Path],
    scores: Path,
    choices: Path,
    dataset: str,
    layers: list[int],
    threads: int = 1,
) -> None:
    """Write the out-of-fold scores of all answer tokens, and the choices of each fold.

    `stores`, `manifests` and `weights` are in the order of `layers`. `without_context`: the file of
    a data set with contexts, or empty. `lookback`: attention to what precedes the answers.
    """
    token_table = tables.read_parquet(tokens)
    audit = tables.read_parquet(audited)
    inputs = token_detectors.read_inputs(
        dataset,
        tables.read_parquet(examples),
        token_table,
        audit,
        tables.read_parquet(without_context[0]) if without_context else None,
        lambda count: attention.read(lookback, count).ratio,
    )
    with threadpool_limits(threads):
        if (inputs.fold < 0).any():
            trained = token_detectors.not_run(inputs)
        else:
            trained = token_detectors.train(
                inputs,
                token_detectors.layer_inputs(
                    dataset, inputs.rows, len(token_table), layers, stores, manifests, weights
                ),
            )
    with files.atomic_write(scores, "wb") as stream:
        trained.scores.assign(dataset=dataset).to_parquet(stream, index=False)
    with files.atomic_write(choices) as stream:
        tables.write_csv(trained.choices.assign(dataset=dataset), stream)


if __name__ == "__main__":
    job.run(main, globals())
