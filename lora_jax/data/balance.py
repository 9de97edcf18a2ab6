"""Classes of unlike sizes, made to count alike in training: by weights, or by drawing again."""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Int


def balanced_weights(labels: Any, classes: int) -> tuple[float, ...]:
    """What an example of each class counts: examples / (classes * examples of the class), so that
    all classes that there are have the same sum, and the mean is 1.

    Args:
        labels: class ids, one an example, or arrays of the tags of an example's tokens, -1 where
            there is none.
    """
    ids = np.concatenate([np.atleast_1d(one) for one in labels])
    counts = np.bincount(ids[ids >= 0], minlength=classes)
    there = int((counts > 0).sum())
    return tuple(float(counts.sum() / (there * n)) if n else 0.0 for n in counts)


def balanced_rows(labels: Int[np.ndarray, " examples"]) -> Int[np.ndarray, " drawn"]:
    """Places of the examples, those of rarer classes again and again until every class comes as
    often as the commonest one.
    """
    places = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    most = max(map(len, places))
    return np.sort(np.concatenate([np.resize(one, most) for one in places]))
