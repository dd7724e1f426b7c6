"""Paths in the results of a finished run."""

from collections.abc import Sequence
from pathlib import Path

from ghosttrack.detection.run import Files


def layers_of(run: Path) -> list[int]:
    """The layers for which a run has SAEs, ascending."""
    return sorted(int(path.name.removeprefix("layer_")) for path in (run / "saes").glob("layer_*"))


def detection_files(
    folder: Path, run: Path, layers: Sequence[int], signals: Sequence[Path] = ()
) -> Files:
    """Files that the detectors of a data set read.

    Args:
        folder: the examples of the data set.
        run: results of the run, with its SAEs.
        signals: tables of track metrics, if any.
    """
    return Files(
        [folder / f"layer_{layer:02d}.zarr" for layer in layers],
        [folder / f"layer_{layer:02d}.json" for layer in layers],
        [run / "saes" / f"layer_{layer:02d}" / "sae_weights.safetensors" for layer in layers],
        folder / "background.npz",
        folder / "prompts.npz",
        list(signals),
    )
