"""Words for messages."""

import difflib
from collections.abc import Collection


def listed(names: Collection[object], most: int = 3) -> str:
    """The names with commas between; of more than `most`, the first and how many follow: `a, b and 4 more`."""
    first = [str(name) for _, name in zip(range(most), names, strict=False)]
    more = len(names) - len(first)
    return ", ".join(first) + (f" and {more} more" if more else "")


def meant(name: str, known: Collection[str]) -> str:
    """What may have been meant by an unknown name: `did you mean 'depth'?`, or all that are known."""
    close = difflib.get_close_matches(name, known, 1)
    return f"did you mean {close[0]!r}?" if close else f"known: {', '.join(known) or 'none'}"
