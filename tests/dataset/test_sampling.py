"""Epoch orders and counter-based random numbers."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from dataset.sampling import epoch_order, uniforms

LABELS = np.repeat([0, 1, 2, 3], [170, 280, 480, 70])


def test_sequential_draws_every_image_once() -> None:
    order = epoch_order(LABELS, "sequential", 1, 1)
    assert sorted(order) == list(range(1000))
    assert not np.array_equal(order, epoch_order(LABELS, "sequential", 1, 2))
    np.testing.assert_array_equal(order, epoch_order(LABELS, "sequential", 1, 1))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 200), min_size=2, max_size=6), st.integers(0, 10**6), st.integers(1, 500))
def test_weighted_draws_classes_equally_and_images_evenly(counts: list[int], seed: int, epoch: int) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    order = epoch_order(labels, "weighted", seed, epoch)
    assert len(order) == len(labels)
    times = np.bincount(order, minlength=len(labels))
    expected = len(labels) / (len(counts) * np.array(counts)[labels])
    assert (times >= np.floor(expected - 1e-9) - 1).all()
    assert (times <= np.ceil(expected + 1e-9) + 1).all()
    assert (np.abs(times - expected) >= 1).sum() <= 1  # only the rounding of the very last draw may be off


def test_weighted_is_balanced_over_epochs_and_leaves_no_image_out() -> None:
    drawn = np.concatenate([epoch_order(LABELS, "weighted", 0, epoch) for epoch in range(1, 41)])
    per_class = np.bincount(LABELS[drawn])
    np.testing.assert_allclose(per_class / len(drawn), 0.25, atol=0.003)
    per_image = np.bincount(drawn, minlength=1000)
    assert per_image.min() > 0
    expected = 40 * 1000 / (4 * np.bincount(LABELS)[LABELS])
    assert np.abs(per_image - expected).max() < 6 * np.sqrt(40 * 0.25)


def test_uniforms_are_a_function_of_the_position_alone() -> None:
    whole = uniforms(3, 5, np.arange(100), 16)
    np.testing.assert_array_equal(whole[40:60], uniforms(3, 5, np.arange(40, 60), 16))
    np.testing.assert_array_equal(whole[:, :4], uniforms(3, 5, np.arange(100), 4))
    for other in (uniforms(4, 5, np.arange(100), 16), uniforms(3, 6, np.arange(100), 16)):
        assert not np.any(whole == other)


def test_uniforms_are_uniform_and_independent() -> None:
    u = uniforms(0, 1, np.arange(20000), 8)
    assert u.min() >= 0
    assert u.max() < 1
    assert min(stats.kstest(column, "uniform").pvalue for column in u.T) > 1e-4
    correlation = np.corrcoef(np.hstack([u[:-1], u[1:]]).T) - np.eye(16)
    assert np.abs(correlation).max() < 0.035  # 5 standard errors at n = 20000
