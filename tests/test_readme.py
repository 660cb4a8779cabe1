"""README.md and docs/: short enough, no broken link, commands that parse, and Python that runs."""

from __future__ import annotations

import argparse
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from command_line import Parser
from config import GROUPS, all_keys
from tests.helpers.verbs import ROOT, load_program

README = ROOT / "README.md"
PAGES = [README, *sorted((ROOT / "docs").glob("*.md")), ROOT / "configs" / "README.md"]
MOST_LINES = 150


def name(page: Path) -> str:
    return "-".join(page.relative_to(ROOT).with_suffix("").parts)


def blocks(page: Path, language: str) -> list[str]:
    """Return the fenced code blocks of a page in the given language ("" for none)."""
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S)


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of every command that starts with `python` or `torchrun`, in code blocks and in code spans."""
    text = page.read_text(encoding="utf-8")
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S))
    lines = [line for block in blocks(page, "") for line in block.replace("\\\n", " ").splitlines()]
    for line in [*lines, *(" ".join(span.split()) for span in spans)]:
        for command in re.split(r" (?:&&|\||>) ", line):
            if command.startswith(("python ", "torchrun ")):
                yield [word for word in shlex.split(command, comments=True) if word != "…"]


def test_the_readme_takes_two_minutes() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= MOST_LINES


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_and_images_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    assert [t for t in targets if "://" not in t and not (page.parent / t.split("#")[0]).exists()] == []


def test_every_page_is_linked_from_the_readme() -> None:
    text = README.read_text(encoding="utf-8")
    assert [page.name for page in (ROOT / "docs").glob("*.md") if f"(docs/{page.name})" not in text] == []


def test_files_named_in_code_exist() -> None:
    """A path such as `evaluation/metrics/summary.py` in a page follows the code when it moves."""
    rooms = "|".join(path.name for path in ROOT.iterdir() if path.is_dir() and path.name not in ("runs", "data"))
    named = re.compile(rf"`(?:python )?((?:{rooms})/[\w./-]*)`")
    for page in PAGES:
        paths = named.findall(page.read_text(encoding="utf-8"))
        assert [path for path in paths if "NAME" not in path and not (ROOT / path).exists()] == [], page.name


class _Parsed(Exception):
    """The command line was accepted."""


def parse(patch: pytest.MonkeyPatch, words: list[str]) -> None:
    """Run a program's `main` until its command line is parsed, and check the configuration keys.

    Raises: `_Parsed` if it was accepted, `SystemExit` otherwise.
    """
    program, *argv = [words[2].replace(".", "/") + "/__main__.py", *words[3:]] if words[1] == "-m" else words[1:]
    parse_command, parse_args = Parser.parse_command, argparse.ArgumentParser.parse_args

    def parsed_command(parser: Parser, argv: list[str]) -> None:
        _, keys, _ = parse_command(parser, argv)
        assert [key for key in keys if key.split("=")[0] not in (*GROUPS, *all_keys())] == []
        raise _Parsed

    def parsed_args(parser: argparse.ArgumentParser, *arguments: Any) -> argparse.Namespace:
        namespace = parse_args(parser, *arguments)
        if isinstance(parser, Parser):
            return namespace  # `parsed_command` goes on
        raise _Parsed

    module = load_program(patch, program)
    patch.setattr(Parser, "parse_command", parsed_command)
    patch.setattr(argparse.ArgumentParser, "parse_args", parsed_args)
    module.main(argv)


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_parse(page: Path, capsys: pytest.CaptureFixture) -> None:
    for words in commands(page):
        if words[0] == "torchrun":
            words = ["python", *words[words.index("train.py") :]]
        if words[1].startswith(("benchmarks/", "tools/")):
            assert (ROOT / words[1]).is_file(), words
        else:
            with pytest.MonkeyPatch.context() as patch:
                try:
                    with pytest.raises(_Parsed):
                        parse(patch, words)
                except SystemExit:
                    pytest.fail(f"{page.name}: {' '.join(words)}\n{capsys.readouterr().err}")


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if page != README and blocks(page, "python")], ids=name)
def test_the_python_of_a_page_runs(page: Path, example_folder: Path) -> None:
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), {})


@pytest.mark.slow
def test_the_python_of_the_readme_runs(example_folder: Path) -> None:
    (code,) = blocks(README, "python")
    assert len([line for line in code.splitlines() if line.strip()]) == 6
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    images = sorted(path.name for path in (example_folder / "folder" / "of" / "images").iterdir())
    table = names["table"]
    assert isinstance(table, pd.DataFrame) and [Path(path).name for path in table["path"]] == images
    assert {"predicted", "confidence", "p_COVID"} <= set(table)
    assert len(names["maps"]) == len(images)
    assert 0 <= names["metrics"]["accuracy"]["low"] <= names["metrics"]["accuracy"]["value"] <= 1
