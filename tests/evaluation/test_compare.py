"""compare.py against statsmodels, SciPy, brute force and textbook loops; and bad input."""

from __future__ import annotations

import itertools
import json
import sys
from fractions import Fraction
from math import comb
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sk
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from evaluation import compare
from evaluation.comparison.inputs import align, default_folder
from evaluation.comparison.paired import (
    RESAMPLED,
    bootstrap_limits,
    class_metrics,
    delong_test,
    holm,
    resampled_confusions,
    sign_flip_test,
)
from evaluation.comparison.pairs import TESTS
from evaluation.comparison.report import cautions
from evaluation.figures.forest import forest_figure
from evaluation.metrics.table import Sample
from evaluation.predictions import Predictions
from tests.helpers.verbs import Verb, refused
from utils import UserError

CLASSES = ["COVID", "Lung_Opacity", "Normal"]


def table(n: int, seed: int, shift: float = 1.5, images: int = 1, digits: int = 3) -> pd.DataFrame:
    """Return predictions of n images, `images` per patient; two seeds are two models on the same images.

    Probabilities have `digits` digits (few make ties) and sum to 1.
    """
    labels = np.repeat(np.random.default_rng(0).integers(0, len(CLASSES), -(-n // images)), images)[:n]
    scores = np.random.default_rng(seed).normal(size=(n, len(CLASSES))) + shift * np.eye(len(CLASSES))[labels]
    powered = np.exp(scores)
    probabilities = np.floor(powered / powered.sum(1, keepdims=True) * 10**digits)
    probabilities[np.arange(n), scores.argmax(1)] += 10**digits - probabilities.sum(1)
    frame = pd.DataFrame({"path": [f"/data/{i:05d}.png" for i in range(n)], "sha256": [f"{i:064x}" for i in range(n)]})
    frame["label"] = np.array(CLASSES)[labels]
    frame[[f"p_{name}" for name in CLASSES]] = probabilities / 10**digits
    frame["group"] = [f"patient {i // images}" for i in range(n)]
    return frame


def predictions(frame: pd.DataFrame, classes: list[str] = CLASSES) -> Predictions:
    return Predictions(frame.copy(), list(classes))


def two(n: int, images: int = 1) -> dict[str, Predictions]:
    return align({"a": predictions(table(n, 1, 1.5, images)), "b": predictions(table(n, 2, 1.2, images))})


# The exact test of accuracy.


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60), st.integers(0, 20))
def test_one_image_per_patient_is_mcnemar(only_a: int, only_b: int, both: int) -> None:
    p = sign_flip_test(np.repeat([1, -1, 0], [only_a, only_b, both]))
    if only_a + only_b:
        assert p == pytest.approx(stats.binomtest(only_a, only_a + only_b).pvalue, rel=1e-9)
    assert p == pytest.approx(mcnemar([[both, only_a], [only_b, 0]], exact=True).pvalue, rel=1e-9)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10))
def test_sign_flips_by_enumeration(differences: list[int]) -> None:
    totals = [abs(np.dot(signs, differences)) for signs in itertools.product((-1, 1), repeat=len(differences))]
    expected = np.mean(np.array(totals) >= abs(sum(differences)))
    assert sign_flip_test(np.array(differences)) == pytest.approx(expected, rel=1e-12)


def test_small_chances_are_exact() -> None:
    """Against whole numbers without rounding: 500 patients of up to three images, p about 1e-12."""
    differences = np.random.default_rng(3).choice([-2, -1, 0, 1, 2, 3], 500, p=[0.05, 0.15, 0.4, 0.2, 0.1, 0.1])
    ways = {0: 1}
    for size in np.abs(differences[differences != 0]).tolist():
        step: dict[int, int] = {}
        for total, count in ways.items():
            for end in (total - size, total + size):
                step[end] = step.get(end, 0) + count
        ways = step
    far = sum(count for total, count in ways.items() if abs(total) >= abs(differences.sum()))
    exact = float(Fraction(far, sum(ways.values())))
    assert exact < 1e-9
    assert sign_flip_test(differences) == pytest.approx(exact, rel=1e-10)


def test_sign_flips_of_many_images_keep_their_tail() -> None:
    assert sign_flip_test(np.repeat([1, -1], [600, 400])) == pytest.approx(
        float(Fraction(2 * sum(comb(1000, k) for k in range(401)), 2**1000)), rel=1e-10
    )
    differences = np.random.default_rng(0).integers(-4, 5, 21_165)
    z = differences.sum() / np.sqrt((differences**2).sum())
    assert sign_flip_test(differences) == pytest.approx(2 * stats.norm.sf(abs(z)), abs=0.01)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)  # statsmodels collects garbage in every call
@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_against_statsmodels(p: list[float]) -> None:
    np.testing.assert_allclose(holm(p), multipletests(p, method="holm")[1], rtol=1e-12)


def test_holm_leaves_out_what_has_no_test() -> None:
    np.testing.assert_array_equal(holm([0.03, np.nan, 0.01]), [0.03, np.nan, 0.02])


# DeLong.


def textbook(positive: np.ndarray, a: np.ndarray, b: np.ndarray, patients: np.ndarray) -> tuple[float, float]:
    """Return an AUROC and the variance of a difference by double loops (DeLong 1988, Obuchowski 1997 for patients)."""
    x, y = np.flatnonzero(positive), np.flatnonzero(~positive)
    components = np.zeros((2, len(positive)))
    for scores, sign in ((a, 1), (b, -1)):
        for i, j in itertools.product(x, y):
            better = sign * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
            components[0, i] += better / len(y)
            components[1, j] += better / len(x)
    value = components[0, x].mean()
    every = sorted(set(patients))
    sums = [[components[0, i] - value for i in x if patients[i] == name] for name in every]
    others = [[components[1, j] - value for j in y if patients[j] == name] for name in every]
    first, second = len([part for part in sums if part]), len([part for part in others if part])
    s10 = sum(sum(part) ** 2 for part in sums) * first / (first - 1) / len(x)
    s01 = sum(sum(part) ** 2 for part in others) * second / (second - 1) / len(y)
    s11 = sum(sum(u) * sum(v) for u, v in zip(sums, others, strict=True)) * len(every) / (len(every) - 1)
    return value, s10 / len(x) + s01 / len(y) + 2 * s11 / len(x) / len(y)


@pytest.mark.parametrize("images", [1, 3])
def test_delong_against_the_textbook(images: int) -> None:
    runs = {name: predictions(table(60, seed, 1.0, images, 1)) for name, seed in (("a", 1), ("b", 2))}
    a, b = runs["a"], runs["b"]
    differences = delong_test(Sample(a), Sample(b))
    for i in range(len(CLASSES)):
        value, variance = textbook(
            a.labels == i, a.probabilities[:, i], b.probabilities[:, i], a.table["group"].to_numpy()
        )
        z = value / np.sqrt(variance)
        assert differences[i].value == pytest.approx(value, abs=1e-12)
        assert differences[i].z == pytest.approx(z, abs=1e-9)
        assert differences[i].p == pytest.approx(2 * stats.norm.sf(abs(z)), abs=1e-9)


@pytest.mark.parametrize("images", [1, 2])
def test_the_mean_auroc_agrees_with_the_jackknife(images: int) -> None:
    tables = {name: table(160, seed, 1.5, images) for name, seed in (("a", 1), ("b", 2))}
    runs = {name: predictions(part) for name, part in tables.items()}
    a = runs["a"]
    macro = delong_test(Sample(a), Sample(runs["b"]))[-1]

    def difference(kept: np.ndarray) -> float:
        areas = [
            sk.roc_auc_score(run.labels[kept] == i, run.probabilities[kept, i])
            for run in runs.values()
            for i in range(3)
        ]
        return np.mean(areas[:3]) - np.mean(areas[3:])

    count = a.patients.count
    left_out = np.array([difference(a.patients.number != i) for i in range(count)])
    deviation = np.sqrt((count - 1) * left_out.var())
    assert macro.value == pytest.approx(difference(np.ones(160, bool)), abs=1e-12)
    assert macro.value / macro.z == pytest.approx(deviation, rel=0.04)


def test_delong_without_variance() -> None:
    a = predictions(table(50, 1))
    same = delong_test(Sample(a), Sample(a))
    assert all(part.value == 0 and part.p == 1 and part.low < 0 < part.high for part in same)
    perfect = a.table.drop(columns=["predicted", "confidence"])
    constant = perfect.copy()
    for name in CLASSES:
        perfect[f"p_{name}"], constant[f"p_{name}"] = (a.table["label"] == name).astype(float), 1 / 3
    differences = delong_test(Sample(predictions(perfect)), Sample(predictions(constant)))
    assert [part.value for part in differences] == [0.5] * 4
    assert all(np.isnan(part.p) and not part.significant for part in differences)
    lonely = predictions(table(50, 1).assign(label=["COVID", *["Normal"] * 49]))
    *by_class, macro = delong_test(Sample(lonely), Sample(a))
    assert all(np.isnan(part.p) for part in (*by_class, macro))


# Intervals.


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(max_examples=60, deadline=None)
@given(st.integers(2, 5), st.integers(1, 60), st.integers(0, 10**6))
def test_stacked_metrics_against_scikit_learn(classes: int, n: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels, predicted = rng.integers(0, classes, (2, n))
    present = np.unique(labels)
    expected = [
        sk.accuracy_score(labels, predicted),
        sk.recall_score(labels, predicted, labels=present, average="macro"),
        sk.f1_score(labels, predicted, labels=present, average="macro"),
        sk.matthews_corrcoef(labels, predicted),
    ]
    confusion = sk.confusion_matrix(labels, predicted, labels=range(classes))
    np.testing.assert_allclose(class_metrics(np.stack([confusion] * 2)), [expected] * 2, atol=1e-12)


def test_resampled_confusions_are_those_of_the_drawn_images() -> None:
    runs = list(two(40, images=3).values())
    resampled = resampled_confusions(runs, 5, seed=7)
    patients = runs[0].patients
    for draw, weights in enumerate(np.concatenate(list(patients.resamples(5, 7)))):
        rows = np.repeat(np.arange(40), weights[patients.number].astype(int))
        for i, run in enumerate(runs):
            confusion = sk.confusion_matrix(run.labels[rows], run.predicted[rows], labels=range(3))
            np.testing.assert_array_equal(resampled[draw, i], confusion)


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


@pytest.mark.slow
def test_the_coverage_simulation() -> None:
    """Limits beside the usual ones for every metric, and a pair of models as different as its setting says."""
    sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
    try:
        import coverage_of_differences as simulation
    finally:
        sys.path.pop(0)
    setting = (3.25, 2.7, 0.5, 240, 3)
    first, second = simulation.draw((*setting[:3], 30_000, 1), np.random.default_rng(0))
    assert 0.02 < first.correct.mean() - second.correct.mean() < 0.06
    result = simulation.coverage(setting, 3, np.zeros(5))
    assert result["held"].shape == (2, 5) and 0.04 < result["apart"] < 0.12
    ours, usual = simulation.limits(simulation.draw(setting, np.random.default_rng(1)))
    assert (ours[0] < ours[1]).all() and (usual[0] <= usual[1]).all()
    assert (simulation.coverage(setting, 3, np.full(5, 9.0))["held"] == 0).all()


# Matching.


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


def test_disagreement_about_patients_is_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("utils.log.propagate", True)
    a = table(30, 1, images=3)
    b = table(30, 2, images=3).assign(group=[f"p{i // 2}" for i in range(30)])
    runs = align({"a": predictions(a), "b": predictions(b)})
    assert "disagree about the patients" in caplog.text
    assert runs["b"].patients.count == 10
    caplog.clear()
    renamed = a.assign(group=a["group"].str.upper())
    assert align({"a": predictions(a), "b": predictions(renamed)})["b"].patients.count == 10
    assert not caplog.text


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


A = table(30, 1)
FALSE = [CLASSES[CLASSES.index(A["label"][0]) - 1], *A["label"][1:]]


@pytest.mark.parametrize(
    ("wrong", "classes", "expected"),
    [
        (A.iloc[2:], CLASSES, ("(matched by sha256)", "2 only in a (such as /data/00000.png)", "0 only in b")),
        (
            A.drop(columns="sha256").assign(path=A["path"] + "x"),
            CLASSES,
            ("(matched by path)", "30 only in a", "30 only in b"),
        ),
        (A.assign(label=FALSE), CLASSES, ("the true class of 1 of 30 images", "/data/00000.png is")),
        (
            A.rename(columns={"p_COVID": "p_x"}).replace("COVID", "x"),
            ["x", *CLASSES[1:]],
            ("only a: COVID; only b: x",),
        ),
    ],
    ids=["fewer", "others", "labels", "classes"],
)
def test_runs_that_cannot_be_compared(wrong: pd.DataFrame, classes: list[str], expected: tuple[str, ...]) -> None:
    with pytest.raises(UserError) as error:
        align({"a": predictions(A), "b": predictions(wrong, classes)})
    assert all(words in str(error.value) for words in (*expected, "a and b")), error.value


# The figure.


@pytest.mark.parametrize("count", [2, 4, 10])
def test_nothing_in_the_forest_plot_overlaps(count: int) -> None:
    long = [f"timm-tf_efficientnet_lite{i}-20261123-12453{i}" + "-and_more_$x_1$" * (i % 3) for i in range(count)]
    runs = align({name: predictions(table(60, i, 1 + i / 5)) for i, name in enumerate(long)})
    figure = forest_figure(compare(runs, long[0] if count > 4 else None, resamples=50))
    figure.draw_without_rendering()
    for ax in figure.axes:
        labels = [label for label in ax.get_yticklabels() if label.get_visible() and label.get_text()]
        boxes = [
            text.get_window_extent() for text in (*(labels if ax.get_subplotspec().is_first_col() else []), *ax.texts)
        ]
        boxes += [ax.get_window_extent()]
        assert not [pair for pair in itertools.combinations(boxes, 2) if pair[0].overlaps(pair[1])]
        assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)


# The verb.


def write_run(folder: Path, frame: pd.DataFrame, split: str = "test") -> Path:
    (folder / split).mkdir(parents=True)
    frame.to_csv(folder / split / "predictions.csv", index=False)
    (folder / "config.yaml").touch()
    return folder


def test_the_verb(verb: Verb, tmp_path: Path) -> None:
    a = write_run(tmp_path / "run a", table(80, 1, 3.0))
    b = write_run(tmp_path / "b", table(80, 2, 0.5))
    other = tmp_path / "other.csv"
    table(80, 3, 1.0)[["path", "label", *(f"p_{name}" for name in CLASSES)]].to_csv(other, index=False)
    result = verb("compare.py", a, b / "test", other, "--save", tmp_path / "runs")
    assert result.code == 0, result.err
    folder = tmp_path / "runs" / "compare-run a-vs-b-vs-other"
    assert {path.name for path in folder.iterdir()} == {"comparison.csv", "comparison.json", "forest.png"}
    assert "run a is better than b in accuracy and macro AUROC" in result.out
    assert "Caution: only 80 images; fewer than 30 images of" in result.out
    assert "replacing" not in result.out
    rows = pd.read_csv(folder / "comparison.csv")
    assert rows.columns.tolist() == ["a", "b", "metric", "difference", "low", "high", "p", "p_holm"]
    assert len(rows) == 3 * (5 + len(CLASSES))
    content = json.loads((folder / "comparison.json").read_text())
    assert [(pair["a"], pair["b"]) for pair in content["pairs"]] == [("run a", "b"), ("run a", "other"), ("b", "other")]
    first = content["pairs"][0]
    right = {
        name: (part["label"] == part.filter(like="p_").idxmax(axis=1).str[2:])
        for name, part in (("a", table(80, 1, 3.0)), ("b", table(80, 2, 0.5)))
    }
    counts = int((right["a"] & ~right["b"]).sum()), int((right["b"] & ~right["a"]).sum())
    assert (first["only_a_right"], first["only_b_right"]) == counts
    row = rows.set_index(["a", "b", "metric"]).loc[("run a", "b", "accuracy")]
    assert row["p"] == pytest.approx(stats.binomtest(counts[0], sum(counts)).pvalue)
    assert row["difference"] == pytest.approx(right["a"].mean() - right["b"].mean())
    assert row["low"] == first["differences"]["accuracy"]["low"]
    again = verb("compare.py", b, a, "--output", folder, "--baseline", b)
    assert "replacing the earlier comparison" in again.out
    assert json.loads((folder / "comparison.json").read_text())["baseline"] == "b"
    assert "p (Holm)" in result.out
    assert "p (Holm)" not in again.out


def test_a_run_trained_on_the_images_is_not_called_better(verb: Verb, tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", table(160, 1, 3.0)), write_run(tmp_path / "b", table(160, 2, 0.5))
    severe, mild = "The model was trained on 9 of these 160 images.", "Small."
    warnings = [{"level": "caution", "text": mild}, {"level": "severe", "text": severe}]
    (a / "test" / "metrics.json").write_text(json.dumps({"warnings": warnings}))
    out = tmp_path / "out"
    for order in ((a, b), (b, a)):
        result = verb("compare.py", *order, "--output", out)
        assert f"WARNING: a: {severe}" in result.out and mild not in result.out
        assert "better than" not in result.out and "a scores higher than b in accuracy" in result.out
    content = json.loads((out / "comparison.json").read_text())
    assert content["warnings"] == {"a": [severe]}
    assert "do not trust a" in content["pairs"][0]["verdict"]
    figure = forest_figure(compare(two(60), resamples=50, distrusted={"a": [severe]}))
    assert "Do not trust a" in figure.get_suptitle()
    (a / "test" / "metrics.json").write_text(json.dumps({"warnings": []}))
    (b / "test" / "metrics.json").write_text(json.dumps({"warnings": warnings}))
    assert "a is better than b" in verb("compare.py", a, b, "--output", out).out  # in spite of what b had seen
    (b / "test" / "metrics.json").write_text("[]")
    refused(verb("compare.py", a, b, "--output", out), "b/test/metrics.json")


def test_the_default_folder_has_a_valid_distinct_name() -> None:
    """Three names of 40 CJK letters are 360 bytes; names that only differ at their ends keep two folders."""
    for letter in ("x", "影"):
        folders = {default_folder([letter * 40, letter * 39, letter * 38 + end], "val", "b") for end in "ab"}
        assert len(folders) == 2
        assert all(len(folder.encode()) <= 255 and folder.endswith("-val-baseline") for folder in folders)
    assert default_folder(["a", "x/b"], "test", None) == "compare-a-vs-x-b"


def test_names_are_as_short_as_possible(verb: Verb, tmp_path: Path) -> None:
    paths = [write_run(tmp_path / name, table(40, i)) for i, name in enumerate(("x/one", "y/one", "y/two"))]
    out = tmp_path / "out"
    assert verb("compare.py", *paths, "--output", out).code == 0
    assert list(json.loads((out / "comparison.json").read_text())["runs"]) == ["x/one", "y/one", "two"]
    table(40, 9).to_csv(tmp_path / "one.csv", index=False)
    table(40, 8).to_csv(tmp_path / "x" / "one" / "predictions.csv", index=False)
    paths = [tmp_path / "one.csv", tmp_path / "x" / "one" / "predictions.csv", tmp_path / "x" / "one" / "test"]
    assert verb("compare.py", *paths, "--output", out).code == 0
    assert len(json.loads((out / "comparison.json").read_text())["runs"]) == 3


def test_bad_input_is_one_line(verb: Verb, tmp_path: Path) -> None:
    a, b = write_run(tmp_path / "a", table(40, 1)), write_run(tmp_path / "b", table(40, 2))
    (tmp_path / "empty").mkdir()
    refused(verb("compare.py", a, tmp_path / "no"), "no such run folder or file")
    refused(verb("compare.py", a, tmp_path / "empty"), "not a run folder and has no predictions.csv")
    refused(verb("compare.py", a, b, "--kind", "val"), f"python test.py --weights {a} --kind val")
    refused(verb("compare.py", a), "one run alone")
    refused(verb("compare.py", a, "--baseline", a), "one run alone")
    refused(verb("compare.py"), "RUN")
    refused(verb("compare.py", a, b, a / "test"), "given twice")
    twice = table(40, 1)
    write_run(tmp_path / "twice", twice.assign(path=[twice["path"][1], *twice["path"][1:]]))
    refused(verb("compare.py", a, tmp_path / "twice"), "occurs twice")
    write_run(tmp_path / "fewer", twice.iloc[1:])
    refused(verb("compare.py", a, tmp_path / "fewer"), "a and fewer", "1 only in a", "/data/00000.png")
    write_run(tmp_path / "labels", twice.assign(label="Normal"))
    refused(verb("compare.py", a, tmp_path / "labels"), "a and labels", "true class")
    write_run(tmp_path / "classes", twice.rename(columns={"p_COVID": "p_x"}).replace({"COVID": "x"}))
    refused(verb("compare.py", a, tmp_path / "classes"), "only a: COVID", "only classes: x")
    (tmp_path / "empty" / "notes.txt").touch()
    refused(verb("compare.py", a, b, "--output", tmp_path / "empty"), "other files in it")
    refused(verb("compare.py", a, b, "--output", tmp_path / "empty", "sed=3"), "did you mean seed")
    refused(verb("compare.py", a, b, "train.lr=0.1"), "train.lr=0.1", "save and seed")
    assert not (tmp_path / "empty" / "comparison.json").exists()
