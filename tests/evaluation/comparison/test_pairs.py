"""Comparisons of two and more runs."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy import stats
from statsmodels.stats.multitest import multipletests

from evaluation import compare
from evaluation.comparison.inputs import align
from evaluation.comparison.paired import (
    RESAMPLED,
    bootstrap_limits,
)
from evaluation.comparison.pairs import TESTS
from evaluation.comparison.report import cautions
from evaluation.figures.forest import forest_figure
from tests.helpers.prediction_tables import CLASSES, predictions, table, two
from utils import UserError


def flat(comparison: object) -> dict[tuple[str, str], list[float]]:
    return {
        (pair.a + pair.b, metric): list(vars(difference).values())
        for pair in comparison.pairs
        for metric, difference in pair.differences.items()
    }


@pytest.mark.parametrize("images", [1, 3])
def test_order_of_rows_and_classes_changes_nothing(images: int) -> None:
    a, b = table(90, 1, images=images), table(90, 2, images=images)
    straight = flat(compare(align({"a": predictions(a), "b": predictions(b)})))
    reordered = b.sample(frac=1, random_state=1), ["Normal", "COVID", "Lung_Opacity"]
    for first, second in (
        (predictions(a), predictions(*reordered)),
        (predictions(a.sample(frac=1, random_state=2), CLASSES[::-1]), predictions(b)),
        (predictions(a), predictions(b.assign(path=b["path"].str.replace("data", "elsewhere")))),  # by sha256
        (predictions(a), predictions(b.drop(columns="sha256"))),  # by path
        (predictions(a), predictions(b.drop(columns="group"))),
    ):
        shuffled = flat(compare(align({"a": first, "b": second})))
        assert shuffled.keys() == straight.keys()
        for key, numbers in straight.items():
            np.testing.assert_allclose(shuffled[key], numbers, atol=1e-12, err_msg=str(key))


def test_swapping_two_runs_changes_the_signs() -> None:
    runs = two(80)
    there = compare(runs).pairs[0]
    back = compare(dict(reversed(runs.items()))).pairs[0]
    assert (there.only_a, there.only_b) == (back.only_b, back.only_a)
    for metric, difference in there.differences.items():
        np.testing.assert_allclose(list(vars(-difference).values()), list(vars(back.differences[metric]).values()))


def test_pairs_baseline_and_holm() -> None:
    runs = align({name: predictions(table(150, seed, 1 + seed / 4)) for seed, name in enumerate("abcd")})
    every = compare(runs)
    assert [(pair.a, pair.b) for pair in every.pairs] == list(itertools.combinations("abcd", 2))
    for metric in TESTS:
        raw = [pair.differences[metric].p for pair in every.pairs]
        corrected = [pair.differences[metric].p_holm for pair in every.pairs]
        np.testing.assert_allclose(corrected, multipletests(raw, method="holm")[1])
    against = compare(runs, "c")
    assert [(pair.a, pair.b) for pair in against.pairs] == [("a", "c"), ("b", "c"), ("d", "c")]
    assert against.pairs[0].differences["accuracy"].p_holm <= every.pairs[1].differences["accuracy"].p_holm


def test_unknown_patients_are_not_counted_as_patients() -> None:
    """Runs whose paths differ are matched by content: an image of an unknown patient stays one in every table."""
    whole = table(160, 1, images=2)
    for named, images in ((0, "160 images (patients unknown)"), (120, "160 images (120 of 60 patients, 40 of unknown")):
        a = whole.assign(group=[*whole["group"][:named], *[""] * (160 - named)])
        b = table(160, 2, images=2).drop(columns="group").assign(path=whole["path"] + "x")
        for runs in ({"a": a, "b": b}, {"b": b, "a": a}):
            aligned = align({name: predictions(part) for name, part in runs.items()})
            comparison = compare(aligned, resamples=50)
            assert comparison.images.startswith(images) and comparison.unknown_patients == 160 - named
            assert [run.patients.count for run in aligned.values()] == [named // 2 + 160 - named] * 2
            heading = forest_figure(comparison).get_suptitle()
            assert images in heading and "independent" in heading
            text = " ".join(cautions(comparison))
            assert ("the images are unknown" if not named else "40 of 160 images are unknown") in text
            assert "independent" in text
    assert compare(two(60), resamples=50).images == "60 images of 60 patients"
    assert "independent" not in " ".join(cautions(compare(two(60), resamples=50)))


def test_compare_aligns_and_checks_its_runs() -> None:
    a, b = predictions(table(60, 1, 1.5)), predictions(table(60, 2, 1.2).sample(frac=1, random_state=1))
    aligned = flat(compare(two(60), resamples=50))
    for key, numbers in flat(compare({"a": a, "b": b}, resamples=50)).items():
        np.testing.assert_array_equal(numbers, aligned[key])
    with pytest.raises(UserError, match="needs two or more runs"):
        compare({"a": a})
    with pytest.raises(UserError, match=r"unknown baseline 'run-1'.*did you mean run-2"):
        compare({"run-2": a, "b": b}, "run-1")


@pytest.mark.parametrize("images", [1, 4])
def test_at_large_n_the_intervals_are_the_normal_ones(images: int) -> None:
    runs = two(4000, images)
    differences = compare(runs, resamples=4000).pairs[0].differences
    ranked = differences["macro_auroc"]
    assert (ranked.high - ranked.low) / 2 == pytest.approx(stats.norm.ppf(0.975) * ranked.value / ranked.z, rel=0.04)
    accuracy = differences["accuracy"]
    d = runs["a"].patients.sums(runs["a"].correct * 1.0 - runs["b"].correct)
    deviation = np.sqrt(((d - d.mean()) ** 2).sum()) / 4000
    assert accuracy.value == pytest.approx(d.sum() / 4000)
    assert (accuracy.high - accuracy.low) / 2 == pytest.approx(stats.norm.ppf(0.975) * deviation, rel=0.04)
    assert (accuracy.high + accuracy.low) / 2 == pytest.approx(accuracy.value)


def test_agreement_on_few_images_proves_little() -> None:
    """Two runs that agree on 60 images: a difference of 3 of them cannot be excluded (rule of three)."""
    pair = compare(align({"a": predictions(table(60, 1)), "b": predictions(table(60, 1))})).pairs[0]
    for metric in RESAMPLED:
        assert pair.differences[metric].value == 0
        assert 0.03 < pair.differences[metric].high < 0.08
    assert [pair.differences[metric].p for metric in TESTS] == [1, 1]


def test_a_single_patient_has_no_interval() -> None:
    runs = two(20, images=20)
    for difference in compare(runs).pairs[0].differences.values():
        assert np.isnan(difference.low)
    zeros = np.zeros((5, 3, 3)) + np.eye(3)
    assert np.isnan(bootstrap_limits(np.zeros(4), (zeros, zeros), np.ones(3), runs["a"].patients, 0)).all()


def test_one_class_alone_has_no_correlation() -> None:
    one = table(40, 1).assign(label="Normal")
    runs = align({"a": predictions(one), "b": predictions(table(40, 2).assign(label="Normal"))})
    comparison = compare(runs, resamples=50)
    assert comparison.pairs[0].differences["mcc"].text() == "-"
    assert np.isnan(comparison.runs["a"]["mcc"].value)
    assert not np.isnan(comparison.pairs[0].differences["accuracy"].low)
    assert forest_figure(comparison).axes
