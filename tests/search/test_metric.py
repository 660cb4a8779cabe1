"""The metric that a search optimises."""

from __future__ import annotations

import pytest

from tests.helpers.verbs import Verb


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("test.accuracy", ["test.accuracy", "only validation images", "no longer test it"]),
        ("test_macro_f1", ["only validation images"]),
        ("train/accuracy", ["memorised"]),
        ("macro_f2", ["did you mean macro_f1"]),
        ("per_class.COVID.recal", ["per_class.CLASS.NAME", "recall"]),
    ],
)
def test_unknown_metrics_and_those_of_other_splits_are_refused(verb: Verb, metric: str, words: list[str]) -> None:
    result = verb("tune.py", "--metric", metric)
    assert result.code == 2
    assert len(result.err.strip().splitlines()) == 1
    assert all(word in result.err for word in words), result.err
