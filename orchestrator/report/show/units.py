"""Writes numbers for people: SI and binary prefixes, honest digits, a value with its interval.

Pure text, no terminal: tables, plots and exports share it. A column of numbers gets one
:class:`Scale`, so that a reader compares digits and not prefixes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Literal, TypeAlias

from orchestrator.measure.metric import spelled

MISSING = "–"

Precision: TypeAlias = Literal["day", "minute", "second"]

_SI = tuple(
    (float(f"1e{3 * i}"), p) for i, p in zip(range(5, -4, -1), (*"PTGMk", "", *"mµn"), strict=True)
)
_BINARY = tuple((2.0 ** (10 * i), p) for i, p in reversed(list(enumerate(("", *"KMGTP")))))

# unit -> (symbol, smallest and largest exponent allowed for its prefix). Seconds never become
# kiloseconds and counts never millitokens; both are correct and neither can be read.
_PREFIXED = {
    "s": ("s", 1e-9, 1.0),
    "J": ("J", 1e-6, 1e9),
    "W": ("W", 1e-3, 1e6),
    "Hz": ("Hz", 1.0, 1e9),
    "flop": ("FLOP", 1.0, 1e15),
    "flop/s": ("FLOP/s", 1.0, 1e15),
    "bytes/s": ("B/s", 1.0, 1e12),
    "J/token": ("J/token", 1e-6, 1.0),
    "parameters": ("", 1.0, 1e12),
}
# What a person reads without an exponent.
_LEAST_PLAIN, _MOST_PLAIN = 1e-4, 1e7
_MOST_TIMES = 1000
_SYMBOLS = {"1": "", "tokens/s": "tok/s", "percent": "%"}


@dataclass(frozen=True)
class Scale:
    """How a column of one unit is written: divided by ``factor``, headed by ``symbol``."""

    factor: float
    symbol: str

    def number(self, value: float | None, digits: int = 3) -> str:
        """``value`` in this scale, without its symbol; a dash for None."""
        return MISSING if value is None else significant(value / self.factor, digits)

    def text(self, value: float | None, digits: int = 3) -> str:
        """``value`` in this scale with its symbol."""
        number = self.number(value, digits)
        return number if value is None else _join(number, self.symbol)

    def heading(self, title: str) -> str:
        """What a column or an axis of such values is headed with: ``TTFT (ms)``."""
        return title + (f" ({self.symbol})" if self.symbol else "")

    def interval(self, median: float, ci_low: float | None, ci_high: float | None) -> str:
        """``61.2 ±0.8``: the median and the half-width of its interval, without the symbol.

        The half-width is rounded to one digit (two below 2) and the median to the same place, but
        never to less than three digits or more than five: precision that is not there is
        not shown. A median that is smaller than its interval's half has no digits of its own.
        """
        if ci_low is None or ci_high is None:
            return self.number(median)
        half = abs(ci_high - ci_low) / 2 / self.factor
        value = median / self.factor
        if half == 0 or not math.isfinite(half):
            return significant(value)
        size = max(abs(value), half)
        exponent = ""
        if not _LEAST_PLAIN <= size < _MOST_PLAIN:
            power = math.floor(math.log10(size))
            value, half, exponent = value / 10.0**power, half / 10.0**power, f"e{power:+03d}"
        leading = half / 10.0 ** math.floor(math.log10(half))
        places = _decimals(half, 2 if leading < 2 else 1)
        if abs(value) >= half:
            places = min(max(places, _decimals(value, 3)), _decimals(value, 5))
        places = max(places, 0)
        text, least = f"{half:.{places}f}", f"{10.0**-places:.{places}f}"
        # Adding 0 takes the sign of a zero away.
        told = f"{round(value, places) + 0.0:.{places}f}{exponent} "
        return told + (f"±{text}{exponent}" if float(text) else f"<±{least}{exponent}")


def scale_of(values: Iterable[float | None], unit: str) -> Scale:
    """The scale that suits most of ``values``: the prefix of their median magnitude."""
    sizes = sorted(abs(v) for v in values if v is not None and v != 0 and math.isfinite(v))
    size = sizes[len(sizes) // 2] if sizes else 0.0
    if unit in ("bytes", "B"):
        factor, prefix = _prefix(size, _BINARY, 1.0, math.inf)
        return Scale(factor, f"{prefix}iB" if prefix else "B")
    if unit in _PREFIXED:
        symbol, low, high = _PREFIXED[unit]
        factor, prefix = _prefix(size, _SI, low, high)
        return Scale(factor, prefix + symbol)
    return Scale(1.0, _SYMBOLS.get(unit, spelled(unit)))


def quantity(value: float | None, unit: str) -> str:
    """One value with its best prefix: ``61.2 ms``, ``1.25 GiB``; a dash for None."""
    return scale_of([value], unit).text(value)


def with_ci(median: float, ci_low: float | None, ci_high: float | None, unit: str) -> str:
    """A median and the half-width of its interval: ``61.2 ±0.8 ms``."""
    scale = scale_of([median or ci_high], unit)
    return _join(scale.interval(median, ci_low, ci_high), scale.symbol)


def significant(value: float, digits: int = 3) -> str:
    """``value`` at ``digits`` significant digits without an exponent where a person can do so."""
    if value == 0 or not math.isfinite(value):
        return "0" if value == 0 else str(value)
    if float(value).is_integer() and abs(value) < 10**6:
        return str(int(value))
    if not _LEAST_PLAIN <= abs(value) < _MOST_PLAIN:
        return f"{value:.{digits - 1}e}"
    return f"{value:.{max(_decimals(value, digits), 0)}f}"


def ratio(value: float | None) -> str:
    """A ratio to the baseline: ``1.82×``; three digits, a dash for None.

    Beyond a thousand, of something that was next to nothing, no digit tells anything.
    """
    if value is None:
        return MISSING
    if value > _MOST_TIMES:
        return f">{_MOST_TIMES}×"
    if 0.0 < value < 1.0 / _MOST_TIMES:
        return f"<{1.0 / _MOST_TIMES}×"
    return f"{significant(value)}×" if value < 0.1 or value >= 100 else f"{value:.2f}×"


def percent(share: float) -> str:
    """A share of one as a percentage: ``4.2 %``."""
    return f"{significant(100 * share, 2)} %"


def duration(seconds: float) -> str:
    """A wall time as people say it: ``0.4 s``, ``12.3 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 3600 - 0.5:
        minutes, rest = divmod(round(seconds), 60)
        return f"{minutes} min {rest:02d} s"
    hours, rest = divmod(round(seconds / 60), 60)
    if hours < 48:
        return f"{hours} h {rest:02d} min"
    return f"{hours // 24} d {hours % 24} h"


def utc(unix_s: float, to: Precision = "minute") -> str:
    """A moment in UTC as people and plotly read it: ``2026-11-30 03:10``."""
    text = datetime.fromtimestamp(unix_s, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")
    return text[: {"day": 10, "minute": 16, "second": 19}[to]]


def span(low_s: float, high_s: float) -> str:
    """A range of wall times in one unit: ``40–65 s``, ``3–5 min``, ``2.1–3.4 h``."""
    if high_s < 100:
        factor, unit, places = 1.0, "s", 0
    elif high_s < 6000:
        factor, unit, places = 60.0, "min", 0 if high_s >= 600 else 1
    else:
        factor, unit, places = 3600.0, "h", 1
    low, high = f"{low_s / factor:.{places}f}", f"{high_s / factor:.{places}f}"
    return f"{high} {unit}" if low == high else f"{low}–{high} {unit}"


def _join(number: str, symbol: str) -> str:
    return f"{number} {symbol}" if symbol else number


def _prefix(
    size: float, table: Iterable[tuple[float, str]], low: float, high: float
) -> tuple[float, str]:
    if size == 0:
        return 1.0, ""
    allowed = [(f, p) for f, p in table if low <= f <= high]
    for factor, prefix in allowed:
        # 999.95 would be written 1000 by three digits: it belongs to the next prefix.
        if size >= 0.9995 * factor:
            return factor, prefix
    return allowed[-1]


def _decimals(value: float, digits: int) -> int:
    """Decimal places that show ``value`` at ``digits`` significant digits (may be negative)."""
    if value == 0:
        return 0
    exponent = math.floor(math.log10(abs(value)))
    # 9.996 at three digits is 10.0, not 10.00.
    if round(abs(value) / 10.0**exponent, digits - 1) >= 10:
        exponent += 1
    return digits - 1 - exponent
