"""What every room uses: names that fit a file system, shortened text, near names."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils import did_you_mean, elide, file_sha256, shortened_name


@given(st.text(max_size=40), st.integers(2, 30))
def test_elided_text_keeps_both_ends_within_its_limit(text: str, limit: int) -> None:
    short = elide(text, limit)
    assert len(short) <= limit
    if len(text) <= limit:
        assert short == text
    else:
        head, _, tail = short.partition("…") if "…" not in text else (short, "", "")
        assert text.startswith(head.rstrip()) and text.endswith(tail)


@pytest.mark.parametrize(("limit", "expected"), [(2, "a…"), (3, "a…h"), (4, "ab…h"), (7, "abc…fgh"), (8, "abcdefgh")])
def test_elided_text_by_hand(limit: int, expected: str) -> None:
    assert elide("abcdefgh", limit) == expected


@given(st.text(max_size=300), st.text(max_size=300))
def test_shortened_names_fit_and_stay_apart(first: str, second: str) -> None:
    names = [shortened_name(text) for text in (first, second)]
    assert all(len(name.encode(errors="surrogatepass")) <= 120 for name in names)
    assert (names[0] == names[1]) == (first == second)


def test_a_long_name_of_three_byte_letters_is_a_folder(tmp_path: Path) -> None:
    """Cut by characters, three names of 40 such letters once made 282 bytes; a file system takes 255."""
    name = shortened_name("+".join(["肺" * 40, "炎" * 40, "像" * 40]))
    (tmp_path / name).mkdir()
    assert name.startswith("肺" * 36) and len(name.encode()) <= 120
    assert name != shortened_name("+".join(["肺" * 40, "炎" * 40, "象" * 40]))


def test_near_names() -> None:
    assert did_you_mean("resnet81", ["resnet18", "vgg16"]) == " (did you mean resnet18?)"
    assert did_you_mean("layercan", ["layercam", "layercat", "eigencam"], count=2).count("layerca") == 2
    assert did_you_mean("zzz", ["resnet18"]) == ""


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()
