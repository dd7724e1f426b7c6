"""Points and axes of the small interval plots that the pages draw as HTML."""

import math
from typing import NamedTuple


class Point(NamedTuple):
    """A value with its interval; `kind` is the CSS class that gives the colour."""

    label: str
    kind: str
    marker: str
    value: float
    low: float
    high: float


class Axis(NamedTuple):
    """Limits and ticks of a plot; `chance` is the tick that is drawn dashed."""

    low: float
    high: float
    chance: float
    ticks: list[float]


def position(value: float, axis: Axis) -> str:
    """Position on an axis in per cent of its length, clipped to it; outside the page for NaN."""
    if math.isnan(value):
        return "-1000%"
    return f"{100 * min(max((value - axis.low) / (axis.high - axis.low), 0.0), 1.0):.2f}%"
