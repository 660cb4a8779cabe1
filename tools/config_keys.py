"""Print configs/README.md: the schema of config.py, and the comments at the head of the YAML files.

python tools/config_keys.py > configs/README.md
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from config import DEFAULT_CONFIG, GROUPS, all_keys, compose_config, expected, field_of, get_value

HEAD = """\
# Configuration

All configuration keys of all commands, for anyone who changes one. This page is written by
`python tools/config_keys.py > configs/README.md` from the schema in `config.py`.

```
python train.py preset=fast model=densenet121 train.lr=1e-4    # a group's file, and keys
python train.py --epochs 20                                    # flags set keys too: see --help
python train.py preset=fast --print-config                     # the resulting configuration as YAML; no training
python train.py --config-dir mine preset=lab                   # mine/preset/lab.yaml, besides the project's presets
python train.py --config own.yaml                              # start from this file instead of configs.yaml
```

Later settings win: `configs.yaml` with one file of each group, the preset, `key=value` words, flags. An unknown key,
file or value ends the command and suggests the nearest name. `null` means no value. Every run keeps its configuration
in its `config.yaml`. A preset may set keys of any group; its first line is `# @package _global_`.
"""
INTRODUCTIONS = {
    "": "## Top level",
    "data": "## `data`: which images, and how they are split and cached",
    "augment": "## `augment`: random changes to training images",
    "train": "## `train`: optimisation",
    "preset": "## `preset`: whole recipes",
}


def summary(file: Path) -> str:
    """Return the first sentence of a YAML file's head comment, and the one that begins "On the phantom"."""
    lines = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.lstrip("# "))
    first, *rest = re.split(r"(?<=\.) (?=[A-Z])", " ".join(lines))
    return " ".join([first, *(sentence for sentence in rest if sentence.startswith("On the phantom"))])


def as_yaml(value: Any) -> str:
    """Return a value as YAML would show it."""
    if isinstance(value, bool) or value is None:
        return {None: "null", True: "true", False: "false"}[value]
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Return a Markdown table."""
    rows = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *rows]) + "\n"


def page() -> str:
    """Return the text of configs/README.md. Defaults are those of a command without words and flags."""
    config, parts = compose_config(), [HEAD]
    for group in ("", *GROUPS):
        parts.append(INTRODUCTIONS[group] + "\n")
        if group:
            files = sorted((DEFAULT_CONFIG.parent / group).glob("*.yaml"))
            parts.append(table(["file", "contents"], [[f"`{group}={f.stem}`", summary(f)] for f in files]))
        rows = [
            [f"`{key}`", as_yaml(get_value(config, key)), expected(key), field_of(key)[0].metadata["help"]]
            for key in all_keys()
            if key.rpartition(".")[0] == group
        ]
        if rows:
            parts.append(table(["key", "default", "range", "meaning"], rows))
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
