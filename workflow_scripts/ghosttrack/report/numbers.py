"""Numbers as the pages show them."""

import math

# Minus sign, and the dash for NaN and for ranges; as codes, because both look like hyphens.
MINUS, NONE = "\u2212", "\u2013"
PLUS_MINUS, DELTA = "\u00b1", "\u0394"


def score(value: float | None, digits: int = 3) -> str:
    """A number with a fixed number of digits; a dash for None and NaN."""
    return NONE if value is None or math.isnan(value) else f"{value:.{digits}f}".replace("-", MINUS)


def small(value: float) -> str:
    """A number with three digits; with four where three would show 0 and four do not."""
    return f"{value:.{_digits(value)}f}"


def signed(value: float) -> str:
    """A difference with its sign, digits as of `small`; a dash for NaN."""
    return NONE if math.isnan(value) else f"{value:+.{_digits(value)}f}".replace("-", MINUS)


def _digits(value: float) -> int:
    return 4 if round(value, 3) == 0 and round(value, 4) != 0 else 3


def percent(value: float) -> str:
    """A fraction as per cent; a dash for NaN."""
    return NONE if math.isnan(value) else f"{100 * value:.1f} %"
