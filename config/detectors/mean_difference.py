"""A detector class: the difference of the classes' mean activations in one layer.

Copy this file, change the two methods, and name the copy in the settings:

    external:
      classes: [{name: mine, source: 'config/detectors/mine.py:Mine', reads: [activations]}]
"""

import numpy as np
import numpy.typing as npt

from ghosttrack.detection.protocol import Examples


class MeanDifference:
    """Projection on the mean of hallucinated minus the mean of true texts, in a middle layer."""

    def fit(self, examples: Examples, labels: npt.NDArray[np.int64]) -> None:
        """`labels`: (texts,), 1 = hallucinated. They are those of the training texts of a fold."""
        layers = sorted(examples.activations)
        self.layer = layers[len(layers) // 2]
        x = examples.activations[self.layer]  # (texts, d_model)
        self.centre, scale = x.mean(axis=0), x.std(axis=0) + 1e-6
        direction = (x[labels == 1].mean(axis=0) - x[labels == 0].mean(axis=0)) / scale**2
        self.direction = direction / np.linalg.norm(direction / scale)

    def score(self, examples: Examples) -> npt.NDArray[np.float64]:
        """One number per text, higher = hallucinated."""
        x = examples.activations[self.layer]
        return np.asarray((x - self.centre) @ self.direction, dtype=np.float64)
