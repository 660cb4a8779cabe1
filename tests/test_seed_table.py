"""The seed's published table: its counts, both sets of definitions, the intervals, and the page itself."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn import metrics as sk

DOCS = Path(__file__).resolve().parents[1] / "docs"
# Right answers, then (TP, FP, FN) per class, worked out by hand from the two READMEs.
BY_HAND = {
    "VGG-16, seed": (226, [(59, 4, 1), (51, 2, 9), (56, 7, 4), (60, 1, 0)]),
    "VGG-16, predecessor": (229, [(59, 0, 1), (53, 3, 7), (58, 7, 2), (59, 1, 1)]),
    "ResNet-18, both": (230, [(58, 1, 2), (52, 0, 8), (60, 8, 0), (60, 1, 0)]),
    "DenseNet-121, both": (230, [(59, 0, 1), (55, 4, 5), (57, 6, 3), (59, 0, 1)]),
}
# "accuracy" per class with all digits, as the predecessor's notebook stores it.
UNROUNDED = {
    "VGG-16, predecessor": (0.9956521739130435, 0.9581589958158996, 0.9621848739495799, 0.9913419913419913),
    "ResNet-18, both": (0.9871244635193133, 0.9663865546218487, 0.9663865546218487, 0.9956709956709957),
    "DenseNet-121, both": (0.9956709956709957, 0.9623430962343096, 0.9623430962343096, 0.9956709956709957),
}
MODELS = list(BY_HAND)


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("seed_table", DOCS / "seed_table.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where the dataclass looks for its module
    path = list(sys.path)
    spec.loader.exec_module(module)
    sys.path[:] = path
    return module


seed_table = _load()


def _counts(model: str) -> tuple:
    (found,) = seed_table.solutions(seed_table.PUBLISHED[model])
    return found


def _get_results(matrix: np.ndarray) -> np.ndarray:
    """The published definitions from a whole matrix: (classes, 4), the columns in the order of the tables."""
    tp = np.diag(matrix)
    fp, fn, tn = matrix.sum(1) - tp, matrix.sum(0) - tp, tp.sum() - tp
    precision, recall = tp / (tp + fp), tp / (tp + fn)
    f1 = 2 * precision * recall / (precision + recall)
    return np.stack([(tp + tn) / (tp + tn + fp + fn), precision, recall, f1], 1)


def _labels(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    truth, answer = np.divmod(np.repeat(np.arange(matrix.size), matrix.ravel()), len(matrix))
    return truth, answer


@pytest.mark.parametrize("model", MODELS)
def test_the_figures_leave_one_set_of_counts(model):
    right, by_hand = BY_HAND[model]
    found = _counts(model)
    assert [(c.tp, c.fp, c.fn) for c in found] == by_hand
    assert seed_table.right_answers(found) == right
    assert sum(c.given for c in found) == 240
    assert sum(c.fp for c in found) == sum(c.fn for c in found) == 240 - right
    assert all(c.tp + c.fn == 60 and c.tp + c.fp + c.fn + c.tn == 240 for c in found)


@pytest.mark.parametrize("model", MODELS)
def test_the_wrong_definitions_give_every_printed_digit(model):
    matrix = np.array(next(seed_table.matrices(_counts(model))))
    cut = 0
    for values, row in zip(_get_results(matrix), seed_table.PUBLISHED[model], strict=True):
        for value, text in zip(values, row, strict=True):
            scale = 10 ** len(text.partition(".")[2])
            printed = round(float(text) * scale)
            rounded, floor = np.floor(value * scale + 0.5), np.floor(value * scale + 1e-9)
            assert printed in (rounded, floor), (text, value)
            cut += printed != rounded
            assert model != "VGG-16, seed" or printed == floor
    assert cut == {"VGG-16, seed": 9, "VGG-16, predecessor": 1, "ResNet-18, both": 2, "DenseNet-121, both": 1}[model]


@pytest.mark.parametrize("model", UNROUNDED)
def test_the_stored_output_of_the_notebook_agrees(model):
    found = _counts(model)
    fractions = [seed_table.as_published(c, seed_table.right_answers(found))[0] for c in found]
    assert [a / b for a, b in fractions] == pytest.approx(UNROUNDED[model], abs=1e-15)


@pytest.mark.parametrize("model", MODELS)
def test_every_matrix_that_fits_has_the_counts_and_scikit_learns_values(model):
    found = _counts(model)
    several = [np.array(matrix) for matrix in seed_table.matrices(found)]
    assert len({matrix.tobytes() for matrix in several}) == len(several) > 1
    ours = {name: [seed_table.right_values(c)[name][0] for c in found] for name in seed_table.right_values(found[0])}
    for matrix in several:
        truth, answer = _labels(matrix)
        np.testing.assert_array_equal(sk.confusion_matrix(truth, answer), matrix)
        precision, recall, f1, support = sk.precision_recall_fscore_support(truth, answer)
        assert list(support) == [60] * 4
        assert ours["precision"] == pytest.approx(precision)
        assert ours["recall"] == pytest.approx(recall)
        assert ours["F1"] == pytest.approx(f1)
        classes = np.arange(4)[:, None]
        assert ours["accuracy"] == pytest.approx(((truth == classes) == (answer == classes)).mean(1))
        assert ours["specificity"] == pytest.approx([sk.recall_score(truth != c, answer != c) for c in range(4)])
        assert seed_table.macro_f1(found) == pytest.approx(sk.f1_score(truth, answer, average="macro"))
        right = seed_table.right_answers(found) / 240
        assert right == pytest.approx(sk.accuracy_score(truth, answer))
        assert right == pytest.approx(sk.balanced_accuracy_score(truth, answer))


def test_matrices_finds_all():
    counts = [seed_table.Counts(60 - fn, 60 - fn + fp) for fn, fp in ((1, 1), (1, 1), (1, 1), (0, 0))]
    assert len(list(seed_table.matrices(counts))) == 2  # the two ways in which three can all swap places


@pytest.mark.parametrize(("hits", "of"), [(58, 60), (60, 60), (52, 52), (230, 240), (172, 180), (0, 7)])
def test_wilson(hits, of):
    value, low, high = seed_table.proportion(hits, of)
    expected = binomtest(hits, of).proportion_ci(0.95, method="wilson")
    assert (value, low, high) == pytest.approx((hits / of, expected.low, expected.high), abs=1e-12)
    other = pytest.importorskip("statsmodels.stats.proportion")
    assert (low, high) == pytest.approx(other.proportion_confint(hits, of, method="wilson"), abs=1e-12)


def test_f1_has_the_interval_of_the_jaccard_index():
    found = _counts("ResNet-18, both")[1]
    expected = binomtest(52, 60).proportion_ci(0.95, method="wilson")  # TP 52, FP 0, FN 8
    _, low, high = seed_table.right_values(found)["F1"]
    assert (low, high) == pytest.approx([2 * j / (1 + j) for j in expected], abs=1e-12)


@pytest.mark.parametrize("lead", range(1, 9))
def test_no_pairing_gives_a_smaller_p_than_the_best(lead):
    ps = [binomtest(alone + lead, 2 * alone + lead).pvalue for alone in range(11)]  # the other model right alone
    assert min(ps) == pytest.approx(seed_table.best_p(lead)) == pytest.approx(ps[0])


def test_the_intervals_of_the_models_overlap():
    limits = [binomtest(right, 240).proportion_ci(0.95, method="wilson") for right, _ in BY_HAND.values()]
    assert max(limit.low for limit in limits) < min(right for right, _ in BY_HAND.values()) / 240


@pytest.mark.parametrize("change", [("0.9836", "0.9833"), ("0.9957", "0.9952"), ("1.0000", "0.9900")])
def test_figures_that_contradict_each_other_have_no_counts(change):
    *rows, last = seed_table.PUBLISHED["ResNet-18, both"]
    old, new = change
    assert seed_table.solutions([*rows, tuple(new if text == old else text for text in last)]) == []


def test_the_page_is_the_programs_output():
    run = subprocess.run([sys.executable, DOCS / "seed_table.py"], capture_output=True, check=True)
    assert run.stdout.decode() == (DOCS / "seed-table.md").read_text(encoding="utf-8")


def test_the_page_is_short():
    lines = (DOCS / "seed-table.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 90
    assert all(len(line) <= 120 for line in lines if not line.startswith("|"))
