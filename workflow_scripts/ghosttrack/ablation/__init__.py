"""Ablations: detectors on metrics of tracks with a part left out or changed, in the run's folds."""
