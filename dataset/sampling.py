"""The order of an epoch, its division into steps, and counter-based random numbers.

All are functions of (seed, epoch, position) and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

_ORDER, _WEIGHTED = 1, 2  # keep the streams of one seed apart


def epoch_order(labels: np.ndarray, sampler: str, seed: int, epoch: int) -> np.ndarray:
    """Return the image at every position of one epoch, (n,) int64 indices into `labels`.

    `sequential` draws every image exactly once. `weighted` draws every class equally often, by systematic resampling
    (Kitagawa 1996): an image with an expected count of e is drawn floor(e) or ceil(e) times, so that a large class is
    covered evenly; independent draws would miss a third of it by chance.
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
    # Rounding of the running sum can yield one image too many or too few; the order has the length of the epoch.
    return shuffle.permutation(np.resize(drawn, n))


def epoch_steps(images: int, batch: int) -> list[range]:
    """Return the positions of every step of an epoch: consecutive batches, of which the last may be smaller.

    The last has at least two images if possible, because batch normalisation may need two.
    """
    edges = list(range(0, images, batch))
    if batch > 1 and images % batch == 1 < images:
        edges = edges[:-1] if batch == 2 else [*edges[:-1], edges[-1] - 1]
    return [range(start, stop) for start, stop in pairwise([*edges, images])]


@dataclass(frozen=True)
class Share:
    """One rank's part of a step: micro-batches, processed one after the other.

    If a short batch has fewer micro-batches than there are ranks, a rank repeats the first one: every rank must take
    part in the last round, in which gradients are exchanged. Repeated images do not count.
    """

    images: int  # in the whole step, over all ranks
    micro_batches: list[range]  # positions in the epoch
    counted: list[int]  # images of each micro-batch that count: all, or none


def share_of(step: range, micro: int, rank: int = 0, world: int = 1, accumulate: int = 1) -> Share:
    """Return the share of `rank` in a step that `world` ranks process, in at most `accumulate` micro-batches each.

    A full batch is cut into micro-batches of `micro` images, which the ranks take in turn. A shorter one is cut evenly,
    into fewer micro-batches of up to `micro` + 1 images if one of them would have a single image.
    """
    least = min(2, micro)
    count = max(1, min(world * accumulate, len(step) // least))
    edges = [step.start + len(step) * i // count for i in range(count + 1)]
    cut = [range(start, stop) for start, stop in pairwise(edges)]
    micro_batches = cut[rank::world]
    counted = [len(positions) for positions in micro_batches]
    if rank >= count % world > 0:  # the last round has none for this rank
        micro_batches, counted = [*micro_batches, cut[0]], [*counted, 0]
    return Share(len(step), micro_batches, counted)


def uniforms(seed: int, epoch: int, positions: np.ndarray, count: int) -> np.ndarray:
    """Return uniform random numbers in [0, 1) for each position of an epoch: (len(positions), count) float64.

    Counter-based (SplitMix64's finaliser over seed, epoch, position and column; Steele, Lea and Flood 2014), hence
    without a state: a resumed run, another batch size and several ranks see the same numbers.
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
