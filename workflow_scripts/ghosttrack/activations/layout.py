"""How a store lies on disk, in numbers. No heavy imports: the plan of a run counts with them too."""

# 4,096 rows are 5 to 8 MB: reads of whole chunks run at memory speed, and a checksum is soon verified.
CHUNK_ROWS = 4096
# 65,536 rows are 75 to 134 MB a file: few files, and no file too large to copy or check.
CHUNKS_PER_SHARD = 16
SHARD_ROWS = CHUNK_ROWS * CHUNKS_PER_SHARD
# The largest float16; what lies beyond is clipped and counted in rows that no figure uses, and refused in all others.
HALF_MAX = 65_504.0
# ASSUME: rows far above the rest in norm are attention sinks, not meaning; 10 medians splits them off cleanly.
MASSIVE_FACTOR = 10.0
