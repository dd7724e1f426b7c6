"""Paths in the results of a finished run."""

from collections.abc import Sequence
from pathlib import Path

from ghosttrack.detection.run import DatasetFiles


def layers_of(run: Path) -> list[int]:
    """The layers for which a run has SAEs, ascending."""
    return sorted(int(path.name.removeprefix("layer_")) for path in (run / "saes").glob("layer_*"))


def detection_files(
    folder: Path, run: Path, layers: Sequence[int], track_metrics: Sequence[Path] = ()
) -> DatasetFiles:
    """Files that the detectors of a data set read.

    Args:
        folder: examples of the data set.
        run: results with the autoencoders of `layers`.
    """
    return DatasetFiles(
        [folder / f"layer_{layer:02d}.zarr" for layer in layers],
        [folder / f"layer_{layer:02d}.json" for layer in layers],
        [run / "saes" / f"layer_{layer:02d}" / "sae_weights.safetensors" for layer in layers],
        folder / "background.npz",
        folder / "prompts.npz",
        list(track_metrics),
    )
