"""Words for messages."""

from collections.abc import Collection


def listed(names: Collection[object], most: int = 3) -> str:
    """The names with commas between; of more than `most`, the first and how many follow: `a, b and 4 more`."""
    first = [str(name) for _, name in zip(range(most), names, strict=False)]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")
