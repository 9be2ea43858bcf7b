"""Durations as people read them."""


def clock(seconds: float) -> str:
    """Minutes and seconds, `12:05`; what is below 0 is 0."""
    whole = max(0, round(seconds))
    return f"{whole // 60}:{whole % 60:02d}"
