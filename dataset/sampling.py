"""The order of an epoch, and counter-based random numbers: functions of (seed, epoch, position) and nothing else."""

from __future__ import annotations

import numpy as np

_ORDER, _WEIGHTED = 1, 2  # keep the streams of one seed apart


def epoch_order(labels: np.ndarray, sampler: str, seed: int, epoch: int) -> np.ndarray:
    """The image at every position of one epoch, (n,) int64 indices into `labels`.

    `sequential` draws every image exactly once. `weighted` draws every class equally often, by systematic resampling
    (Kitagawa 1996): an image that is expected e times comes floor(e) or ceil(e) times, so that a large class is covered
    evenly, where independent draws would miss a third of it by chance.
    """
    n = len(labels)
    shuffle = np.random.default_rng([seed, epoch, _ORDER])
    if sampler == "sequential":
        return shuffle.permutation(n)
    counts = np.bincount(labels)
    expected = n / (np.count_nonzero(counts) * counts[labels])
    images = np.random.default_rng([seed, epoch, _WEIGHTED]).permutation(n)
    edges = np.cumsum(expected[images]) + shuffle.random()
    times = np.diff(np.floor(edges), prepend=np.floor(edges[0] - expected[images[0]])).astype(np.int64)
    drawn = np.repeat(images, times)
    # Rounding of the running sum can make one too many or too few: the order's length is the epoch's length.
    return shuffle.permutation(np.resize(drawn, n))


def uniforms(seed: int, epoch: int, positions: np.ndarray, count: int) -> np.ndarray:
    """Uniform random numbers in [0, 1) for each position of an epoch: (len(positions), count) float64.

    Counter-based (SplitMix64's finaliser over seed, epoch, position and column; Steele, Lea and Flood 2014), so that a
    batch needs no state: resuming, another batch size and several ranks see the same numbers.
    """
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(seed) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(epoch))
        state = _mix(state + np.asarray(positions, np.uint64) * np.uint64(0xD1B54A32D192ED03))
        columns = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        mixed = _mix(state[:, None] + columns[None, :])
    return (mixed >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _mix(z: np.ndarray) -> np.ndarray:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
