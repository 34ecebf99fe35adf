"""Figures as a reader sees them; what is absent or not a number becomes a dash."""

import math
from typing import Any

DASH = "–"
MINUS = "−"
NARROW_SPACE = "\u202f"  # does not break, so a figure never parts from its unit


def is_figure(value: Any) -> bool:
    """Whether `value` is a number that can be shown: not None, NaN, a word or a truth value."""
    return (
        not isinstance(value, bool | str)
        and hasattr(value, "__float__")
        and not math.isnan(float(value))
    )


def figure(value: Any, digits: int = 3) -> str:
    if not is_figure(value):
        return DASH
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    return f"{float(value):.{digits}f}".replace("-", MINUS)


def difference(value: Any, digits: int = 3) -> str:
    """A signed figure; one that rounds to nothing has no sign."""
    if not is_figure(value):
        return DASH
    text = f"{float(value):+.{digits}f}"
    return text[1:] if float(text) == 0 else text.replace("-", MINUS)


def count(value: Any) -> str:
    return f"{int(value):,}".replace(",", NARROW_SPACE) if is_figure(value) else DASH


def counted(number: int, noun: str) -> str:
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def byte_size(value: Any) -> str:
    """Bytes in decimal units: 512 B, 1.5 kB, 5.2 MB, 1.0 GB."""
    if not is_figure(value):
        return DASH
    size, unit = float(value), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.95:
            break
        size, unit = size / 1000, larger
    return f"{size:.{0 if unit == 'B' else 1}f}{NARROW_SPACE}{unit}"


def duration(value: Any) -> str:
    """Seconds as 0.42 s, 12.3 s or 3 min 05 s."""
    if not is_figure(value):
        return DASH
    if value < 60:
        return f"{value:.{2 if value < 10 else 1}f}{NARROW_SPACE}s"
    minutes, seconds = divmod(round(value), 60)
    return f"{count(minutes)}{NARROW_SPACE}min {seconds:02d}{NARROW_SPACE}s"


def setting(value: Any) -> str:
    """A configuration value as text; what is not set is a dash."""
    if value is None or value == "":
        return DASH
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(setting(item) for item in value)
    if isinstance(value, float) and not is_figure(value):
        return DASH
    return str(value)
