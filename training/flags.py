"""The flags of a training, which train.py and tune.py share."""

from __future__ import annotations

from command_line import Parser
from dataset.data import add_data_flags


def add_training_flags(parser: Parser) -> None:
    """Which data, which model, and how it learns; nothing heavy is imported."""
    add_data_flags(parser)
    parser.config_flag("--model", "model")
    parser.config_flag("--init", "init")
    parser.config_flag("--epochs", "train.epochs", type=int)
    parser.config_flag("--batch", "train.batch", type=int)
    parser.config_flag("--learning-rate", "train.lr", type=float)
    parser.config_flag("--weight-decay", "train.weight_decay", type=float)
    parser.config_flag("--patience", "train.patience", type=int)
    parser.config_flag("--freeze-epochs", "train.freeze_epochs", type=int)
    parser.config_flag("--seed", "seed", type=int)
    parser.config_flag("--device", "device")
    parser.config_flag("--precision", "precision")
    parser.config_flag("--save", "save", metavar="DIR")
    parser.config_flag("--track", "track")
