"""Numbers in tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], digits: int = 1) -> str:
    """Mean and standard deviation; the mean alone of one value, and a dash where there is none.

    >>> spread([1.0, 2.0]), spread([1.0], 2), spread([])
    ('1.5 ± 0.7', '1.00', '-')
    """
    if not values:
        return "-"
    mean = f"{statistics.fmean(values):.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {statistics.stdev(values):.{digits}f}"
