"""The command line of every verb: shared flags, `key=value` words, the configuration they make, running and logging.

Nothing heavy is imported at the top: every verb imports this module before it answers `--help`.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, get_args

from config import GROUPS, SPLITS, Config, all_keys, compose_config, field_of
from utils import UserError, did_you_mean, log


class ParsedWords(NamedTuple):
    """A command line, separated into its parts."""

    arguments: argparse.Namespace
    words: list[str]  # key=value
    flags: dict[str, Any]  # the configuration keys that flags set


class Command(NamedTuple):
    """The request that a command line makes."""

    arguments: argparse.Namespace
    config: Config
    given: dict[str, Any]  # the keys and groups that it names


class Parser(argparse.ArgumentParser):
    """argparse with `-` and `_` alike in flags, no abbreviations, `key=value` words, and one-line errors.

    A flag added with `config_flag` is in the result only if it was given, so that its default never hides the YAML.
    """

    def __init__(self, **kwargs: Any) -> None:
        kwargs.setdefault("formatter_class", argparse.RawDescriptionHelpFormatter)
        epilog = "key=value words set any key of configs/ (train.lr=1e-4 augment.rotation=10) or choose a group's file "
        epilog += "(preset=seed).\nAll keys and files: configs/README.md."
        super().__init__(allow_abbrev=False, epilog=epilog, **kwargs)
        self.config_keys: dict[str, str] = {}
        file_help = "YAML file to start from (default configs/configs.yaml)"
        self.add_argument("--config", "--connfig", type=Path, metavar="FILE", help=file_help)
        folder_help = "folder of your own group files, besides configs/: DIR/preset/mine.yaml is preset=mine"
        self.add_argument("--config-dir", type=Path, metavar="DIR", help=folder_help)
        self.add_argument("--print-config", action="store_true", help="print the configuration as YAML, and stop")

    def config_flag(self, flag: str, dotted: str, **kwargs: Any) -> None:
        """Add a flag that sets the key `dotted`; its help, its type and its checks come from the schema."""
        described, kind = field_of(dotted)
        kwargs.setdefault("help", described.metadata["help"].replace("%", "%%"))
        if kind is bool:
            kwargs["action"] = "store_true"
        else:
            kinds = (kind, *get_args(kind))
            kwargs.setdefault("type", int if int in kinds else float if float in kinds else str)
            kwargs.setdefault("metavar", "DIR" if dotted == "save" else dotted.split(".")[-1].upper())
        self.config_keys[self.add_argument(flag, default=argparse.SUPPRESS, **kwargs).dest] = dotted

    def error(self, message: str) -> NoReturn:
        """Exit with code 2 and one line; for an unknown flag, it suggests the key or the flag that it resembles."""
        hint = ""
        if unknown := re.search(r"unrecognized arguments: (-[^\s=]+)", message):
            name = unknown[1].lstrip("-").replace("-", "_")
            keys = [key for key in [*GROUPS, *all_keys()] if self.config_keys and key.rpartition(".")[2] == name]
            near = did_you_mean(unknown[1], list(self._option_string_actions))
            hint = f" (did you mean {keys[0]}=…?)" if keys else near
        self.exit(2, f"{self.prog}: {message}{hint}; see {self.prog} --help\n")

    def parse_command(self, argv: Sequence[str]) -> ParsedWords:
        """Take the `key=value` words out of `argv` and parse the rest. A word that names a file is not a key."""
        words, rest, wants_value = [], [], False
        for word in argv:
            if not wants_value and re.match(r"[A-Za-z_][\w.]*=", word) and not Path(word).exists():
                words.append(word)
                continue
            flag, *value = word.split("=", 1)
            rest.append("=".join([flag.replace("_", "-"), *value]) if word.startswith("--") else word)
            action = self._option_string_actions.get(rest[-1])
            wants_value = action is not None and action.nargs in (None, "+")
        arguments = self.parse_args(rest)
        flags = {key: getattr(arguments, dest) for dest, key in self.config_keys.items() if hasattr(arguments, dest)}
        return ParsedWords(arguments, words, flags)

    def read_command(self, argv: Sequence[str]) -> Command:
        """Parse `argv` and compose its configuration.

        With `--print-config`, print the configuration and exit before anything heavy is imported.
        Raises: `UserError`.
        """
        arguments, words, flags = self.parse_command(argv)
        config = compose_config(words, flags, arguments.config, arguments.config_dir)
        if arguments.print_config:
            import yaml

            if getattr(arguments, "resume", None):
                raise UserError(
                    f"--print-config: a resumed run keeps its configuration, {arguments.resume}/config.yaml"
                )
            print(yaml.safe_dump(asdict(config), sort_keys=False, allow_unicode=True), end="")
            self.exit(0)
        return Command(arguments, config, {**dict(word.split("=", 1) for word in words), **flags})


def _add_config_flags(parser: Parser, names: str) -> None:
    """Add a flag for each of the dotted keys: the last part of its name."""
    for dotted in names.split():
        parser.config_flag("--" + dotted.rpartition(".")[2].replace("_", "-"), dotted)


def add_data_flags(parser: Parser) -> None:
    """Add the flags that choose the data and say how it is decoded."""
    parser.config_flag("--data", "data.path")
    _add_config_flags(parser, "data.group_pattern data.workers data.subset")


def add_training_flags(parser: Parser) -> None:
    """Add the flags that choose the data and the model, and say how it is trained."""
    add_data_flags(parser)
    _add_config_flags(parser, "model init train.epochs train.batch")
    parser.config_flag("--learning-rate", "train.lr")
    _add_config_flags(parser, "train.weight_decay train.patience train.freeze_epochs seed device precision save track")


def add_checkpoint_flags(parser: Parser, several: str, all_runs: str = "") -> None:
    """Add the flags that choose trained checkpoints and say where and how they run.

    Args:
        several: what happens with more than one checkpoint, for the help text.
        all_runs: what `--model all` does, for the help text; empty if the verb has no such thing.
    """
    weights_help = f"a checkpoint, or a run folder (its best.pt); {several}; default: the newest finished run"
    parser.add_argument("--weights", type=Path, nargs="+", metavar="FILE", help=weights_help)
    model_help = "check that the checkpoint is of this model; without --weights, take its newest run" + all_runs
    parser.config_flag("--model", "model", help=model_help)
    parser.config_flag("--batch", "train.eval_batch")
    parser.config_flag("--device", "device")
    precisions = ("auto", "fp32", "bf16")
    parser.config_flag("--precision", "precision", help="fp32, bf16 or auto (as trained)", choices=precisions)


def add_split_flag(parser: Parser, default: str | None) -> None:
    """Add `--kind`, which names a split. `default`: None if a missing flag differs from `--kind test`."""
    parser.add_argument("--kind", choices=SPLITS, default=default, help="which split (default test)")


def add_runs_flag(parser: Parser) -> None:
    """Add `--save`, which for verbs that read runs is where run folders are."""
    parser.config_flag("--save", "save", help="the folder that run folders are in (default runs)")


def add_output_flag(parser: Parser, default: str) -> None:
    """Add `--output DIR`; `default` says in words where results go without it."""
    parser.add_argument("--output", type=Path, metavar="DIR", help=f"where to write (default: {default})")


def check_at_least(arguments: argparse.Namespace, **least: float) -> None:
    """Check numbers on the command line; flags that were not given (None) pass. Raises: `UserError`."""
    for name, lowest in least.items():
        value = getattr(arguments, name)
        if value is not None and not value >= lowest:
            raise UserError(f"--{name.replace('_', '-')} {value:g}: it must be at least {lowest:g}")


def typed_command() -> str:
    """Return the command line of this process for records and messages, without the passwords in its addresses.

    Of a torchrun command, only what its environment variables contain is known.
    """
    processes, nodes = (os.environ.get(name, "1") for name in ("LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE"))
    torchrun = ["torchrun", "--nnodes", nodes, "--nproc-per-node", processes]
    launcher = torchrun if os.environ.get("WORLD_SIZE", "1") != "1" else ["python"]
    return shlex.join([*launcher, *map(hide_password, sys.argv)])


def hide_password(text: str) -> str:
    """Replace the passwords in a URL with `***`: `://user:HERE@host`, `http://TOKEN@host` and `?password=HERE`."""
    text = re.sub(r"(https?://)[^/@\s]*@", r"\1***@", text)
    text = re.sub(r"(://[^:/@\s]*:)\S*@", r"\1***@", text)
    return re.sub(r"([?&][^=&\s]*pass[^=&\s]*=)[^&\s]*", r"\1***", text, flags=re.IGNORECASE)


def run_verb(main: Callable[[Sequence[str]], None], *, ranks: bool = False) -> None:
    """Run a verb's `main` as a program: a `UserError` is one line on stderr and exit code 2, Ctrl-C exit code 130.

    Args:
        ranks: torchrun may start this verb. Only the first process of each node then prints the error.
    """
    script = Path(sys.argv[0])
    program = script.parent.name if script.stem == "__main__" else script.name
    quiet = os.environ.get("LOCAL_RANK", "0") != "0"
    # Importing torch creates hundreds of thousands of objects, none of them garbage: collecting at the default
    # threshold takes a fifth of the import's time.
    gc.set_threshold(50_000, 10, 10)
    start_logging()
    try:
        # TORCHELASTIC_RUN_ID is set by torchrun alone; some clusters set WORLD_SIZE for every program.
        if not ranks and "TORCHELASTIC_RUN_ID" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise UserError(f"torchrun can start train.py only; run {program} with python")
        main(sys.argv[1:])
    except UserError as error:
        sys.exit(2 if quiet else _fail(f"{program}: {error}", 2))
    except KeyboardInterrupt:
        sys.exit(130 if quiet else _fail(f"{program}: interrupted", 130))
    except BrokenPipeError:
        _discard_output()
        sys.exit(141)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS):
            raise
        name = error.filename or "a file"
        sys.exit(_fail(f"{program}: cannot write {name}: {error.strerror}; free some space or write elsewhere", 2))


def _fail(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


def _discard_output() -> None:
    """Discard all further output, Python's flush at exit included: the reader of the pipe (head, less) has gone."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Formatter(logging.Formatter):
    """Mark warnings and errors with their level; other lines stand alone."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        if record.levelno >= logging.WARNING:
            record.message = f"{record.levelname}: {record.message}"
        return super().formatMessage(record)


class _TqdmHandler(logging.StreamHandler):
    """Write log lines above a running tqdm bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm = sys.modules.get("tqdm")
        try:
            if tqdm is None:
                print(self.format(record), flush=True)
            else:
                tqdm.tqdm.write(self.format(record), file=sys.stdout)
                sys.stdout.flush()
        except BrokenPipeError:  # training continues without a reader; train.log has its lines
            _discard_output()


_SCREEN = _TqdmHandler()


def start_logging() -> None:
    """Print the project's log on the screen, as bare lines."""
    _SCREEN.setFormatter(_Formatter("%(message)s"))
    _SCREEN.setLevel(logging.INFO)  # debug lines go to train.log only
    log.addHandler(_SCREEN)
    log.setLevel(logging.DEBUG)
    log.propagate = False


@contextlib.contextmanager
def quiet_screen() -> Iterator[None]:
    """Show only errors on the screen while the block runs; files (`log_to`) still receive every line."""
    level = _SCREEN.level
    _SCREEN.setLevel(logging.ERROR)
    try:
        yield
    finally:
        _SCREEN.setLevel(level)


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    """Copy the log to `path`, with times, while the block runs. `log.debug` lines reach the file, not the screen."""
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_Formatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()
