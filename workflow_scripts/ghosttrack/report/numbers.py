"""How numbers are written on pages."""

import math

# Typographic signs, written as codes because they look like hyphens: a true minus, and the dash for "no number" and ranges.
MINUS, NONE = "\u2212", "\u2013"
PLUS_MINUS, DELTA = "\u00b1", "\u0394"


def score(value: float | None, digits: int = 3) -> str:
    """A number with fixed digits; a dash when there is none."""
    return NONE if value is None or math.isnan(value) else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float) -> str:
    """A difference with its sign."""
    return NONE if math.isnan(value) else f"{value:+.3f}".replace("-", MINUS)


def percent(value: float) -> str:
    """A share as per cent."""
    return NONE if math.isnan(value) else f"{100 * value:.1f} %"
