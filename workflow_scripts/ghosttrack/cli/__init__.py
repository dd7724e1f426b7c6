"""Command lines: status, score, compare, launch, manual, check_gpu."""
