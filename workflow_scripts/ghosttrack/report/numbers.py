"""Numbers as the pages show them."""

import math

# Minus sign, and the dash for NaN and for ranges; as codes, because both look like hyphens.
MINUS, NONE = "\u2212", "\u2013"
PLUS_MINUS, DELTA = "\u00b1", "\u0394"


def score(value: float | None, digits: int = 3) -> str:
    """A number with a fixed number of digits; a dash for None and NaN."""
    return NONE if value is None or math.isnan(value) else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float) -> str:
    """A difference with its sign, three digits; a dash for NaN."""
    return NONE if math.isnan(value) else f"{value:+.3f}".replace("-", MINUS)


def percent(value: float) -> str:
    """A fraction as per cent; a dash for NaN."""
    return NONE if math.isnan(value) else f"{100 * value:.1f} %"
