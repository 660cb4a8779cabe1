"""The table of scores: by hand, against pandas, SciPy and statsmodels; its sentences and its figure."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.proportion import proportion_confint

from localization.drawing.summary_figure import draw_summary, shown_classes, summary_figure
from localization.methods.table import METHODS
from localization.scoring.rows import CONTROLS, SCORES, MapRow
from localization.scoring.summary import COLUMNS, SummaryRow, by_method, summarise, write_summary
from localization.scoring.summary_text import format_summary, verdict_lines
from localization.states import MapState

NAN = float("nan")


def _row(path: str, control: str = "", method: str = "gradcam", **more: Any) -> MapRow:
    """The row of a correctly classified image of class A, of its own patient unless `group` says another."""
    fields = {"model": "m", "path": path, "group": path, "label": "A", "predicted": "A", "target": "A", "peak": 1.0}
    fields |= {"method": method, "control": control, "state": MapState.OK}
    fields["scores"] = {name: more.pop(name) for name in SCORES if name in more}
    return MapRow(**fields | more)


def _rows(
    values: list[float], control: str, controls: list[float], score: str = "lesion_lift", **more: Any
) -> list[MapRow]:
    """Images with their own score and a control's."""
    return [
        row
        for i, (a, b) in enumerate(zip(values, controls, strict=True))
        for row in (_row(str(i), **{score: a}, **more), _row(str(i), control, **{score: b}, **more))
    ]


def _only(rows: list[MapRow]) -> SummaryRow:
    (line,) = summarise(rows)
    return line


def _table(classes: list[str], methods: list[str], models: tuple[str, ...] = ("m",), images: int = 8) -> list[MapRow]:
    """Random scores of every kind, two images per patient, with all controls; class N has no lesions.

    The lungs' lift is better than the controls', nothing else is.
    """
    rng, rows = np.random.default_rng(0), []
    for model, name, image, method in (
        (model, name, image, method)
        for model in models
        for name in classes
        for image in range(images)
        for method in methods
    ):
        where = {"model": model, "label": name, "predicted": name, "target": name, "group": f"{name}{image // 2}"}
        for control in ("", *CONTROLS):
            scores = {s: rng.lognormal(0, 0.3) for s in SCORES if name != "N" or not s.startswith("lesion")}
            scores["lung_lift"] *= 1 if control else 3
            scores |= {s: float(rng.random() < 0.4) for s in scores if s.endswith(("hit", "increase"))}
            state = MapState(rng.choice(["ok", "ok", "diffuse", "empty"])) if not control else MapState.OK
            rows.append(_row(f"{name}{image}", control, method, state=state, **where, **scores))
    return rows


def test_by_hand() -> None:
    """Patients p (1 and 3) and q (2): mean 2; of the sums of deviations 0 and 0 the interval has no width."""
    rows = [
        _row("1", group="p", lung_lift=1.0, lesion_lift=2.0),
        _row("2", group="p", lung_lift=3.0, state=MapState.DIFFUSE),
        _row("3", group="q", lung_lift=2.0, state=MapState.BORDER),
        _row("4", group="q", lung_lift=99.0, state=MapState.EMPTY),
        _row("5", group="q", predicted="B", target="B", lung_lift=99.0),
        _row("6", group="q", target="B", lung_lift=99.0),
    ]
    lung, lesion = summarise(rows)
    assert (lung.score, lung.value, lung.low, lung.high) == ("lung_lift", 2, 2, 2)
    assert (lung.n, lung.patients, lung.maps) == (3, 2, 4)
    assert lung.states == {"ok": 1, "diffuse": 1, "border": 1, "empty": 1}
    assert (lesion.value, lesion.n, lesion.patients) == (2, 1, 1)
    assert np.isnan([lesion.low, lesion.high, *lesion.controls.values()]).all()
    assert lesion.better_than == ()


def test_unlabelled_images_and_all() -> None:
    rows = [
        _row("1", lung_lift=1.0),
        _row("2", label="", predicted="B", target="B", lung_lift=3.0),
        _row("3", label="B", predicted="B", target="B", lung_lift=5.0),
    ]
    values = {line.class_name: (line.value, line.n) for line in summarise(rows)}
    assert values == {"(B)": (3, 1), "A": (1, 1), "B": (5, 1), "all": (3, 3)}
    assert list(values)[-1] == "all"
    assert [line.class_name for line in summarise(rows[:1])] == ["A"]


def test_means_are_those_of_pandas() -> None:
    rows = _table(["A", "N"], ["gradcam", "occlusion"], ("m", "k"))
    table = pd.DataFrame([vars(row) | row.scores for row in rows])
    keys, scores = ["model", "path", "method"], list(SCORES)
    scored = table[(table["control"] == "") & (table["state"] != "empty")]
    controls = {name: scored[keys].merge(table[table["control"] == name], on=keys) for name in CONTROLS}
    lines = by_method(summarise(rows))
    assert len(lines) == 2 * 3 * 2
    for (model, name, method), summary_lines in lines.items():
        of_class = ["A", "N"] if name == "all" else [name]

        def mean(part: pd.DataFrame) -> list[float]:
            chosen = (part["model"] == model) & (part["method"] == method) & part["label"].isin(of_class)  # noqa: B023
            return part.loc[chosen, scores].mean().tolist()

        assert list(summary_lines) == scores  # class N makes lines without values for the lesions, which the other has
        np.testing.assert_allclose([line.value for line in summary_lines.values()], mean(scored))
        for control, part in controls.items():
            np.testing.assert_allclose([line.controls[control] for line in summary_lines.values()], mean(part))


@pytest.mark.parametrize("score", ["lesion_lift", "deletion"])
def test_better_is_the_paired_t_interval(score: str) -> None:
    """With one image per patient, SciPy's; lower is better for deletion. Both outcomes occur."""
    sign, seen = -1 if score == "deletion" else 1, []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        controls = rng.lognormal(size=9)
        values = controls + sign * rng.normal(0.5, 0.6, 9)
        line = _only(_rows(list(values), "gaussian", list(controls), score))
        interval = stats.ttest_rel(sign * values, sign * controls).confidence_interval()
        assert (line.better_than == ("gaussian",)) == (interval.low > 0)
        assert line.controls["gaussian"] == pytest.approx(controls.mean())
        seen.append(bool(line.better_than))
    assert 5 < sum(seen) < 35


def test_differences_are_of_the_images_that_have_both() -> None:
    """An image without the control counts for the value, not for the difference."""
    line = _only(_rows([2, 2.1, 2.2, 0], "randomised", [1, 1, 1.1, NAN]))
    assert (line.n, line.value) == (4, pytest.approx(1.575))
    assert line.controls["randomised"] == pytest.approx(3.1 / 3)
    assert line.better_than == ("randomised",)
    assert _only(_rows([2, 2.1, 2.2, 0], "randomised", [1, 1, 1.1, 1])).better_than == ()
    line = _only(_rows([1] * 3 + [0] * 4, "randomised", [0.3] * 3 + [NAN] * 4, "lesion_hit"))
    assert line.better_than == ("randomised",)


def test_one_patient_proves_nothing() -> None:
    for score in ("lesion_lift", "lesion_hit"):
        line = _only(_rows([1, 1, 1, 1], "uniform", [0.1, 0.1, 0, 0], score, group="p"))
        assert np.isnan([line.low, line.high]).all()
        assert (line.patients, line.better_than) == (1, ())


def test_rounding_is_no_difference() -> None:
    assert _only(_rows([1 + 1e-15] * 5, "uniform", [1.0] * 5)).better_than == ()
    assert _only(_rows([1.01] * 5, "uniform", [1.0] * 5)).better_than == ("uniform",)


def test_hits_are_a_proportion() -> None:
    """Wilson's interval, which has a width where all hit; a score whose values only happen to be 1 is a mean."""
    line = _only(_rows([1.0] * 12, "uniform", [0.2] * 12, "lesion_hit"))
    assert (line.low, line.high) == pytest.approx(proportion_confint(12, 12, method="wilson"))
    assert line.better_than == ("uniform",)
    line = _only(_rows([1.0] * 3, "uniform", [0.4] * 3, "lesion_hit"))  # three hits: down to 0.44, not told from 0.4
    assert line.better_than == ("uniform",)
    assert _only(_rows([1.0] * 3, "uniform", [0.5] * 3, "lesion_hit")).better_than == ()
    line = _only(_rows([1.0] * 3, "uniform", [0.5] * 3))
    assert (line.low, line.high) == (1, 1)


def test_shared_hits_are_a_mean() -> None:
    values = [1, 0.5, 0, 1, 1]
    line = _only(_rows(values, "uniform", [0.2] * 5, "lesion_hit"))
    interval = stats.ttest_1samp(values, 0).confidence_interval()
    assert line.low == pytest.approx(interval.low)
    assert line.high == 1 < interval.high  # a share has no more


@pytest.mark.parametrize(("pairs", "better"), [((36, 12, 2, 0), True), ((20, 6, 0, 24), True), ((20, 7, 3, 20), False)])
def test_the_difference_of_hits_is_newcombes(pairs: tuple[int, ...], better: bool) -> None:
    """Newcombe 1998, method 10: both, the first, the second, none hit. The correlation decides the second case."""
    hits, control_hits = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], pairs, axis=0).T
    (low, _), (_, high) = (proportion_confint(v.sum(), 50, method="wilson") for v in (hits, control_hits))
    phi = np.corrcoef(hits, control_hits)[0, 1]
    below, above = hits.mean() - low, high - control_hits.mean()
    limit = hits.mean() - control_hits.mean() - np.sqrt(below**2 + above**2 - 2 * phi * below * above)
    line = _only(_rows(list(hits), "gaussian", list(control_hits), "lesion_hit"))
    assert bool(line.better_than) == (limit > 0) == better
    assert _only(_rows(list(control_hits), "gaussian", list(hits), "lesion_hit")).better_than == ()


def test_the_share_of_the_oracle() -> None:
    rows = _rows([1.0, 2.0], "oracle", [4.0, 8.0])
    assert _only(rows).of_oracle == pytest.approx(0.25)
    assert _only(_rows([1.0, 2.0], "oracle", [4.0, NAN])).of_oracle == pytest.approx(0.25)
    assert np.isnan(_only(_rows([1.0, 2.0], "oracle", [4.0, 8.0], "deletion")).of_oracle)
    assert np.isnan(_only(_rows([1.0, 2.0], "oracle", [0.0, 0.0])).of_oracle)


def test_nothing_to_summarise(tmp_path: Path) -> None:
    for rows in ([], [_row("1", state=MapState.EMPTY, lung_lift=1.0)], [_row("1")], [_row("1", predicted="B")]):
        summary = summarise(rows)
        assert (summary, format_summary(summary), verdict_lines(summary)) == ([], "", [])
        (tmp_path / "scores.png").touch()
        write_summary(tmp_path / "scores.csv", summary)
        draw_summary(tmp_path / "scores.png", summary)
        assert (tmp_path / "scores.csv").read_text() == ",".join(COLUMNS) + "\n"
        assert not (tmp_path / "scores.png").exists()


def test_the_file_holds_the_summary(tmp_path: Path) -> None:
    summary = summarise(_table(["A", "N"], ["gradcam", "occlusion"]))
    write_summary(tmp_path / "scores.csv", summary)
    draw_summary(tmp_path / "scores.png", summary)
    with (tmp_path / "scores.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert len(table) == len(summary)
    for row, line in zip(table, summary, strict=True):
        assert list(row) == COLUMNS
        assert row["better_than"].split() == list(line.better_than)
        for key in ("value", "low", "high", "of_oracle", *CONTROLS):
            value = line.controls[key] if key in CONTROLS else getattr(line, key)
            assert (row[key] == "") == np.isnan(value)
            assert row[key] == "" or float(row[key]) == pytest.approx(value, rel=1e-5)
    assert any(row["value"] == "" for row in table)
    assert (tmp_path / "scores.png").read_bytes().startswith(b"\x89PNG")


def test_the_table_of_one_method() -> None:
    """Two images of two patients: 1 and 3 is 2 ± 12.7, and no lift is below 0."""
    rows = _rows([1.0, 3.0], "oracle", [4.0, 4.0])
    text = format_summary(summarise([*rows, _row("9", state=MapState.EMPTY)]))
    assert text.splitlines() == [
        "Grad-CAM  maps  empty         lesion lift  of oracle",
        "A            3      1  2.00 [0.00, 14.71]       50 %",
    ]


def test_the_table_of_many() -> None:
    methods = list(METHODS)[:5]
    summary = summarise(_table(["A", "N"], methods, ("m", "k"), images=4))
    lines = format_summary(summary).splitlines()
    assert len(lines) == 1 + 2 * 3 * (1 + 5)
    assert max(map(len, lines)) <= 150
    assert [line for line in lines if not line.startswith(" ")] == ["m, A", "m, N", "m, all", "k, A", "k, N", "k, all"]
    cells = by_method(summary)
    line = cells["k", "A", methods[3]]["lesion_lift"]
    shown = lines[lines.index("k, A") + 4]
    assert shown.split()[0] == METHODS[methods[3]].title
    assert f"{line.value:.2f} [{line.low:.2f}, {line.high:.2f}]" in shown
    assert f"{cells['k', 'A', methods[3]]['deletion'].value:.2f}" in shown


def _line(low: float, value: float, high: float, better: tuple[str, ...] = (), **more: Any) -> SummaryRow:
    controls = {"uniform": 1.0, "gaussian": 1.3, "randomised": 1.1, "oracle": 4.0}
    controls = {name: more.pop(name, number) for name, number in controls.items()}
    fields = {"model": "m", "class_name": "A", "method": "gradcam", "score": "lesion_lift", "states": {}, "maps": 9}
    fields |= {"n": 9, "patients": 9, "value": value, "low": low, "high": high, "better_than": better}
    return SummaryRow(**fields | {"controls": controls, "n_randomised": 9, "of_oracle": 0.3} | more)


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        (_line(0.89, 1.06, 1.23), "not shown to be above chance on the lesions (lift 1.06 [0.89, 1.23])."),
        (_line(0.5, 0.6, 0.7), "below chance on the lesions (lift 0.60 [0.50, 0.70])."),
        (
            _line(1.1, 1.2, 1.3, ("uniform",), score="lung_lift", gaussian=NAN, randomised=NAN),
            "above chance on the lungs",
        ),
        (_line(NAN, 1.2, NAN), "a single patient shows nothing about the lesions (lift 1.20)."),
        (
            _line(1.1, 1.2, 1.3, ("uniform", "randomised")),
            "above chance on the lesions (lift 1.20 [1.10, 1.30]), "
            "but not shown to be above a centred Gaussian (1.30).",
        ),
        (
            _line(1.1, 1.2, 1.3, ("uniform",)),
            "but not shown to be above a centred Gaussian (1.30) or the same method on a randomised model (1.10).",
        ),
        (
            _line(1.6, 1.7, 1.8, ("uniform", "gaussian", "randomised")),
            "and above a centred Gaussian and the same method on a randomised model.",
        ),
    ],
)
def test_verdicts(line: SummaryRow, verdict: str) -> None:
    first, _ = verdict_lines([line])
    assert first.startswith("Grad-CAM, A: ")
    assert verdict in first
    assert ("not shown to be above chance" in first or "below" in first) == (
        "not shown to be above chance" in verdict or "below" in verdict
    )


def test_the_verdict_on_all_methods() -> None:
    better = ("uniform", "gaussian", "randomised")
    one, two = _line(1.6, 1.7, 1.8, better), _line(1.1, 1.2, 1.3, ("uniform", "oracle"), method="occlusion")
    assert verdict_lines([one, two])[1:] == [
        "Better than the uniform, Gaussian and randomised controls on the lesions: Grad-CAM "
        "(95 % each, not corrected for 2 methods)."
    ]
    assert verdict_lines([two, replace(two, method="gradcam")])[1:] == [
        "Better than the uniform, Gaussian and randomised controls on the lesions: none of the methods "
        "(95 % each, not corrected for 2 methods)."
    ]
    # of several classes, those together decide; each has a sentence of its own, up to six
    classes = [replace(two, class_name=f"class {i}") for i in range(6)]
    assert len(verdict_lines([*classes[:5], replace(one, class_name="all")])) == 5 + 1
    verdicts = verdict_lines([*(replace(line, method="gradcam") for line in classes), replace(one, class_name="all")])
    assert [line.split(":")[0] for line in verdicts] == [
        "Grad-CAM, all",
        "Better than the uniform, Gaussian and randomised controls on the lesions",
    ]
    # two models are told apart
    verdicts = verdict_lines([one, replace(two, model="k")])
    assert [line.split(":")[0] for line in verdicts] == ["m", "m", "k", "k"]


@pytest.mark.parametrize(
    ("classes", "methods", "models", "panels"),
    [
        (["A"], 1, ("m",), ["lungs, A", "lesions, A"]),
        (["N"], 3, ("m",), ["lungs, N"]),
        (
            ["A", "N"],
            6,
            ("m", "k"),
            [f"{mask}, {name}" for mask in ("lungs", "lesions") for name in ("A", "N", "all")],
        ),
    ],
)
def test_the_figure_shows_every_lift(
    classes: list[str], methods: int, models: tuple, panels: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Points, limits and controls lie where the table has them, filled where each control but the oracle is beaten."""
    monkeypatch.setitem(METHODS, "gradcam", replace(METHODS["gradcam"], title="a $title$"))
    lifts = [line for line in summarise(_table(classes, list(METHODS)[:methods], models, 4)) if line.n > 0]
    lifts = [line for line in lifts if line.score.endswith("_lift")]
    assert any("gaussian" in line.better_than for line in lifts)
    figure = summary_figure(lifts)
    shown = [ax for ax in figure.axes if ax.axison]
    assert [ax.get_title().split(" (")[0] for ax in shown] == panels
    assert shown[0].get_yticklabels()[0].get_text() == "a $title$"
    for ax, panel in zip(shown, panels, strict=True):
        mask, name = panel.split(", ")
        score = {"lungs": "lung_lift", "lesions": "lesion_lift"}[mask]
        lines = [line for line in lifts if (line.score, line.class_name) == (score, name)]
        marks = [mark for mark in ax.lines if mark.get_marker() == "o"]
        assert [mark.get_xdata()[0] for mark in marks] == [line.value for line in lines]
        for line, mark in zip(lines, marks, strict=True):
            assert (mark.get_markerfacecolor() != "white") == (
                {"uniform", "gaussian", "randomised"} <= {*line.better_than}
            )
            y = mark.get_ydata()[0]
            assert round(y) == list(METHODS).index(line.method)
            (limits,) = (m for m in ax.lines if m.get_marker() == "None" and list(m.get_ydata()) == [y, y])
            np.testing.assert_array_equal(limits.get_xdata(), [line.low, line.high])
        for control, marker in (("gaussian", "^"), ("randomised", "x"), ("oracle", "d")):
            assert [m.get_xdata()[0] for m in ax.lines if m.get_marker() == marker] == [
                line.controls[control] for line in lines
            ]


def test_a_lift_of_zero_has_a_place() -> None:
    """On a logarithmic axis at its left end, as an arrow."""
    (ax,) = summary_figure([_line(0, 0, 0, oracle=9.0)]).axes
    assert ax.get_xscale() == "log"
    (arrow,) = (mark for mark in ax.lines if mark.get_marker() == "<")
    assert arrow.get_xdata()[0] == ax.get_xlim()[0] > 0
    (ax,) = summary_figure([_line(1.0, 1.5, 2.0)]).axes
    assert ax.get_xscale() == "linear"


def test_of_many_classes_six_have_a_panel() -> None:
    names = [*(f"class {i}" for i in range(9)), "all"]
    assert shown_classes(names) == [*(f"class {i}" for i in range(5)), "all"]
    assert shown_classes(names[:6]) == names[:6]
