"""Are runs different on the same images? Paired tests and intervals, with the patient as the unit of sampling."""

from evaluation.comparison.pairs import Comparison, compare

__all__ = ["Comparison", "compare"]
