"""The similarity of maps against SciPy's, and the common grid."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from localization.sanity.checks import differences, has_ranks, on_common_grid, similarity


def test_similarity_equals_scipy_s_and_is_0_for_a_lost_map() -> None:
    generator = np.random.default_rng(0)
    maps, others = generator.random((2, 6, 5, 7)).round(1)  # rounded: ties
    maps[0] += others[0]
    expected = [spearmanr(a, b).statistic for a, b in zip(maps.reshape(6, -1), others.reshape(6, -1), strict=True)]
    np.testing.assert_allclose(similarity(maps, others), expected, atol=1e-12)
    others[1], others[2], others[3, 0, 0], others[4] = 0, 3, np.nan, 3 * maps[4] + 1
    assert has_ranks(others).tolist() == [True, False, False, False, True, True]
    assert similarity(maps, others)[1:5] == pytest.approx([0, 0, 0, 1])
    assert similarity(others, maps)[1:5] == pytest.approx([0, 0, 0, 1])
    assert differences(np.array([[[1.0, 4.0]]] * 2), np.array([[[1.5, 4.0]], [[np.nan, 4.0]]])).tolist() == [
        0.125,
        np.inf,
    ]


def test_the_common_grid_averages_areas() -> None:
    fine = torch.arange(28.0).expand(1, 42, 28)
    coarse = on_common_grid(fine)
    assert coarse.shape == (1, 14, 14)
    np.testing.assert_allclose(coarse[0, 0], np.arange(28).reshape(14, 2).mean(1))
    assert on_common_grid(torch.rand(2, 7, 5)).shape == (2, 7, 5)
