"""An interval and the bounds that were set for it, as coordinates of a small drawing."""

from __future__ import annotations

import math

WIDTH, HEIGHT = 220, 22
_ROOM = 0.08


def strip(
    estimate: float, interval: tuple[float, float], bounds: tuple[float, float]
) -> dict[str, float | None]:
    """Coordinates of a strip, within :data:`WIDTH`.

    Args:
        estimate: The figure.
        interval: Its ends.
        bounds: The claim's; infinite where there is none on that side.

    Returns:
        ``x``, ``low``, ``high`` of the figure, ``from_`` and ``to`` of what is claimed, and ``zero`` (None
        outside the strip).
    """
    ends = [estimate, *interval, 0.0, *(bound for bound in bounds if math.isfinite(bound))]
    low, high = min(ends), max(ends)
    room = _ROOM * ((high - low) or 1.0)
    low, high = low - room, high + room

    def at(value: float) -> float:
        return round(WIDTH * (min(high, max(low, value)) - low) / (high - low), 1)

    return {
        "x": at(estimate),
        "low": at(interval[0]),
        "high": at(interval[1]),
        "from_": at(bounds[0]) if math.isfinite(bounds[0]) else 0.0,
        "to": at(bounds[1]) if math.isfinite(bounds[1]) else float(WIDTH),
        "zero": at(0.0) if low < 0.0 < high else None,
    }
