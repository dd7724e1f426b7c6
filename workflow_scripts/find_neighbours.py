"""Find each feature's decoder neighbours in the following layers, and the gate that chance sets."""

import logging
from pathlib import Path

import torch

from ghosttrack import job, sae
from ghosttrack.settings import TrackingSettings
from ghosttrack.tracks.neighbours import compare, save

log = logging.getLogger("ghosttrack")


def main(
    *, weights: list[Path], neighbours: Path, layer: int, tracking: TrackingSettings, seed: int, threads: int
) -> None:
    """Compare the decoder of a layer with those of the next one and of the one after, and write the lists.

    `weights`: of this layer, the next analysed one, and the one after if there is one.
    """
    torch.set_num_threads(threads)
    layers = [layer, *(int(path.parent.name.removeprefix("layer_")) for path in weights[1:3])]
    first, *others = (sae.load(path.parent).W_dec for path in weights[:3])
    found = []
    for upper, decoder in zip(layers[1:], others, strict=True):
        pair = compare(first, decoder, tracking.neighbours, tracking.gate_quantile, [seed, layer, upper])
        found.append(pair)
        log.info(
            "layers %d to %d: gate %.3f, median best match %.3f (null %.3f), %.1f %% of features above the gate, %.1f %% mutual%s",
            layer, upper, pair.gate, float(torch.from_numpy(pair.best).median()),
            float(torch.from_numpy(pair.null_best).median()), 100 * (pair.best > pair.gate).mean(),
            100 * pair.mutual.mean(), "" if pair.covered else "; lists end above the gate, raise tracking.neighbours",
        )  # fmt: skip
    save(neighbours, layers, found)


if __name__ == "__main__":
    job.run(main, globals())
