"""Track tables for tests: random ones, and a small one for results worked out by hand."""

import numpy as np

from ghosttrack.tracks.track_table import TrackTable, blank


def random_table(rows: int, layers: int, slots: int, seed: int, silent: bool = True) -> TrackTable:
    """Random detections with random valid links of gap 1 and 2; some tokens are empty."""
    generator = np.random.default_rng(seed)
    table = blank(rows, layers, slots)
    for row in range(rows):
        if silent and row % 7 == 3:
            continue
        free: list[set[int]] = []
        for layer in range(layers):
            count = int(generator.integers(0, slots + 1))
            table.feature[row, layer, :count] = generator.permutation(50)[:count]
            table.activation[row, layer, :count] = generator.random(count) * 2 + 0.01
            free.append(set(range(count)))
            for slot in range(count):
                gap = int(generator.integers(0, 3))
                if gap and layer >= gap and free[layer - gap]:
                    source = int(generator.choice(sorted(free[layer - gap])))
                    free[layer - gap].remove(source)
                    table.previous[row, layer, slot], table.gap[row, layer, slot] = source, gap
                    table.surplus[row, layer, slot] = generator.random()
    return table


def hand_worked() -> TrackTable:
    """Three layers. Activations of track A: 1, 1, 1; track B: 3, silent, 1; track C: -, -, 2."""
    table = blank(1, 3, 3)
    for layer, slot, activation, previous, gap, surplus in (
        (0, 0, 3.0, -1, 0, 0.0),
        (0, 1, 1.0, -1, 0, 0.0),
        (1, 0, 1.0, 1, 1, 0.2),
        (2, 0, 2.0, -1, 0, 0.0),
        (2, 1, 1.0, 0, 1, 0.4),
        (2, 2, 1.0, 0, 2, 0.3),
    ):
        table.feature[0, layer, slot] = 10 * layer + slot
        table.activation[0, layer, slot], table.previous[0, layer, slot] = activation, previous
        table.gap[0, layer, slot], table.surplus[0, layer, slot] = gap, surplus
    return table
