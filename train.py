"""Fine-tune an image classifier on chest radiographs.

python train.py                                            # the phantom: no data needed
python train.py --data DIR --model densenet121             # your folder, from ImageNet weights
python train.py --data DIR --group-pattern '^(\\d{8})_'     # file names begin with the patient's number
python train.py --resume runs/NAME                         # continue after an interruption
torchrun --nproc-per-node 4 train.py --data DIR            # on four GPUs (or four CPU processes)
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from command_line import Parser, add_training_flags, run_verb
from config import all_keys, get_value
from utils import UserError


def parser() -> Parser:
    parser = Parser(prog="train.py", description=__doc__)
    add_training_flags(parser)
    parser.add_argument("--name", help="the run folder's name (default MODEL-YYYYMMDD-HHMMSS)")
    resume_help = "continue an interrupted run as if it had never stopped; with a larger --epochs, train it longer"
    parser.add_argument("--resume", type=Path, metavar="RUN", help=resume_help)
    return parser


def main(argv: Sequence[str]) -> None:
    arguments, config, given = parser().read_command(argv)
    from training.trainer import resume, train

    if arguments.resume is None:
        train(config, arguments.name)
        return
    for flag in ("config", "name"):
        if getattr(arguments, flag):
            raise UserError(f"--{flag}: a resumed run keeps its own; leave it out")
    resume(arguments.resume, {key: get_value(config, key) if key in all_keys() else None for key in given})


if __name__ == "__main__":
    run_verb(main, ranks=True)
