"""The states of a map and their words: over an image, in a count, and in a sentence."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum


class MapState(StrEnum):
    """The state of a map; its value is the `status` in cams.csv. In the order in which they are checked.

    Attributes:
        caption: what an image of the map says; empty for `ok`.
        counted: what follows a number of maps: "3 not finite"; empty for `ok`.
        sentence: a sentence about the map of a class, with `{}` for the class; empty for `ok`.
    """

    caption: str
    counted: str
    sentence: str

    NAN = "nan", "the map is not finite", "not finite", "the map of {} is not finite"
    EMPTY = (
        *("empty", "no positive evidence for this class", "without positive evidence"),
        "no positive evidence for {}: the map is empty",
    )
    BORDER = (
        *("border", "most of it at the image's edge", "with most of it at the image's edge"),
        "most of the map of {} lies at the image's edge",
    )
    DIFFUSE = (
        *("diffuse", "spread out like a uniform map", "spread out like a uniform map"),
        "the map of {} is spread out like a uniform one",
    )
    OK = "ok", "", "", ""

    def __new__(cls, value: str, caption: str, counted: str, sentence: str) -> MapState:
        state = str.__new__(cls, value)
        state._value_, state.caption, state.counted, state.sentence = value, caption, counted, sentence
        return state

    @property
    def scored(self) -> bool:
        """True if maps of this state are coloured, scored and averaged; the others are only counted."""
        return self not in (MapState.NAN, MapState.EMPTY)

    @classmethod
    def read(cls, status: str) -> MapState | None:
        """Return the state that `status` in cams.csv names; None for one that only another version writes."""
        return next((state for state in cls if state == status), None)


FLAWED = tuple(state for state in MapState if state is not MapState.OK)


def count_flawed(statuses: Iterable[str]) -> dict[MapState, int]:
    """Return how many maps each state other than `ok` has, zeros included."""
    statuses = list(statuses)
    return {state: statuses.count(state) for state in FLAWED}
