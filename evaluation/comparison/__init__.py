"""Are runs different on the same images? Paired tests and intervals, with the patient as the unit of sampling."""

from evaluation.comparison.alignment import align
from evaluation.comparison.pairs import compare
from evaluation.comparison.records import Comparison, Difference, Pair

__all__ = ["Comparison", "Difference", "Pair", "align", "compare"]
