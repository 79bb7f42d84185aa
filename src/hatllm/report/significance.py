"""Which differences of a table hold, given that the table makes several comparisons.

Dimension key: G users.
"""

from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import polars as pl
from scipy.stats import wilcoxon

LEVEL = 0.05
Name = TypeVar("Name")


def wilcoxon_p_value(differences: pl.DataFrame) -> float:
    """Two-sided p value of Wilcoxon's signed-rank test over users.

    Each user counts once, with the sum of the differences of their examples; users whose sum is 0
    are left out, as Wilcoxon did. If that leaves nobody, nothing speaks for a difference: 1.

    Args:
        differences: user_id, difference.

    Returns:
        A probability in [0, 1].
    """
    by_user = differences.group_by("user_id").agg(total=pl.col("difference").sum())
    total_G = by_user.sort("user_id")["total"].to_numpy()
    total_G = np.round(total_G, 12)  # sums that are 0 but for rounding
    if not total_G.any():
        return 1.0
    return float(wilcoxon(total_G[total_G != 0]).pvalue)


def holm(p_values: Mapping[Name, float]) -> dict[Name, float]:
    """Holm's corrected p values (Scandinavian Journal of Statistics 6, 1979).

    With the m p values in ascending order, the i-th (from 0) is multiplied by m - i; none is
    smaller than the one before it and none is above 1. Comparing them with a level bounds the
    chance of even one false finding among all m by that level.

    Args:
        p_values: Any name -> p value of one comparison.

    Returns:
        The same names, in the same order, with their corrected p values.
    """
    corrected: dict[Name, float] = {}
    largest = 0.0
    for rank, name in enumerate(sorted(p_values, key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[name]))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}
