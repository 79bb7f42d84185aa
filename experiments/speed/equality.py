"""Whether two searches gave the same answers, and where they did not, by how little.

Titles are named by any integer that both sides use.
"""

from collections.abc import Sequence
from typing import Any

Answer = list[tuple[int, float]]


def compare_answers(
    ours: Sequence[Answer], theirs: Sequence[Answer], users: Sequence[int], tolerance: float
) -> dict[str, Any]:
    """Compare the ranked titles of some users.

    Args:
        ours: (title, log-probability) of each user, best first.
        theirs: The same of the reference.
        users: Example ids, to name those that differ.
        tolerance: Largest difference of log-probabilities that counts as equal, nats.

    Returns:
        users, same_top (users with equal lists), max_abs_difference (of log-probabilities, over
        titles both found), differing (one entry a user whose lists differ).
    """
    differing = []
    largest = 0.0
    for user, our, their in zip(users, ours, theirs, strict=True):
        of_ours, of_theirs = dict(our), dict(their)
        common = of_ours.keys() & of_theirs.keys()
        largest = max([largest, *(abs(of_ours[t] - of_theirs[t]) for t in common)])
        if [title for title, _ in our] != [title for title, _ in their]:
            differing.append({"user": user, **_difference(our, their, tolerance)})
    return {
        "users": len(users),
        "same_top": len(users) - len(differing),
        "max_abs_difference": largest,
        "differing": differing,
    }


def _difference(ours: Answer, theirs: Answer, tolerance: float) -> dict[str, Any]:
    """First rank at which the lists differ, and how far apart the two titles there are."""
    pairs = list(zip(ours, theirs, strict=False))
    rank = next((i for i, (a, b) in enumerate(pairs) if a[0] != b[0]), len(pairs))
    found = {"rank": rank + 1, "ours": len(ours), "theirs": len(theirs)}
    if rank == len(pairs):
        return found | {"gap": None, "reason": "one list is longer"}
    (title, log_prob), (other, other_log_prob) = pairs[rank]
    gap = abs(log_prob - other_log_prob)
    swapped = other in dict(ours) and title in dict(theirs)
    if gap > tolerance:
        return found | {"gap": gap, "reason": "another title"}
    where = "two titles swapped" if swapped else "the last places, or a tie inside the beam"
    return found | {"gap": gap, "reason": f"near-tie: {where}"}


def joined(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The comparisons of several batches as one."""
    users = sum(part["users"] for part in parts)
    same = sum(part["same_top"] for part in parts)
    return {
        "users": users,
        "same_top": same,
        "share_same": same / users if users else None,
        "max_abs_difference": max((part["max_abs_difference"] for part in parts), default=0.0),
        "differing": [entry for part in parts for entry in part["differing"]],
    }
