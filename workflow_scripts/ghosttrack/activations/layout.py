"""Sizes in the file layout of a store. No heavy imports: the plan of a run counts with them too."""

# 4,096 rows are 5 to 8 MB: reads run at memory speed, and a checksum is verified quickly.
CHUNK_ROWS = 4096
# 65,536 rows are 75 to 134 MB a file: few files, and none too large to copy or check.
CHUNKS_PER_SHARD = 16
SHARD_ROWS = CHUNK_ROWS * CHUNKS_PER_SHARD
# The largest float16. Larger values are clipped in excluded rows, and refused in others.
HALF_MAX = 65_504.0
# ASSUME: rows with a norm above 10 medians are attention sinks and carry no meaning.
MASSIVE_FACTOR = 10.0


def why_not_finite(half: bool, model: str) -> str:
    """Why hidden states may not be finite, and what to do.

    Args:
        half: whether the model computes in float16.
    """
    if half:
        return (
            f"the model's hidden states exceed float16 (at most {HALF_MAX:,.0f}); set "
            "inference.dtype: bfloat16 or float32"
        )
    return (
        f"the weights of model {model} are damaged or do not fit its config.json; give another copy "
        "or revision of the weights (source.id, source.revision or model_path); fetching the same "
        "ones again does not help"
    )
