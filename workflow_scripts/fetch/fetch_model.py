"""Fetch a model: weights in one safetensors file, configuration and fast tokenizer."""

from pathlib import Path

from ghosttrack.inputs import fetching
from ghosttrack.runtime import job
from ghosttrack.settings import DimensionSettings, SourceSettings


def main(
    *,
    manifest: Path,
    weights: Path,
    config: Path,
    tokenizer: Path,
    source: SourceSettings,
    dimensions: DimensionSettings,
    seed: int,
) -> None:
    """Write source.json, model.safetensors, config.json and tokenizer.json to one directory."""
    expected = [manifest, weights, config, tokenizer]
    assert [file.name for file in expected] == [
        "source.json",
        "model.safetensors",
        "config.json",
        "tokenizer.json",
    ]
    assert len({file.parent for file in expected}) == 1
    fetching.fetch(source, manifest.parent, dimensions=dimensions, seed=seed)


if __name__ == "__main__":
    job.run(main, globals())
