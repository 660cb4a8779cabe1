"""Print the images per class and split, and draw a contact sheet.

python dataset/data.py                          # the phantom
python dataset/data.py --data DIR --group-pattern '^(\\d{8})_' --output sheet.png
python dataset/data.py --data DIR --write-split split.csv       # then --data split.csv uses this split
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

if __package__ in (None, ""):  # run as a program: import from the project, not from this folder
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from command_line import Parser, add_data_flags, run_verb
from utils import PROJECT, UserError, make_folder


def main(argv: Sequence[str]) -> None:
    parser = Parser(prog="python dataset/data.py", description=__doc__)
    add_data_flags(parser)
    sheet, sheet_help = PROJECT / "runs" / "contact_sheet.png", "the contact sheet (default runs/contact_sheet.png)"
    parser.add_argument("--output", type=Path, default=sheet, metavar="FILE", help=sheet_help)
    split_help = "also write images, patients and splits to a CSV, which --data accepts like a folder"
    parser.add_argument("--write-split", type=Path, metavar="FILE", help=split_help)
    arguments, config, _ = parser.read_command(argv)

    from dataset.contact_sheet import draw_contact_sheet
    from dataset.loading import load_dataset, write_split

    output, split = arguments.output, arguments.write_split
    for flag, file, suffix in (("--output", output, ".png"), ("--write-split", split, ".csv")):
        if file is not None:
            make_folder(file.parent, flag)
            if file.is_dir():
                raise UserError(f"{flag} {file}: this is a folder; name a {suffix} file in it")
    dataset = load_dataset(config.data, config.data.size or 224)
    print(dataset.table().to_string())
    draw_contact_sheet(dataset, config, output)
    print(f"contact sheet: {output}")
    if split is not None:
        write_split(dataset.records, split)
        print(f"split: {split}")


if __name__ == "__main__":
    run_verb(main)
