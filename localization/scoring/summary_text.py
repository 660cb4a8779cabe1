"""The summary of scores in words: a table for a terminal, and sentences about the lifts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np

from localization.methods.table import METHODS
from localization.scoring.rows import CONTROLS, MASKS
from localization.scoring.summary import ALL, TO_BEAT, Cells, SummaryRow, by_method
from localization.states import FLAWED

MOST_CLASSES = 6  # with a sentence each, and a panel each in scores.png
COLUMNS = {  # of the table → score, in percent, with limits
    "lung lift": ("lung_lift", False, True),
    "lesion lift": ("lesion_lift", False, True),
    "of oracle": ("of oracle", True, False),
    "hit in lesion": ("lesion_hit", True, True),
    "chance": ("lesion_hit_area", True, False),
    "deletion": ("deletion", False, False),
    "insertion": ("insertion", False, False),
    "ROAD": ("road", False, False),
}


def format_summary(summary: Sequence[SummaryRow]) -> str:
    """Return the summary as a table for a terminal; empty text where no map has a score.

    It has a heading per class and a row per method; for a single method, a row per class. Columns without values are
    left out. `of oracle` is about the lift on lesions or, without any, on the lungs.
    """
    cells = by_method(summary)
    if not cells:
        return ""
    models, methods = (dict.fromkeys(cell[i] for cell in cells) for i in (0, 2))
    oracle_of = "lesion_lift" if any("lesion_lift" in scores for scores in cells.values()) else "lung_lift"
    labels, rows = [], []
    for (model, name, method), scores in cells.items():
        class_name = name if len(models) == 1 else f"{model}, {name}"
        if len(methods) > 1 and class_name not in labels:
            labels.append(class_name)
            rows.append({})
        labels.append(class_name if len(methods) == 1 else f"  {METHODS[method].title}")
        if oracle_of in scores:
            scores["of oracle"] = replace(scores[oracle_of], value=scores[oracle_of].of_oracle)
        any_score = next(iter(scores.values()))
        states = {state: str(any_score.states.get(state, "")) for state in FLAWED}
        shown = {head: _text(scores.get(score), *style) for head, (score, *style) in COLUMNS.items()}
        rows.append({"maps": str(any_score.maps), **states, **shown})
    heads = [head for head in rows[-1] if any(row.get(head) for row in rows)]
    lines = [[METHODS[method].title if len(methods) == 1 else "", *heads]]
    lines += [[label, *(row.get(head, "") for head in heads)] for label, row in zip(labels, rows, strict=True)]
    first, *widths = (max(map(len, column)) for column in zip(*lines, strict=True))
    cells = ([line[0].ljust(first), *map(str.rjust, line[1:], widths)] for line in lines)
    return "\n".join("  ".join(line).rstrip() for line in cells)


def _text(row: SummaryRow | None, percent: bool = False, limits: bool = True) -> str:
    """Return `1.14 [1.11, 1.16]` or `43 % [26, 63]`; empty text where there is no value."""
    if row is None or np.isnan(row.value):
        return ""
    factor, digits, unit = (100, 0, " %") if percent else (1, 2, "")
    value, low, high = (f"{round(factor * v, digits) + 0.0:.{digits}f}" for v in (row.value, row.low, row.high))
    return f"{value}{unit}" + (f" [{low}, {high}]" if limits and not np.isnan(row.low) else "")


def verdict_lines(summary: Sequence[SummaryRow]) -> list[str]:
    """Return what the lifts say, in sentences: of the first method per class and mask, then of all methods.

    Where there are more than `MOST_CLASSES` classes, the first are about all classes together; the last always is: it
    names the methods that beat the controls on the lesions or, without any, on the lungs.
    """
    models = list(dict.fromkeys(row.model for row in summary))
    sentences = []
    for model in models:
        cells = by_method(row for row in summary if row.model == model)
        _, classes, methods = (list(dict.fromkeys(parts)) for parts in zip(*cells, strict=True))
        shown = classes[-1:] if len(classes) > MOST_CLASSES else [name for name in classes if name != ALL]
        lines = [
            f"{METHODS[methods[0]].title}, {name}: {verdict}."
            for name in shown
            for mask, word in MASKS.items()
            if (verdict := _verdict(cells.get((model, name, methods[0]), {}).get(f"{mask}_lift"), word))
        ]
        lines += _winners(cells, classes[-1])
        sentences += [f"{model}: {line}" if len(models) > 1 else line for line in lines]
    return sentences


def _verdict(row: SummaryRow | None, word: str) -> str:
    """Return the meaning of one lift on the lungs or the lesions (`word`), in words; empty text without a lift."""
    if row is None or np.isnan(row.value):
        return ""
    lift = f"(lift {_text(row)})"
    if np.isnan(row.low):
        return f"a single patient shows nothing about the {word} {lift}"
    if row.low <= 1:
        return f"{'below chance' if row.high < 1 else 'not shown to be above chance'} on the {word} {lift}"
    rivals = {"gaussian": "a centred Gaussian", "randomised": "the same method on a randomised model"}
    rivals = {control: name for control, name in rivals.items() if row.comparable(control)}
    unbeaten = [f"{name} ({row.controls[c]:.2f})" for c, name in rivals.items() if c not in row.better_than]
    if unbeaten:
        return f"above chance on the {word} {lift}, but not shown to be above {_join(unbeaten, 'or')}"
    return f"above chance on the {word} {lift}" + (f", and above {_join(rivals.values())}" if rivals else "")


def _winners(cells: Cells, class_name: str) -> list[str]:
    """Return one sentence about the methods that beat each control on a class; none without a control."""
    for mask in reversed(MASKS):
        rows = {
            METHODS[method].title: scores[f"{mask}_lift"]
            for (_, name, method), scores in cells.items()
            if name == class_name and f"{mask}_lift" in scores
        }
        names = [CONTROLS[c] for c in TO_BEAT if any(not np.isnan(row.controls[c]) for row in rows.values())]
        if names:
            better = [title for title, row in rows.items() if row.beats_controls] or ["none of the methods"]
            alone = f" (95 % each, not corrected for {len(rows)} methods)" if len(rows) > 1 else ""
            return [f"Better than the {_join(names)} controls on the {MASKS[mask]}: {_join(better)}{alone}."]
    return []


def _join(items: Iterable[str], word: str = "and") -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    *first, last = items
    return f"{', '.join(first)} {word} {last}" if first else last
