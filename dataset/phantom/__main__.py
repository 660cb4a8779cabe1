"""The command line of the phantom: `python -m dataset.phantom --output DIR`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

from dataset.phantom.draw import MAXIMUM_SIZE, MINIMUM_COUNT, MINIMUM_SIZE, write_contact_sheet, write_phantom


class _Parser(argparse.ArgumentParser):
    """A parser that reports a bad argument in one line."""

    def error(self, message: str) -> NoReturn:
        """Ends the program with exit code 2."""
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def _parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = _Parser(
        prog="python -m dataset.phantom", allow_abbrev=False,
        description="Draw synthetic chest radiographs in the layout of the COVID-19 Radiography Database.",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not hold anything else")
    parser.add_argument("--count", type=int, default=2000, help="pictures over all classes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: %(default)s)")
    parser.add_argument("--size", type=int, default=299, help="side of a picture in pixels (default: %(default)s)")
    parser.add_argument("--workers", type=int, help="processes that draw (default: one per core)")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE.png", help="also write a picture of samples")
    return parser


def _check(args: argparse.Namespace) -> str | None:
    """What is wrong with the arguments, in one line, or None."""
    if args.count < MINIMUM_COUNT:
        return f"--count {args.count} is too small: give at least {MINIMUM_COUNT}, so that every class has a picture"
    if args.seed < 0:
        return f"--seed {args.seed} is negative: give 0 or more"
    if not MINIMUM_SIZE <= args.size <= MAXIMUM_SIZE:
        return f"--size {args.size} is out of range: give {MINIMUM_SIZE} to {MAXIMUM_SIZE} pixels"
    if args.workers is not None and args.workers < 1:
        return f"--workers {args.workers} is too small: give 1 or more, or leave it out"
    sheet = args.contact_sheet
    if sheet is not None and (sheet.suffix.lower() != ".png" or not sheet.absolute().parent.is_dir()):
        return f"--contact-sheet {sheet} can't be written: give a .png file in an existing folder"
    return None


def main(argv: list[str] | None = None) -> int:
    """Runs the command line; returns the exit code, 2 for bad input."""
    parser = _parser()
    args = parser.parse_args(argv)
    problem = _check(args)
    if problem is None:
        try:
            write_phantom(args.output, args.count, args.seed, args.size, args.workers)
        except ValueError as error:
            problem = f"--output {error}"
        except OSError as error:
            problem = f"--output {args.output} can't be written ({error.strerror or error}): choose another folder"
    if problem is None and args.contact_sheet is not None:
        try:
            write_contact_sheet(args.output, args.contact_sheet)
        except OSError as error:
            problem = f"--contact-sheet {args.contact_sheet} can't be written ({error.strerror or error})"
    if problem is not None:
        print(f"dataset.phantom: {problem}", file=sys.stderr)
        return 2
    print(f"{args.count} films in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
