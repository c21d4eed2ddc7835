"""Numbers as a person reads them, with their unit."""

import math


def human_bytes(n: int | float) -> str:
    """Bytes with a binary prefix: 1_010_000_000 -> `963.21 MiB`; below 1,024 as they are."""
    units, power = ("B", "KiB", "MiB", "GiB", "TiB"), 0
    while abs(n) >= 1023.995 and power < len(units) - 1:  # 1023.995 would print as 1024.00
        n, power = n / 1024, power + 1
    return f"{n:.2f} {units[power]}" if power else f"{n:.0f} B"


def human_percent(share: int | float) -> str:
    """A share in [0, 1] as a percentage with two decimals: 0.9123 -> `91.23 %`."""
    return f"{100 * share:.2f} %"


def human_seconds(seconds: int | float) -> str:
    """A duration in its two largest units: `4.2 s`, `42 s`, `7 min 05 s`, `1 h 05 min`, `3 d 04 h`."""
    if not math.isfinite(seconds):
        return "unknown"
    if 0 < seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    minutes = round(seconds / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24:02} h"
