"""The phantom's command: `python -m dataset.phantom --output DIR`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from command_line import check_at_least, run_verb
from config import Config, DataConfig
from dataset.phantom.constants import IMAGE_SIZE, MAXIMUM_SIZE, MINIMUM_COUNT, MINIMUM_SIZE
from utils import UserError, make_folder


class _Parser(argparse.ArgumentParser):
    """A parser that reports a bad argument in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see --help")


def main(argv: Sequence[str]) -> None:
    parser = _Parser(
        prog="python -m dataset.phantom",
        allow_abbrev=False,
        description="Draw synthetic chest radiographs in the layout of the COVID-19 Radiography Database.",
    )
    size_help = "side of an image in pixels (default: %(default)s)"
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not hold anything else")
    parser.add_argument("--count", type=int, default=2000, help="images over all classes (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default: %(default)s)")
    parser.add_argument("--size", type=int, default=IMAGE_SIZE, help=size_help)
    parser.add_argument("--workers", type=int, help="processes that draw (default: one per core)")
    parser.add_argument("--contact-sheet", type=Path, metavar="FILE.png", help="also write a PNG of sample images")
    arguments = parser.parse_args(argv)
    check_at_least(arguments, count=MINIMUM_COUNT, seed=0, size=MINIMUM_SIZE, workers=1)
    if arguments.size > MAXIMUM_SIZE:
        raise UserError(f"--size {arguments.size}: it must be at most {MAXIMUM_SIZE}")
    output, sheet = arguments.output, arguments.contact_sheet
    if sheet is not None:
        if sheet.suffix.lower() != ".png" or sheet.is_dir() or not sheet.absolute().parent.is_dir():
            raise UserError(f"--contact-sheet {sheet}: cannot be written; name a .png file in an existing folder")
        make_folder(sheet.absolute().parent, "--contact-sheet")

    from dataset.phantom.write import write_phantom

    make_folder(output.absolute().parent, "--output")
    try:
        write_phantom(output, arguments.count, arguments.seed, arguments.size, arguments.workers or 0)
    except ValueError as error:
        raise UserError(f"--output {error}") from None
    if sheet is not None:
        from dataset.contact_sheet import draw_contact_sheet
        from dataset.loading import load_dataset

        config = Config(data=DataConfig(path=str(output), split=[1.0, 0.0, 0.0]))
        draw_contact_sheet(load_dataset(config.data, 224), config, sheet)
    print(f"wrote {arguments.count} images to {output}")


if __name__ == "__main__":
    run_verb(main)
