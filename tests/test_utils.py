"""Helpers of every room: names that fit a file system, elided text, near names, delayed interruptions, kept memory."""

from __future__ import annotations

import hashlib
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.verbs import ROOT
from utils import did_you_mean, elide, file_sha256, interrupts_wait, joint_name, pick_device, shortened_name


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


def test_a_joint_name_has_a_hash_unless_the_names_identify_the_files(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    assert joint_name(["a", "b"], files, files) == "a-vs-b"
    hashed = joint_name(["a", "b"], files, [tmp_path / "a", tmp_path / "c"])
    assert re.fullmatch("a-vs-b-[0-9a-f]{8}", hashed)
    assert joint_name(["a", "b"], files) == hashed
    (tmp_path / "link").symlink_to(tmp_path)
    assert joint_name(["a", "b"], [tmp_path / "link" / name for name in "ab"]) == hashed
    assert joint_name(["a", "b"], files[::-1]) != hashed


NAMES = st.lists(st.text("av-s/", min_size=1, max_size=6), min_size=1, max_size=3)


@given(NAMES, NAMES)
def test_joint_names_of_different_files_differ(first: list[str], second: list[str]) -> None:
    files = [[Path("/runs", name.replace("/", "_")) for name in names] for names in (first, second)]
    joint = [joint_name(names, paths, paths) for names, paths in zip((first, second), files, strict=True)]
    assert (joint[0] == joint[1]) == (files[0] == files[1])


def test_near_names() -> None:
    assert did_you_mean("resnet81", ["resnet18", "vgg16"]) == " (did you mean resnet18?)"
    assert did_you_mean("layercan", ["layercam", "layercat", "eigencam"], count=2).count("layerca") == 2
    assert did_you_mean("zzz", ["resnet18"]) == ""


def test_the_hash_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    content = bytes(range(256)) * 1000
    (tmp_path / "a").write_bytes(content)
    assert file_sha256(tmp_path / "a") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("fails", [False, True])
def test_an_interruption_is_delayed_and_not_lost(fails: bool, ctrl_c: Callable[[], None]) -> None:
    """Even if the block fails; afterwards, signals act at once again."""
    reached = []
    with pytest.raises(KeyboardInterrupt):
        with interrupts_wait(), interrupts_wait():
            ctrl_c()
            ctrl_c()  # counts once
            reached.append(True)
            if fails:
                raise ValueError
        reached.append("after")
    assert reached == [True]
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()
    with interrupts_wait():
        pass


@pytest.mark.slow
@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or "LD_PRELOAD" in os.environ, reason="another allocator than glibc's"
)
def test_freed_memory_is_kept_on_a_cpu() -> None:
    """Compare the page faults of allocating and freeing 64 MiB repeatedly, with kept memory and without."""
    program = (
        "import resource, sys, torch; sys.path.insert(0, {root!r}); from utils import pick_device\n"
        "if {kept}: pick_device('cpu')\n"
        "torch.ones(2**24)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "for _ in range(10): torch.ones(2**24)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    faults = [
        int(subprocess.run(
            [sys.executable, "-c", program.format(root=str(ROOT), kept=kept)],
            capture_output=True, text=True, check=True,
        ).stdout)
        for kept in (True, False)
    ]  # fmt: skip
    # Aligned blocks reuse memory only where two blocks of their size were, so the faults fall by less than expected.
    assert faults[0] < 0.7 * faults[1]
    assert pick_device("cpu") == torch.device("cpu")
