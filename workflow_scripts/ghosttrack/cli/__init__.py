"""Command lines: status, score, compare, launch, manual, gpu_check."""
