"""``Retry-After`` of an HTTP answer (RFC 9110, 10.2.3): how long who asked is told to keep away.

Whoever obeys it sets a bound of its own: the text may be anything, and a date is by another's clock.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def seconds(text: str) -> float | None:
    """Read the header: seconds or a date.

    Args:
        text: its value; empty where there is none.

    Returns:
        Seconds from now, perhaps without end; None where it says nothing, or a time that is over.
    """
    text = text.strip()
    if text.isdecimal():
        return float(text)
    try:
        left = (parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):  # as of a date without a zone, or no date
        return None
    return left if left > 0 else None
