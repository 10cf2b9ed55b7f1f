"""Which samples and neurons to show: few of many, the same ones every time."""

from __future__ import annotations

from torch import Tensor


def choose(predictions: Tensor, labels: Tensor, most: int = 24) -> list[int]:
    """Choose samples of which half are right and half are wrong, as far as there are so many.

    Both halves are spread evenly over the batch. Whoever shows them has to say that they are
    selected: half of them wrong says nothing about the accuracy.

    Args:
        predictions: Predicted classes `[B]`.
        labels: True classes `[B]`.
        most: How many to choose.

    Returns:
        At most `most` indices in ascending order.
    """
    hits = predictions == labels
    right, wrong = hits.nonzero()[:, 0].tolist(), (~hits).nonzero()[:, 0].tolist()
    # What one side cannot fill, the other may.
    rights = min(len(right), max(most - most // 2, most - len(wrong)))
    return sorted(pick(right, rights) + pick(wrong, most - rights))


def pick(items: list[int], wanted: int) -> list[int]:
    """Up to `wanted` of the items, evenly spaced, first and last among them."""
    if len(items) <= wanted:
        return items
    if wanted < 2:
        return items[:wanted]
    return [items[round(i * (len(items) - 1) / (wanted - 1))] for i in range(wanted)]
