"""The states of a map: which are scored, and how a status of cams.csv is read."""

from __future__ import annotations

from localization.states import FLAWED, MapState, count_flawed


def test_scored_states() -> None:
    assert {state for state in MapState if state.scored} == {"ok", "diffuse", "border"}
    assert set(FLAWED) == {"nan", "empty", "border", "diffuse"}


def test_only_an_ok_map_needs_no_words() -> None:
    for state in MapState:
        words = (state.caption, state.counted, state.sentence)
        assert all(words) if state in FLAWED else not any(words)
    assert all("lung" in state.sentence.format("lung") for state in FLAWED)


def test_statuses_are_read_and_counted() -> None:
    assert [MapState.read(status) for status in ("nan", "ok", "of a later version", "")] == ["nan", "ok", None, None]
    assert count_flawed(["ok", "nan", "nan", "border"]) == {"nan": 2, "empty": 0, "border": 1, "diffuse": 0}
