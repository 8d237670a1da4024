"""How durations are written."""

from __future__ import annotations


def duration(seconds: float) -> str:
    """In the two largest units: `42 s`, `3 min 05 s`, `2 h 10 min`, `1 d 04 h`."""
    whole = round(seconds)
    minutes, rest = divmod(whole, 60)
    hours, minutes_left = divmod(minutes, 60)
    days, hours_left = divmod(hours, 24)
    if days:
        return f"{days} d {hours_left:02d} h"
    if hours:
        return f"{hours} h {minutes_left:02d} min"
    if minutes:
        return f"{minutes} min {rest:02d} s"
    return f"{whole} s"
