"""The face of every verb: argparse for flags, `key=value` words beside them, and the configuration that both make.

Nothing heavy is imported at the top: every verb imports this module before it answers `--help`.
"""

from __future__ import annotations

import argparse
import difflib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from config import GROUPS, Config, all_keys, compose_config, field_of, to_plain
from utils import UserError


class Parser(argparse.ArgumentParser):
    """argparse with `-` and `_` alike in flags, no abbreviations, `key=value` words apart, one-line errors.

    A flag added with `config_flag` is present in the result only when it was given, so that it never hides the YAML.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        super().__init__(
            allow_abbrev=False,
            epilog="key=value words set any key of configs/ (train.lr=1e-4 augment.rotation=10) or choose a group's "
            "file (preset=seed).\nAll keys and files: configs/README.md.",
            **kwargs,
        )
        self.config_keys: dict[str, str] = {}
        self.add_argument(
            "--config",
            "--connfig",
            type=Path,
            metavar="FILE",
            help="the YAML file to start from (default configs/configs.yaml)",
        )
        self.add_argument(
            "--config-dir",
            type=Path,
            metavar="DIR",
            help="a folder of one's own group files, found beside the project's: DIR/preset/mine.yaml is preset=mine",
        )
        self.add_argument(
            "--print-config", action="store_true", help="print the configuration that would be used, as YAML, and stop"
        )

    def config_flag(self, flag: str, dotted: str, **kwargs: Any) -> None:
        """A flag that sets the key `dotted`; its help and its checks are the schema's."""
        described, _ = field_of(dotted)
        kwargs.setdefault("help", described.metadata["help"].replace("%", "%%"))
        if kwargs.get("action") is None:
            kwargs.setdefault("metavar", dotted.split(".")[-1].upper())
        self.config_keys[self.add_argument(flag, default=argparse.SUPPRESS, **kwargs).dest] = dotted

    def error(self, message: str) -> NoReturn:
        unknown = re.search(r"unrecognized arguments: (-\S+)", message)
        flag = unknown[1].split("=")[0] if unknown else ""
        name = flag.lstrip("-").replace("-", "_")
        keys = (
            [f"{key}=…" for key in [*GROUPS, *all_keys()] if key.rpartition(".")[2] == name] if self.config_keys else []
        )
        near = keys[:1] or (difflib.get_close_matches(flag, self._option_string_actions, n=1) if unknown else [])
        hint = f" (did you mean {near[0]}?)" if near else ""
        self.exit(2, f"{self.prog}: {message}{hint}; see {self.prog} --help\n")

    def parse_command(self, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str], dict[str, Any]]:
        """`argv` as (plain arguments, `key=value` words, configuration keys that flags set)."""
        words, rest, wants_value = [], [], False
        for word in argv:
            if not wants_value and re.match(r"[A-Za-z_][\w.]*=", word) and not Path(word).exists():
                words.append(word)
                continue
            if word.startswith("--"):
                flag, *value = word.split("=", 1)
                word = "=".join([flag.replace("_", "-"), *value])
            action = self._option_string_actions.get(word)
            wants_value = action is not None and action.nargs in (None, "+")
            rest.append(word)
        arguments = self.parse_args(rest)
        flags = {
            dotted: getattr(arguments, dest) for dest, dotted in self.config_keys.items() if hasattr(arguments, dest)
        }
        return arguments, words, flags

    def read_command(self, argv: Sequence[str]) -> tuple[argparse.Namespace, Config, dict[str, Any]]:
        """`argv` as (plain arguments, the configuration that it makes, the keys and groups that it names).

        With `--print-config` the configuration is printed and the program ends, before anything heavy is imported.
        Raises: `UserError`.
        """
        arguments, words, flags = self.parse_command(argv)
        config = compose_config(words, flags, arguments.config, arguments.config_dir)
        if arguments.print_config:
            import yaml

            if getattr(arguments, "resume", None):
                raise UserError(
                    f"--print-config: a run that is resumed keeps its configuration, {arguments.resume}/config.yaml"
                )
            print(yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True), end="")
            self.exit(0)
        return arguments, config, {**dict(word.split("=", 1) for word in words), **flags}


def add_data_flags(parser: Parser) -> None:
    """The flags that every verb shares: which data, and how it is decoded."""
    parser.config_flag("--data", "data.path")
    parser.config_flag("--group-pattern", "data.group_pattern")
    parser.config_flag("--workers", "data.workers", type=int)
    parser.config_flag("--subset", "data.subset", action="store_true")


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
