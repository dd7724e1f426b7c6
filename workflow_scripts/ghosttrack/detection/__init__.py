"""Controls, probes and detectors, scored out of fold."""
