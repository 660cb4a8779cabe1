"""The test results that the seed project and its predecessor published, recomputed with the right definitions.

    python docs/seed_table.py > docs/seed-table.md

Only the printed figures go in. The counts behind them are searched for, so that the page proves what it says.
"""

from __future__ import annotations

import itertools
import sys
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from intervals import wilson

Row = tuple[str, str, str, str]  # as printed: "accuracy", "precision", "recall", F1
Pair = tuple[int, int]  # numerator, denominator
Interval = tuple[float, float, float]  # value, low, high
Matrix = tuple[tuple[int, ...], ...]

CLASSES = ("COVID-19", "Lung Opacity", "Normal", "Viral Pneumonia")
IMAGES = 60  # test images of each class
TOTAL = IMAGES * len(CLASSES)
SEED_VGG, OLD_VGG, RESNET, DENSENET = "VGG-16, seed", "VGG-16, predecessor", "ResNet-18, both", "DenseNet-121, both"
PUBLISHED: dict[str, tuple[Row, ...]] = {
    SEED_VGG: (
        ("0.978", "0.983", "0.936", "0.959"),
        ("0.953", "0.85", "0.962", "0.902"),
        ("0.953", "0.933", "0.888", "0.910"),
        ("0.995", "1.0", "0.983", "0.991"),
    ),
    OLD_VGG: (
        ("0.9956", "0.9833", "1.0000", "0.9916"),
        ("0.9582", "0.8833", "0.9464", "0.9138"),
        ("0.9622", "0.9667", "0.8923", "0.9280"),
        ("0.9913", "0.9833", "0.9833", "0.9833"),
    ),
    RESNET: (
        ("0.9871", "0.9667", "0.9830", "0.9748"),
        ("0.9664", "0.8667", "1.0000", "0.9286"),
        ("0.9664", "1.0000", "0.8823", "0.9375"),
        ("0.9957", "1.0000", "0.9836", "0.9917"),
    ),
    DENSENET: (
        ("0.9957", "0.9833", "1.0000", "0.9916"),
        ("0.9623", "0.9167", "0.9322", "0.9244"),
        ("0.9623", "0.9500", "0.9047", "0.9268"),
        ("0.9957", "0.9833", "1.0000", "0.9916"),
    ),
}


@dataclass(frozen=True)
class Counts:
    """One class against the rest.

    Attributes:
        tp: images of the class that were given the class.
        given: all images that were given the class.
    """

    tp: int
    given: int

    @property
    def fp(self) -> int:
        return self.given - self.tp

    @property
    def fn(self) -> int:
        return IMAGES - self.tp

    @property
    def tn(self) -> int:
        return TOTAL - self.tp - self.fp - self.fn


Found = dict[str, tuple[Counts, ...]]  # by model


def right_answers(counts: Sequence[Counts]) -> int:
    """The trace of the confusion matrix."""
    return sum(c.tp for c in counts)


def as_published(c: Counts, right: int) -> tuple[Pair, Pair, Pair, Pair]:
    """The fractions that `get_results` of both projects computes: "accuracy", "precision", "recall" and F1."""
    return (right, right + c.fp + c.fn), (c.tp, IMAGES), (c.tp, c.given), (2 * c.tp, IMAGES + c.given)


def written(fraction: Pair, text: str) -> str:
    """How `text` gives the fraction: "rounded" (half up), "cut off", or "" where it is another number."""
    scale = 10 ** len(text.partition(".")[2])
    exact, printed = Fraction(*fraction) * scale, Fraction(text) * scale
    if int(exact + Fraction(1, 2)) == printed:
        return "rounded"
    return "cut off" if int(exact) == printed else ""


def solutions(rows: Sequence[Row]) -> list[tuple[Counts, ...]]:
    """All counts with 240 answers in all that give every printed figure of a model."""
    possible = [Counts(tp, tp + fp) for tp in range(1, IMAGES + 1) for fp in range(TOTAL - IMAGES + 1)]
    fitting = [
        [c for c in possible if all(map(written, as_published(c, 0)[1:], row[1:]))]  # "accuracy" needs all classes
        for row in rows
    ]
    return [
        counts
        for counts in itertools.product(*fitting)
        if sum(c.given for c in counts) == TOTAL
        and all(written(as_published(c, right_answers(counts))[0], row[0]) for c, row in zip(counts, rows, strict=True))
    ]


def matrices(counts: Sequence[Counts]) -> Iterator[Matrix]:
    """All confusion matrices (rows = true class) with these counts."""

    def extend(done: Matrix, room: tuple[int, ...]) -> Iterator[Matrix]:
        i = len(done)
        if i == len(counts):
            yield done
            return
        for row in itertools.product(*(range((0 if i == j else left) + 1) for j, left in enumerate(room))):
            if sum(row) == counts[i].fn:
                left = tuple(a - b for a, b in zip(room, row, strict=True))
                yield from extend((*done, (*row[:i], counts[i].tp, *row[i + 1 :])), left)

    return extend((), tuple(c.fp for c in counts))


def proportion(hits: int, of: int) -> Interval:
    """A proportion with its 95 % Wilson interval."""
    low, high = wilson(hits, of)
    return hits / of, float(low), float(high)


def right_values(c: Counts) -> dict[str, Interval]:
    """accuracy, precision, recall, specificity and F1 of a class with their 95 % intervals.

    F1 = 2J / (1 + J), where J = TP / (TP + FP + FN) is a proportion.
    """
    value, low, high = (2 * j / (1 + j) for j in proportion(c.tp, c.tp + c.fp + c.fn))
    return {
        "accuracy": proportion(c.tp + c.tn, TOTAL),
        "precision": proportion(c.tp, c.given),
        "recall": proportion(c.tp, IMAGES),
        "specificity": proportion(c.tn, TOTAL - IMAGES),
        "F1": (value, low, high),
    }


def macro_f1(counts: Sequence[Counts]) -> float:
    """The mean F1 of the classes."""
    return sum(right_values(c)["F1"][0] for c in counts) / len(counts)


def best_p(lead: int) -> float:
    """The smallest two-sided p that McNemar's exact test can give to a model with `lead` more right answers.

    It is the p where the other model was never right alone: `lead` heads in `lead` tosses.
    """
    return min(1.0, 2 * 0.5**lead)


def shown(interval: Interval) -> str:
    """`0.867 [0.758, 0.931]`."""
    value, low, high = interval
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def paragraph(text: str, bullet: str = "") -> list[str]:
    """The text in lines of at most 120 characters; then an empty one, unless it is an item of a list."""
    lines = textwrap.wrap(
        " ".join(text.split()),
        120,
        initial_indent=bullet,
        subsequent_indent=" " * len(bullet),
        break_long_words=False,
        break_on_hyphens=False,
    )
    return lines if bullet else [*lines, ""]


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table, the first row its head, and an empty line."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return [lines[0], "|---" * len(rows[0]) + "|", *lines[1:], ""]


def model_table(title: str, counts: Sequence[Counts]) -> list[str]:
    """What was printed with the fraction that it is, the counts, and the right values."""
    right = right_answers(counts)
    printed = ('"accuracy" = T/(T+FP+FN)', '"precision" = recall', '"recall" = precision', "F1 = F1")
    values = [f"right {name}" for name in right_values(counts[0])]
    rows = [["class", *(f"printed {name}" for name in printed), "TP, FP, FN, TN", *values]]
    for name, row, c in zip(CLASSES, PUBLISHED[title], counts, strict=True):
        cells = [f"{text} = {a}/{b}" for text, (a, b) in zip(row, as_published(c, right), strict=True)]
        rows.append([name, *cells, f"{c.tp}, {c.fp}, {c.fn}, {c.tn}", *map(shown, right_values(c).values())])
    return [f"**{title}**: T = {right}", "", *table(rows)]


def overall_table(found: Found) -> list[str]:
    """Per model: right answers, accuracy with its interval, macro F1, and how many confusion matrices are possible."""
    rows = [["model", f"right of {TOTAL}", "accuracy = balanced accuracy", "macro F1", "matrices that fit"]]
    for title, counts in found.items():
        right = right_answers(counts)
        fitting = sum(1 for _ in matrices(counts))
        rows.append([title, str(right), shown(proportion(right, TOTAL)), f"{macro_f1(counts):.3f}", str(fitting)])
    return table(rows)


def introduction(found: Found) -> list[str]:
    """The finding, its proof and its cause."""
    opacity = found[RESNET][1]
    recall = shown(right_values(opacity)["recall"])
    rights = [right_answers(counts) for counts in found.values()]
    return [
        *paragraph(f"""**Both READMEs print recall as "precision" and precision as "recall"; their "accuracy" is no
            accuracy. F1 is right: it is the same either way round.** So ResNet-18, with a printed "recall" of 1.0000
            for Lung Opacity, does not find them all: it misses {opacity.fn} of {IMAGES}, recall {recall}. The models
            are right on {min(rights)} to {max(rights)} of {TOTAL} images, which ranks none of them above another."""),
        *paragraph(f"""**Proof.** The test set has {IMAGES} images per class, so a recall is a number of sixtieths.
            ResNet-18's printed "recall" of Viral Pneumonia, 0.9836, lies between 59/60 = 0.9833 and 60/60. It is
            60/61: of 61 images that were called so, 60 were. Every printed "precision" is a number of sixtieths."""),
        *paragraph("""**Cause.** `get_results` in `utils.py`, the same in both projects, is given a matrix whose rows
            are the true class. It takes the rest of the row for false positives (they are false negatives), the rest of
            the column for false negatives, and for true negatives only the right answers in other classes: its
            "accuracy" is T / (T + FP + FN), where T is all right answers. That is never too high, mostly a little too
            low."""),
    ]


def method(found: Found) -> list[str]:
    """How the counts were found, and how the figures give them."""
    cut: dict[str, list[str]] = {}
    for title, counts in found.items():
        for row, c in zip(PUBLISHED[title], counts, strict=True):
            ways = map(written, as_published(c, right_answers(counts)), row)
            cut.setdefault(title, []).extend(text for text, way in zip(row, ways, strict=True) if way == "cut off")
    own = cut.pop(SEED_VGG)
    others = ", ".join(itertools.chain.from_iterable(cut.values()))
    return paragraph(f"""**Counts.** Of all counts per class, exactly one set per model gives its 16 printed figures and
        {TOTAL} answers in all; so no figure contradicts another. False positives and false negatives are equally many
        in each, as they must be. Most figures are rounded, but {len(own)} of the seed's VGG-16 are cut off, and so are
        {others} elsewhere. The output stored in the predecessor's `3_evaluate_results.ipynb` agrees: 229, 230 and 230
        right. Intervals: 95 %, Wilson; F1's through J = TP / (TP + FP + FN), F1 = 2J / (1 + J). They take the images
        for independent, but the predecessor drew images, not patients: where a patient has several, they are too
        narrow.""")


def conclusions(found: Found) -> list[str]:
    """What the numbers allow to say, and what not."""
    rights = [right_answers(counts) for counts in found.values()]
    intervals = [proportion(right, TOTAL) for right in rights]
    low, high = max(i[1] for i in intervals), min(i[2] for i in intervals)
    lead, enough = max(rights) - min(rights), next(n for n in range(TOTAL) if best_p(n) < 0.05)
    points = [
        f"""**The ranking is not supported.** The predecessor concludes that DenseNet-121 did better than the others. It
        and ResNet-18 are right equally often, its VGG-16 once less, the seed's {lead} times less. All four intervals
        share the stretch from {low:.3f} to {high:.3f}.""",
        f"""McNemar's test would need each image's answers, which are not published. But at its most favourable (the
        same images, and the weaker model never right alone) its exact p is {best_p(1):.0f} for a lead of one image and
        {best_p(lead):.3f} for {lead}; below 0.05 it takes a lead of {enough}.""",
        """Accuracy is balanced accuracy here, as all classes have 60 images. With other shares it would be another
        number.""",
        """Macro F1 is left without an interval: each error costs two classes, and which two stands in the confusion
        matrix. The figures give only its diagonal and its sums, which several matrices share (last column). The
        predecessor shows its own as pictures, which were not read for this page.""",
        """For ResNet-18 and DenseNet-121 the seed prints the predecessor's figures, digit for digit: one result, not
        two that agree. Its VGG-16 differs; whether on the same test images is not recorded.""",
    ]
    return [*itertools.chain.from_iterable(paragraph(point, "- ") for point in points), ""]


def page() -> str:
    """The whole page as Markdown. Fails where a model's figures leave no counts, or a choice of counts."""
    found: Found = {}
    for title, rows in PUBLISHED.items():
        (found[title],) = solutions(rows)
    lines = [
        *("# The seed's published table, recomputed", ""),
        *introduction(found),
        *method(found),
        *("## Per class", ""),
        *itertools.chain.from_iterable(model_table(title, counts) for title, counts in found.items()),
        *("## Overall", ""),
        *overall_table(found),
        *("## What may be said", ""),
        *conclusions(found),
        *paragraph("""Sources, on GitHub: the READMEs and `utils.py` of the seed,
            `faizan1234567/Recognition-and-gradient-based-localization-of-chest-radiographs`, and of its predecessor,
            `priyavrat-misra/xrays-and-gradcam`. This page is the output of `python docs/seed_table.py`."""),
    ]
    return "\n".join(lines).rstrip()


if __name__ == "__main__":
    print(page())
