"""The scores of many maps in one table, over models, classes and methods: with intervals, beside controls, in words.

A row is what is known of one map: `model path group label predicted target method control status peak`, and `SCORES`,
NaN or absent where there is none. `control` is empty for the model's own map, else one of `CONTROLS`: the uniform map,
the centred Gaussian or the mask itself on the grid of the row's method, or that method on a randomised model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from intervals import Patients, mean_interval, mean_over_patients, proportion_interval
from localization.states import FLAWED, SCORED
from utils import write_csv

MASKS = {"lung": "lungs", "lesion": "lesions"}  # prefix of a score: what it is called
OF_MASK = ("energy", "area", "lift", "hit", "hit_area", "iou", "ap")
SCORES = (
    *(f"{mask}_{score}" for mask in MASKS for score in OF_MASK),
    *("deletion", "insertion", "drop", "increase", "road"),
)
LOWER_IS_BETTER = ("deletion", "drop")
PROPORTIONS = ("lung_hit", "lesion_hit", "increase")
OF_ORACLE = tuple(f"{mask}_{score}" for mask in MASKS for score in ("lift", "energy", "iou", "ap"))
CONTROLS = {"uniform": "uniform", "gaussian": "Gaussian", "randomised": "randomised", "oracle": "oracle"}
TO_BEAT = ("uniform", "gaussian", "randomised")  # by a method that has seen something
ROUNDING = 1e-9  # a difference below it is none
ALL = "all"
MOST_CLASSES = 6  # each with a panel and a sentence of its own
COLUMNS = ["model", "class", "method", "score", "value", "low", "high", "n", "patients", *CONTROLS]
COLUMNS += ["n_randomised", "of_oracle", "better_than"]


def summarise(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One line per model, class, method and score: models and methods in the rows' order, classes sorted, `all` last.

    Of labelled pictures those count that are correctly classified and whose map explains that class; pictures without
    a label are summed up by the class explained, in parentheses. Scores that no map has make no line.

    Returns: per line the `COLUMNS`, `maps` and `states` (how many maps of each state).
        `value`: the mean over the images whose map is ok, diffuse or border; `low`, `high`: its 95 % limits with the
        patient as the unit, NaN for one patient; `n`, `patients`: how many.
        A control's column: its mean over those of these images for which it is known; `n_randomised` of them for the
            randomised model, on which costly methods are tried on few.
        `of_oracle`: value / the oracle's, of lift, energy, iou and ap.
        `better_than`: the controls whose paired difference per image has its 95 % interval wholly on the good side
        (lower for deletion and drop), each by itself: no correction for the number of methods.
    """
    own = [(row, name) for row in rows if not row["control"] and (name := _class_of(row))]
    theirs = {_key(row, row["control"]): row for row in rows if row["control"]}
    values = _matrix([row if row["status"] in SCORED else {} for row, _ in own])
    controls = {name: _matrix([theirs.get(_key(row, name), {}) for row, _ in own]) for name in CONTROLS}
    patients = np.unique([row["group"] for row, _ in own], return_inverse=True)[1]
    shown = [column for column in range(len(SCORES)) if not np.isnan(values[:, column]).all()]
    summary = []
    for (model, name, method), members in _cells(own).items():
        states = dict(Counter(own[i][0]["status"] for i in members))
        for column in shown:
            others = {control: found[members, column] for control, found in controls.items()}
            line = {"model": model, "class": name, "method": method, "score": SCORES[column]}
            line |= _compared(SCORES[column], values[members, column], others, patients[members])
            summary.append(line | {"maps": len(members), "states": states})
    return summary


def _class_of(row: Mapping[str, Any]) -> str | None:
    """The class under which a map is summed up, None where the picture was not classified as what is explained."""
    if not row["label"]:
        return f"({row['target']})"
    return row["label"] if row["label"] == row["predicted"] == row["target"] else None


def _key(row: Mapping[str, Any], control: str) -> tuple[str, ...]:
    return control, row["model"], row["path"], row["method"]


def _matrix(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(rows, scores) float64, NaN where a score is absent."""
    found = [[row.get(score, np.nan) for score in SCORES] for row in rows]
    return np.array(found, np.float64).reshape(len(rows), len(SCORES))


def _cells(own: Sequence[tuple[Mapping[str, Any], str]]) -> dict[tuple[str, str, str], list[int]]:
    """Which rows belong to each model, class and method, in the order of the table."""
    models, methods = ({row[key]: None for row, _ in own} for key in ("model", "method"))
    cells: dict[tuple[str, str, str], list[int]] = {}
    for model in models:
        classes = sorted({name for row, name in own if row["model"] == model})
        for name in [*classes, ALL] if len(classes) > 1 else classes:
            cells |= {(model, name, method): [] for method in methods}
    for i, (row, name) in enumerate(own):
        for place in dict.fromkeys((name, ALL)):
            if (row["model"], place, row["method"]) in cells:
                cells[row["model"], place, row["method"]].append(i)
    return {cell: members for cell, members in cells.items() if members}


def _compared(score: str, own: np.ndarray, controls: dict[str, np.ndarray], patients: np.ndarray) -> dict[str, Any]:
    """The mean of (n,) values of a score, and the same images' controls beside it."""
    known = ~np.isnan(own)
    value, low, high = _interval(score, own[known], patients[known])
    line = {"value": value, "low": low, "high": high, "n": int(known.sum())}
    line |= {"patients": len(np.unique(patients[known])), "of_oracle": np.nan}
    better = []
    for control, theirs in controls.items():
        both = known & ~np.isnan(theirs)
        line[control] = float(theirs[both].mean()) if both.any() else np.nan
        if control == "randomised":
            line["n_randomised"] = int(both.sum())
        asked = not (control == "uniform" and score in ("drop", "increase"))
        if asked and both.any() and _beats(score, own[both], theirs[both], patients[both]):
            better.append(control)
        if control == "oracle" and score in OF_ORACLE and line[control] > 0:
            line["of_oracle"] = float(own[both].mean() / line[control])
    return line | {"better_than": tuple(better)}


def _interval(score: str, values: np.ndarray, patients: np.ndarray) -> tuple[float, float, float]:
    """Mean and limits of (n,) values without NaN. Hits and misses make a proportion; shared hits a mean."""
    if score not in PROPORTIONS or len(np.unique(patients)) < 2 or not np.isin(values, (0, 1)).all():
        value, low, high = mean_over_patients(values, patients)
        return value, *np.clip((low, high), *_range(score)).tolist()
    hits = values[:, None] == 1
    low, high = proportion_interval(hits, np.ones_like(hits), Patients(patients))
    return float(values.mean()), float(low[0]), float(high[0])


def _range(score: str) -> tuple[float, float]:
    """What a score can be: a symmetric interval may reach beyond."""
    return (-np.inf if score == "road" else 0.0), (np.inf if score.endswith(("lift", "road")) else 1.0)


def _beats(score: str, own: np.ndarray, theirs: np.ndarray, patients: np.ndarray) -> bool:
    """Whether the 95 % interval of the mean paired difference lies wholly on the good side; False for one patient."""
    if score not in PROPORTIONS:
        better = theirs - own if score in LOWER_IS_BETTER else own - theirs
        return mean_over_patients(better, patients)[1] > ROUNDING
    # A difference of proportions by MOVER: the t interval would have no width where all hit and the control never does.
    (value, low, high), (other, other_low, other_high) = (_interval(score, v, patients) for v in (own, theirs))
    limits = (np.array(pair) for pair in ((value, -other), (low, -other_high), (high, -other_low)))
    influence = np.stack([own - value, other - theirs], 1)
    return mean_interval(*limits, influence, Patients(patients))[0] > ROUNDING


def write_summary(folder: Path, summary: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> None:
    """Write `scores.csv`, one line per model, class, method and score, and its picture `scores.png` into `folder`.

    Without a lift there is no picture, and an earlier one is taken away. `titles`: what each method is called.
    """
    rows = [{key: _cell(line[key]) for key in COLUMNS} for line in summary]
    write_csv(folder / "scores.csv", rows, COLUMNS)
    from localization.drawing.summary_figure import draw_summary

    draw_summary(folder / "scores.png", summary, titles)


def _cell(value: Any) -> Any:
    """A value as the table has it: empty for NaN, six digits, names separated by spaces."""
    if isinstance(value, tuple):
        return " ".join(value)
    if isinstance(value, float):
        return "" if np.isnan(value) else f"{value:.6g}"
    return value


def beats_controls(line: Mapping[str, Any]) -> bool:
    """Whether the method is better than each of uniform, Gaussian and randomised that is known."""
    known = [control for control in TO_BEAT if not np.isnan(line[control]) and not _too_few(line, control)]
    return bool(known) and set(known) <= set(line["better_than"])


def _too_few(line: Mapping[str, Any], control: str) -> bool:
    """Whether the control is known of one image alone, which no difference can be told from."""
    return control == "randomised" and line["n_randomised"] < 2


def by_method(summary: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str, str], dict[str, Mapping[str, Any]]]:
    """(model, class, method) → score → line, in the summary's order."""
    found: dict[tuple[str, str, str], dict[str, Mapping[str, Any]]] = {}
    for line in summary:
        found.setdefault((line["model"], line["class"], line["method"]), {})[line["score"]] = line
    return found


def format_summary(summary: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> str:
    """The summary as a table for a terminal; empty text where no map has a score.

    A heading per class and a row per method; of a single method a row per class. Columns that are empty everywhere are
    left out. `of oracle` is of the lesions' lift, without lesions of the lungs'.
    """
    cells = by_method(summary)
    if not cells:
        return ""
    models, methods = ({cell[i]: None for cell in cells} for i in (0, 2))
    oracle_of = "lesion_lift" if any("lesion_lift" in scores for scores in cells.values()) else "lung_lift"
    rows: list[dict[str, str]] = []
    heading = None
    for (model, name, method), scores in cells.items():
        of_class = name if len(models) == 1 else f"{model}, {name}"
        if len(methods) > 1 and of_class != heading:
            rows.append({"": of_class})
            heading = of_class
        first = of_class if len(methods) == 1 else f"  {titles.get(method, method)}"
        rows.append({"": first, **_table_row(scores, oracle_of)})
    columns = ["", *(c for c in rows[-1] if c and any(row.get(c) for row in rows))]
    heads = {c: c for c in columns} | ({"": titles.get(method, method)} if len(methods) == 1 else {})
    width = {c: max(len(row[c]) for row in (heads, *rows) if c in row and len(row) > 1) for c in columns}
    return "\n".join(
        "  ".join(f"{row.get(c, ''):{'>' if c else '<'}{width[c]}}" for c in columns).rstrip() for row in (heads, *rows)
    )


def _table_row(scores: Mapping[str, Mapping[str, Any]], oracle_of: str) -> dict[str, str]:
    """The cells of one method and class, empty where there is no value."""
    line = next(iter(scores.values()))
    return {
        "maps": str(line["maps"]),
        **{state: str(line["states"].get(state, "")) for state in FLAWED},
        "lung lift": _text(scores.get("lung_lift")),
        "lesion lift": _text(scores.get("lesion_lift")),
        "of oracle": _percent(scores.get(oracle_of), "of_oracle"),
        "hit in lesion": _hits(scores.get("lesion_hit")),
        "chance": _percent(scores.get("lesion_hit_area"), "value"),
        "deletion": _text(scores.get("deletion"), limits=False),
        "insertion": _text(scores.get("insertion"), limits=False),
        "ROAD": _text(scores.get("road"), limits=False),
    }


def _text(line: Mapping[str, Any] | None, limits: bool = True) -> str:
    """`1.14 [1.11, 1.16]`; empty where there is no value."""
    if line is None or np.isnan(line["value"]):
        return ""
    alone = not limits or np.isnan(line["low"])
    return f"{round(line['value'], 2) + 0.0:.2f}" + ("" if alone else f" [{line['low']:.2f}, {line['high']:.2f}]")


def _percent(line: Mapping[str, Any] | None, key: str) -> str:
    return "" if line is None or np.isnan(line[key]) else f"{100 * line[key]:.0f} %"


def _hits(line: Mapping[str, Any] | None) -> str:
    """`44 % [26, 63]`."""
    if line is None or np.isnan(line["low"]):
        return _percent(line, "value")
    return f"{_percent(line, 'value')} [{100 * line['low']:.0f}, {100 * line['high']:.0f}]"


def verdict_lines(summary: Sequence[Mapping[str, Any]], titles: Mapping[str, str]) -> list[str]:
    """What the lifts say, in plain sentences: of the first method per class, lungs and lesions, then of all methods.

    Of more than six classes, of all together. Which methods beat the controls is said of all classes together, of the
    lesions or, without any, of the lungs.
    """
    several = len({line["model"] for line in summary}) > 1
    found = []
    for model in dict.fromkeys(line["model"] for line in summary):
        cells = by_method(line for line in summary if line["model"] == model)
        _, _, first = next(iter(cells))
        classes = list(dict.fromkeys(name for _, name, _ in cells))
        told = classes[-1:] if len(classes) > MOST_CLASSES else [name for name in classes if name != ALL]
        lines = [
            f"{titles.get(first, first)}, {name}: {sentence}."
            for (_, name, method), scores in cells.items()
            for mask, word in MASKS.items()
            if method == first and name in told and (sentence := _verdict(scores.get(f"{mask}_lift"), word))
        ]
        lines += _winners(cells, titles)
        found += [f"{model}: {line}" if several else line for line in lines]
    return found


def _verdict(line: Mapping[str, Any] | None, word: str) -> str:
    """What one lift says of the lungs or the lesions (`word`); empty where there is none."""
    if line is None or np.isnan(line["value"]):
        return ""
    lift = f"(lift {_text(line)})"
    if np.isnan(line["low"]):
        return f"one patient alone says nothing of the {word} {lift}"
    if line["low"] <= 1:
        return f"{'less' if line['high'] < 1 else 'not shown to be better'} than chance on the {word} {lift}"
    rivals = {"gaussian": "a centred Gaussian", "randomised": "the same on one randomised model"}
    rivals = {c: name for c, name in rivals.items() if not np.isnan(line[c]) and not _too_few(line, c)}
    open_ones = [f"{name} ({line[c]:.2f})" for c, name in rivals.items() if c not in line["better_than"]]
    if open_ones:
        return f"above chance on the {word} {lift}, but not shown to be above {_join(open_ones, 'or')}"
    return f"above chance on the {word} {lift}" + (f", and above {_join(rivals.values())}" if rivals else "")


def _winners(cells: Mapping[tuple[str, str, str], Mapping[str, Any]], titles: Mapping[str, str]) -> list[str]:
    """Which methods of one model beat each control, on the last class, which is all of them: one sentence, or none."""
    *_, (_, last_class, _) = cells
    for mask in reversed(MASKS):
        lines = {
            titles.get(method, method): scores[f"{mask}_lift"]
            for (_, name, method), scores in cells.items()
            if name == last_class and f"{mask}_lift" in scores
        }
        known = [name for control, name in CONTROLS.items() if control in TO_BEAT and _any_known(lines, control)]
        if known:
            better = [title for title, line in lines.items() if beats_controls(line)]
            if not better:
                return [f"No method is shown to be better on the {MASKS[mask]} than each of these: {_join(known)}."]
            alone = f" (each at 95 %, not corrected for {len(lines)} methods)" if len(lines) > 1 else ""
            return [f"Better on the {MASKS[mask]} than {_join(known)}: {_join(better)}{alone}."]
    return []


def _any_known(lines: Mapping[str, Mapping[str, Any]], control: str) -> bool:
    return any(not np.isnan(line[control]) for line in lines.values())


def _join(items: Iterable[str], word: str = "and") -> str:
    """`a`, `a and b`, `a, b and c`."""
    *first, last = items
    return f"{', '.join(first)} {word} {last}" if first else last
