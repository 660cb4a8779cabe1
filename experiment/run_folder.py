"""The run folder `runs/NAME/`: its name, its records, and the newest finished one."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from command_line import typed_command
from config import Config
from utils import PROJECT, UserError, atomic_write, git_commit, log, make_folder, versions, write_csv, write_json

HISTORY = [
    *("epoch", "learning_rate", "train_loss", "train_accuracy"),
    *("valid_loss", "valid_accuracy", "valid_macro_f1", "seconds", "images_per_second"),
]


class RunFolder:
    """A run's folder and its `run.json`, which always has the run's status."""

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.record: dict[str, Any] = {}

    @classmethod
    def create(cls, parent: Path, model: str, name: str | None) -> RunFolder:
        """Make the folder `name`, or MODEL-YYYYMMDD-HHMMSS. Raises: `UserError` if it exists or cannot be created."""
        make_folder(parent, "--save")
        base = name or f"{model.replace('/', '-')}-{datetime.now():%Y%m%d-%H%M%S}"
        if Path(base).name != base or base in (".", ".."):
            raise UserError(f"--name {base}: it must be a plain name; choose its parent folder with --save")
        for attempt in range(1, 100):
            path = parent / (base if attempt == 1 else f"{base}-{attempt}")
            try:
                path.mkdir()
                return cls(path)
            except FileExistsError:
                if name:
                    raise UserError(f"--name {name}: {path} exists; pick another name, or --resume {path}") from None
            except OSError as error:
                raise UserError(f"--name {base}: {path} cannot be created ({error.strerror}); pick another") from None
        raise UserError(f"--save {parent}: too many runs are named {base}; pass --name")

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open an existing run folder. Raises: `UserError` if its run.json is missing or broken."""
        run = cls(path)
        try:
            run.record = json.loads((path / "run.json").read_text())
            run.record["status"], run.record["model"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not a run folder (its run.json: {type(error).__name__})") from None
        return run

    def start(self, config: Config, records: pd.DataFrame, record: dict[str, Any]) -> None:
        """Write config.yaml, split.csv and the first run.json, with status `running`."""
        self.write_config(config)
        with atomic_write(self.path / "split.csv") as file:
            records.to_csv(file, index=False, lineterminator="\n")
        known = {"command": typed_command(), "started": now(), "commit": git_commit(), "versions": versions()}
        self.update(status="running", **known, **record)

    def write_config(self, config: Config) -> None:
        """Write config.yaml, atomically."""
        with atomic_write(self.path / "config.yaml") as file:
            yaml.safe_dump(asdict(config), file, sort_keys=False, allow_unicode=True)

    def update(self, **changes: Any) -> None:
        """Update run.json, atomically."""
        self.record |= changes
        write_json(self.path / "run.json", self.record)

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """Write history.csv, one row per epoch."""
        write_csv(self.path / "history.csv", [{k: row[k] for k in HISTORY} for row in history], HISTORY)


def now() -> str:
    """Return the time in UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def finished_runs(parent: Path, model: str | None = None) -> list[Path]:
    """Return the finished runs in `parent` (of `model`, if given), the newest first."""
    runs = []
    for record_file in sorted(parent.glob("*/run.json")):
        try:
            record = json.loads(record_file.read_text())
            if record["status"] == "finished" and model in (None, record["model"]):
                runs.append((record["finished"], record_file.parent))
        except (OSError, ValueError, KeyError, TypeError):
            log.warning(f"{record_file}: cannot be read; this run is skipped")
    return [path for _, path in sorted(runs, reverse=True)]


def newest_run(parent: Path, model: str | None = None) -> Path:
    """Return the newest finished run. Raises: `UserError` if there is none."""
    runs = finished_runs(parent, model)
    if not runs:
        raise UserError(
            f"no finished run{f' of {model}' if model else ''} in {parent}; train one with python train.py"
            f"{f' --model {model}' if model else ''}, or pass --weights FILE"
        )
    return runs[0]


def runs_folder(config: Config) -> Path:
    """Return the folder that run folders are in; the default `runs` is in the project, whatever the working folder."""
    return PROJECT / config.save if config.save == Config.save else Path(config.save)
