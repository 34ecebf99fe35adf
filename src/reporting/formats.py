"""Numbers as a reader sees them. An absent value becomes a dash."""

import math
from typing import Any

DASH = "–"
MINUS = "−"
NARROW_SPACE = "\u202f"  # does not break: a number stays with its unit


def number(value: float | None, digits: int = 3) -> str:
    """0.958, or ∞; a minus sign instead of a hyphen."""
    if value is None:
        return DASH
    text = "∞" if abs(value) == math.inf else f"{abs(value):.{digits}f}"
    return f"{MINUS}{text}" if value < 0 else text


def difference(value: float | None, digits: int = 3) -> str:
    """A signed number; one that rounds to zero has no sign."""
    if value is None:
        return DASH
    text = number(abs(value), digits)
    return text if float(text) == 0 else f"{'+' if value > 0 else MINUS}{text}"


def count(value: float | None) -> str:
    """An integer with its thousands apart."""
    return DASH if value is None else f"{int(value):,}".replace(",", NARROW_SPACE)


def counted(value: int, noun: str, more: str = "") -> str:
    """3 images, 1 image."""
    return f"{count(value)} {noun}{'' if value == 1 else 's'}{more}"


def byte_size(value: float | None) -> str:
    """Bytes in decimal units: 512 B, 1.5 kB, 5.2 MB, 1.0 GB."""
    if value is None:
        return DASH
    size, unit = float(value), "B"
    for larger in ("kB", "MB", "GB", "TB"):
        if size < 999.95:
            break
        size, unit = size / 1000, larger
    return f"{size:.{0 if unit == 'B' else 1}f}{NARROW_SPACE}{unit}"


def duration(value: float | None) -> str:
    """Seconds as 0.42 s, 12.3 s or 3 min 05 s."""
    if value is None:
        return DASH
    if value < 60:
        return f"{value:.{2 if value < 10 else 1}f}{NARROW_SPACE}s"
    minutes, seconds = divmod(round(value), 60)
    return f"{count(minutes)}{NARROW_SPACE}min {seconds:02d}{NARROW_SPACE}s"


def setting(value: Any) -> str:
    """The value of a setting as TOML writes it; an empty one is a dash."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return DASH if value in (None, "") else str(value)
