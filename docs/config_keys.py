"""configs/README.md from the schema in config.py and the comments that head the files.

python docs/config_keys.py > configs/README.md
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import DEFAULT_CONFIG, GROUPS, all_keys, compose_config, expected, field_of

HEAD = """\
# Configuration

Every key of every command. Made from the schema in `config.py`: `python docs/config_keys.py > configs/README.md`.

```
python train.py preset=fast model=densenet121 train.lr=1e-4    # a group's file, and keys
python train.py --epochs 20                                    # flags are short for keys: see --help
python train.py preset=fast --print-config                     # what that makes, as YAML; nothing is trained
python train.py --config-dir mine preset=lab                   # mine/preset/lab.yaml, found beside the project's
python train.py --config own.yaml                              # another file than configs.yaml to start from
```

Later wins: `configs.yaml` with a file of each group, the preset, `key=value` words, flags. An unknown key, file or
value ends the command with the nearest name. `null` is nothing at all. The configuration of a run is in its
`config.yaml`. A preset sets keys of any group and begins with `# @package _global_`.
"""
INTRODUCTIONS = {
    "": "## Top level",
    "data": "## `data`: which images, and how they are split and kept",
    "augment": "## `augment`: what is done to a training picture",
    "train": "## `train`: optimisation",
    "preset": "## `preset`: whole recipes",
}


def header(file: Path) -> str:
    """Of the comment at the head of a YAML file the first sentence, and the one that begins "On the phantom"."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.lstrip("# "))
    first, *rest = re.split(r"(?<=\.) (?=[A-Z])", " ".join(lines))
    return " ".join([first, *(sentence for sentence in rest if sentence.startswith("On the phantom"))])


def shown(value: Any) -> str:
    """A value as it stands in YAML, short."""
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return f"`{text}`"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def keys_of(group: str) -> list[str]:
    """The dotted keys of a group; of the empty one, those that belong to none."""
    return [dotted for dotted in all_keys() if dotted.rpartition(".")[0] == group]


def key_rows(group: str) -> list[list[str]]:
    """Key, the default that a command without words has, range, and meaning."""
    config, rows = compose_config(), []
    for dotted in keys_of(group):
        value: Any = config
        for part in dotted.split("."):
            value = getattr(value, part)
        rows.append([f"`{dotted}`", shown(value), expected(dotted), field_of(dotted)[0].metadata["help"]])
    return rows


def page() -> str:
    """The whole of configs/README.md."""
    parts = [HEAD]
    for group in ("", *GROUPS):
        parts.append(INTRODUCTIONS[group] + "\n")
        if group:
            files = sorted((DEFAULT_CONFIG.parent / group).glob("*.yaml"))
            parts.append(table(["file", "what it is"], [[f"`{group}={f.stem}`", header(f)] for f in files]))
        if keys_of(group):
            parts.append(table(["key", "default", "range", "meaning"], key_rows(group)))
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
