"""The summary of scores in words: a table for a terminal, and sentences about the lifts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from localization.methods.table import METHODS
from localization.scoring.rows import CONTROLS, MASKS
from localization.scoring.summary import ALL, TO_BEAT, Cells, SummaryRow, by_method
from localization.states import FLAWED

MOST_CLASSES = 6  # with a sentence each, and a panel each in scores.png


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
    rows: list[dict[str, str]] = []
    heading = None
    for (model, name, method), scores in cells.items():
        class_name = name if len(models) == 1 else f"{model}, {name}"
        if len(methods) > 1 and class_name != heading:
            rows.append({"": class_name})
            heading = class_name
        first = class_name if len(methods) == 1 else f"  {METHODS[method].title}"
        rows.append({"": first, **_table_row(scores, oracle_of)})
    columns = ["", *(c for c in rows[-1] if c and any(row.get(c) for row in rows))]
    heads = {c: c for c in columns} | ({"": METHODS[method].title} if len(methods) == 1 else {})
    width = {c: max(len(row[c]) for row in (heads, *rows) if c in row and len(row) > 1) for c in columns}
    return "\n".join(
        "  ".join(f"{row.get(c, ''):{'>' if c else '<'}{width[c]}}" for c in columns).rstrip() for row in (heads, *rows)
    )


def _table_row(scores: Mapping[str, SummaryRow], oracle_of: str) -> dict[str, str]:
    """Return the cells of one method and class, empty where there is no value."""
    first, hit, of_oracle = next(iter(scores.values())), scores.get("lesion_hit"), scores.get(oracle_of)
    chance = scores.get("lesion_hit_area")
    return {
        "maps": str(first.maps),
        **{state: str(first.states.get(state, "")) for state in FLAWED},
        "lung lift": _text(scores.get("lung_lift")),
        "lesion lift": _text(scores.get("lesion_lift")),
        "of oracle": _percent(of_oracle and of_oracle.of_oracle),
        "hit in lesion": _percent(hit and hit.value) + (_limits(hit, 100, 0) if hit else ""),
        "chance": _percent(chance and chance.value),
        "deletion": _text(scores.get("deletion"), limits=False),
        "insertion": _text(scores.get("insertion"), limits=False),
        "ROAD": _text(scores.get("road"), limits=False),
    }


def _text(row: SummaryRow | None, limits: bool = True) -> str:
    """Return `1.14 [1.11, 1.16]`; empty text where there is no value."""
    if row is None or np.isnan(row.value):
        return ""
    return f"{round(row.value, 2) + 0.0:.2f}" + (_limits(row, 1, 2) if limits else "")


def _limits(row: SummaryRow, factor: int, digits: int) -> str:
    """Return ` [26, 63]`; empty text where there are no limits."""
    return "" if np.isnan(row.low) else f" [{factor * row.low:.{digits}f}, {factor * row.high:.{digits}f}]"


def _percent(share: float | None) -> str:
    return "" if share is None or np.isnan(share) else f"{100 * share:.0f} %"


def verdict_lines(summary: Sequence[SummaryRow]) -> list[str]:
    """Return what the lifts say, in sentences: of the first method per class and mask, then of all methods.

    Where there are more than `MOST_CLASSES` classes, the first are about all classes together; the last always is: it
    names the methods that beat the controls on the lesions or, without any, on the lungs.
    """
    models = dict.fromkeys(row.model for row in summary)
    sentences = []
    for model in models:
        cells = by_method(row for row in summary if row.model == model)
        _, _, first = next(iter(cells))
        classes = list(dict.fromkeys(name for _, name, _ in cells))
        shown = classes[-1:] if len(classes) > MOST_CLASSES else [name for name in classes if name != ALL]
        lines = [
            f"{METHODS[first].title}, {name}: {verdict}."
            for (_, name, method), scores in cells.items()
            for mask, word in MASKS.items()
            if method == first and name in shown and (verdict := _verdict(scores.get(f"{mask}_lift"), word))
        ]
        lines += _winners(cells)
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


def _winners(cells: Cells) -> list[str]:
    """Return one sentence about the methods that beat each control on the last class, which is all of them, or none."""
    *_, (_, last_class, _) = cells
    for mask in reversed(MASKS):
        rows = {
            METHODS[method].title: scores[f"{mask}_lift"]
            for (_, name, method), scores in cells.items()
            if name == last_class and f"{mask}_lift" in scores
        }
        known = [CONTROLS[c] for c in TO_BEAT if any(not np.isnan(row.controls[c]) for row in rows.values())]
        if known:
            better = [title for title, row in rows.items() if row.beats_controls]
            if not better:
                return [f"No method is shown to beat each of these controls on the {MASKS[mask]}: {_join(known)}."]
            alone = f" (95 % each, not corrected for {len(rows)} methods)" if len(rows) > 1 else ""
            return [f"Better than the {_join(known)} controls on the {MASKS[mask]}: {_join(better)}{alone}."]
    return []


def _join(items: Iterable[str], word: str = "and") -> str:
    """Return `a`, `a and b`, `a, b and c`."""
    *first, last = items
    return f"{', '.join(first)} {word} {last}" if first else last
