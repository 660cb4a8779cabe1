"""The schema of `configs/` and how a run's configuration is composed.

The order, later wins: `configs/configs.yaml` and its groups, the preset, `key=value` words, flags. Everything is
checked against the dataclasses below: an unknown key or a value of the wrong type or range is a `UserError`.
Nothing heavy is imported at the top: every verb imports this module before it answers `--help`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

from utils import PROJECT, UserError, did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig

SPLITS = ("train", "val", "test")
GROUPS = ("data", "augment", "train", "preset")
DEFAULT_CONFIG = PROJECT / "configs" / "configs.yaml"


def key(default: Any, help: str, *, low: float | None = None, high: float | None = None, choices: Sequence[str] = ()):
    """A configuration key: its default, what it means (with unit), and its inclusive range or its choices."""
    metadata = {"help": help, "low": low, "high": high, "choices": tuple(choices)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class DataConfig:
    path: str | None = key(None, "folder or CSV of radiographs; null: the phantom")
    cache_dir: str = key(".cache", "where the pixel cache and the phantom live; relative to the project")
    size: int | None = key(None, "input side in pixels; null: what the model's weights expect (mostly 224)", low=32)
    fit: str = key("squash", "how a picture becomes a square", choices=("squash", "letterbox"))
    group_pattern: str | None = key(None, "regular expression on the file name: its first group is the patient")
    split: list[float] = key([0.8, 0.1, 0.1], "fractions of train, val, test", low=0, high=1)
    split_seed: int = key(0, "seed of the split: runs of several seeds share one split", low=0, high=2**32 - 1)
    val_per_class: int | None = key(None, "validation images per class instead of a fraction", low=1)
    test_per_class: int | None = key(None, "test images per class instead of a fraction", low=1)
    max_unreadable: float = key(0.05, "a larger fraction of unreadable images stops the command", low=0, high=1)
    workers: int = key(0, "parallel decoders of the cache build; 0: one per core", low=0)
    device_memory: float = key(4.0, "GiB of a GPU for the pictures of a split; a larger split is streamed", low=0)
    subset: bool = key(False, "at most 1000 training and 100 evaluation images, drawn by split_seed")
    lung_masks: str | None = key(None, "folder of lung masks with the images' stems")
    lesion_masks: str | None = key(None, "folder of lesion masks with the images' stems")
    boxes: str | None = key(None, "CSV of lesion boxes: image (file name or stem), x, y, width, height in pixels")
    phantom_count: int = key(2000, "images of the phantom", low=40)
    phantom_seed: int = key(0, "seed of the phantom", low=0)


@dataclass(kw_only=True)
class AugmentConfig:
    resize: int | None = key(None, "side in pixels that training pictures are cached at; null: the input size", low=32)
    random_crop: int | None = key(None, "side in pixels of a random crop of the resized picture; null: none", low=16)
    horizontal_flip: float = key(0.5, "probability", low=0, high=1)
    vertical_flip: float = key(0.0, "probability", low=0, high=1)
    geometric: float = key(1.0, "probability that rotation, affine and zoom-out touch a picture at all", low=0, high=1)
    rotation: float = key(0.0, "degrees, uniform in ±rotation, about the centre", low=0, high=180)
    affine_rotation: float = key(0.0, "degrees, the affine transform's own rotation, uniform in ±", low=0, high=180)
    translation: float = key(0.0, "fraction of the side, uniform in ± in x and in y", low=0, high=1)
    scale: float = key(0.0, "uniform in 1 ± scale", low=0, high=0.9)
    shear: float = key(0.0, "degrees, uniform in ± in x", low=0, high=60)
    zoom_out: float = key(
        0.0, "probability of laying the picture, made smaller, anywhere on a black canvas", low=0, high=1
    )
    zoom_out_max: float = key(1.5, "largest side of that canvas, in sides of the picture", low=1, high=4)
    brightness: float = key(0.0, "added to [0, 1] pixels, uniform in ±", low=0, high=1)
    contrast: float = key(0.0, "factor about the picture's mean, uniform in 1 ± contrast", low=0, high=1)


@dataclass(kw_only=True)
class TrainConfig:
    epochs: int = key(10, "passes over the training images", low=1)
    batch: int = key(32, "images per step of the optimiser, over all ranks and micro-batches", low=1)
    accumulate: int = key(
        1, "micro-batches that a rank's share of a batch is worked off in, to save memory; batch norm sees one", low=1
    )
    eval_batch: int = key(64, "images per forward pass where nothing is learnt", low=1)
    lr: float = key(5e-4, "peak learning rate", low=0)
    optimizer: str = key("adamw", "the optimiser", choices=("adamw", "adam", "sgd"))
    momentum: float = key(0.9, "of sgd", low=0, high=1)
    weight_decay: float = key(0.01, "of weights; biases and norms have none", low=0)
    schedule: str = key("cosine", "of the learning rate", choices=("cosine", "step", "constant"))
    warmup: float = key(0.1, "linear warm-up of cosine and constant, as a fraction of all steps", low=0, high=1)
    step_epochs: int = key(7, "the step schedule multiplies by step_gamma every so many epochs", low=1)
    step_gamma: float = key(0.1, "see step_epochs", low=0, high=1)
    label_smoothing: float = key(0.0, "of the cross entropy", low=0, high=0.99)
    clip_norm: float | None = key(1.0, "largest gradient norm; null: no clipping", low=0)
    patience: int | None = key(10, "stop after so many epochs without a lower validation loss; null: never", low=1)
    freeze_epochs: int = key(0, "train the head alone for the first so many epochs", low=0)
    sync_batch_norm: bool = key(False, "batch normalisation over the batches of all ranks; on GPUs only")
    compile: str = key("auto", "torch.compile in training; auto: on a GPU, in long runs", choices=("auto", "on", "off"))
    sampler: str = key(
        "weighted",
        "weighted: classes equally often; sequential: every image once an epoch",
        choices=("weighted", "sequential"),
    )


@dataclass(kw_only=True)
class Config:
    model: str = key("resnet18", "a torchvision classification model, or timm/NAME")
    init: str = key("auto", "initial weights: auto, imagenet, none or a .pt/.pth/.safetensors file")
    seed: int = key(0, "of weights, order, augmentation and dropout", low=0, high=2**32 - 1)
    device: str = key("auto", "auto, cpu, cuda, cuda:1, mps")
    precision: str = key("auto", "auto measures fp32 against bf16", choices=("auto", "fp32", "bf16"))
    save: str = key("runs", "the folder that run folders are made in")
    track: str = key(
        "tensorboard", "what shows the training beside its run folder", choices=("tensorboard", "mlflow", "none")
    )
    data: DataConfig = field(default_factory=DataConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


@cache
def _schema(owner: type = Config, prefix: str = "") -> dict[str, tuple[Any, type]]:
    """Return the dataclass field and the type of every dotted key and group, in the order of the schema."""
    types, entries = get_type_hints(owner), {}
    for described in fields(owner):
        name, kind = prefix + described.name, types[described.name]
        entries |= {name: (described, kind)} | (_schema(kind, f"{name}.") if is_dataclass(kind) else {})
    return entries


def field_of(dotted: str) -> tuple[Any, type]:
    """Return the dataclass field and the type of a dotted key or group. Raises: `UserError` with the nearest key."""
    if dotted not in _schema():
        by_last_part = {key.rpartition(".")[2]: key for key in reversed(all_keys())}
        near = did_you_mean(dotted, all_keys(), cutoff=0.5)
        near = near or did_you_mean(dotted.rpartition(".")[2], by_last_part, cutoff=0.5)
        raise UserError(f"unknown configuration key {dotted}{near}")
    return _schema()[dotted]


def all_keys() -> list[str]:
    """Return every key of the schema, dotted, in the order of the schema."""
    return [key for key, (_, kind) in _schema().items() if not is_dataclass(kind)]


def _check_range(dotted: str, value: Any) -> None:
    low, high, choices = (field_of(dotted)[0].metadata[name] for name in ("low", "high", "choices"))
    for item in value if isinstance(value, list) else [value]:
        if choices and item not in choices:
            near = did_you_mean(str(item), choices)
            raise UserError(f"{dotted}={item}: unknown value{near}; choose from {', '.join(choices)}")
        is_nan = item != item
        if is_nan or (low is not None and item < low) or (high is not None and item > high):
            raise UserError(f"{dotted}={item}: out of range, expected {expected(dotted)}")
    if dotted == "data.split" and (len(value) != 3 or abs(sum(value) - 1) > 1e-6):
        raise UserError(f"data.split={value}: three fractions (train, val, test) that sum to 1 are needed")


def expected(dotted: str) -> str:
    """What a key may be, in words: its choices, or its type and inclusive range."""
    described, kind = field_of(dotted)
    low, high, choices = (described.metadata[name] for name in ("low", "high", "choices"))
    if choices:
        return "one of " + ", ".join(choices)
    text = "floats" if kind == list[float] else str(getattr(kind, "__name__", kind)).replace(" | None", " or null")
    text += f" from {low}" if low is not None else ""
    return text + (f" to {high}" if high is not None else " up" if low is not None else "")


def set_checked(
    config: DictConfig, dotted: str, value: Any, null_words: Sequence[str] = ("null", "none", "None")
) -> None:
    """Set one dotted key of `config`, converted to the schema's type and checked; a `UserError` names the key.

    Args:
        null_words: text that stands for null, where the key allows it.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    kind = field_of(dotted)[1]
    if is_dataclass(kind):
        raise UserError(f"'{dotted}' is a group of keys, not a key: set {dotted}.{fields(kind)[0].name}=… or the like")
    if value == "":
        raise UserError(f"{dotted}: an empty value was given; leave it out, or say {dotted}=null where that is allowed")
    if isinstance(value, str) and type(None) in getattr(kind, "__args__", ()) and value in null_words:
        value = None
    if isinstance(value, str) and kind == list[float]:
        value = value.strip("[]() ").split(",")
    try:
        OmegaConf.update(config, dotted, value, merge=False)
    except (OmegaConfBaseException, ValueError, TypeError):
        raise UserError(f"{dotted}={value}: wrong type, expected {expected(dotted)}") from None
    value = OmegaConf.select(config, dotted)
    if value is not None:
        _check_range(dotted, list(value) if kind == list[float] else value)


def from_plain(plain: dict[str, Any], where: str) -> DictConfig:
    """The schema filled with nested dictionaries (a YAML file's content); `where` names the file in errors."""
    from omegaconf import OmegaConf

    config = OmegaConf.structured(Config)

    def walk(node: Any, prefix: str) -> None:
        if not isinstance(node, dict):
            raise UserError(f"'{prefix[:-1] or 'the file'}' must be a mapping of keys")
        for name, value in node.items():
            dotted = f"{prefix}{name}"
            if is_dataclass(field_of(dotted)[1]):
                walk(value, dotted + ".")
            else:
                set_checked(config, dotted, value)

    try:
        walk(plain, "")
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return config


def config_from_plain(plain: dict[str, Any], where: str) -> Config:
    """A `Config` from nested dictionaries, such as a checkpoint's; `where` names the file in errors."""
    from omegaconf import OmegaConf

    return OmegaConf.to_object(from_plain(plain, where))


def compose_config(
    words: Sequence[str] = (),
    flags: dict[str, Any] | None = None,
    file: Path | None = None,
    folder: Path | None = None,
) -> Config:
    """Compose `file` (default `configs/configs.yaml`) with its groups, then `key=value` words, then flags.

    Hydra composes the YAML files and their groups, which lie beside `file` and, one's own, in `folder`. Words and flags
    are then set with `OmegaConf.update`, never through Hydra's override grammar, which breaks on real paths (spaces,
    commas, parentheses, `=`). Raises: `UserError`.
    """
    from omegaconf import OmegaConf

    flags = flags or {}
    config_flags = [f"--config {file}"] * bool(file) + [f"--config-dir {folder}"] * bool(folder)
    file = Path(file or DEFAULT_CONFIG)
    if not file.is_file():
        raise UserError(f"--config {file}: no such file")
    if file.suffix != ".yaml":
        raise UserError(f"--config {file}: a file whose name ends in .yaml is needed")
    pairs = [word.split("=", 1) for word in words]
    groups = {name: value for name, value in pairs if name in GROUPS}
    choices = _choices(file, folder)
    if "folder" in choices["data"] and ("data.path" in flags or any(name == "data.path" for name, _ in pairs)):
        groups.setdefault("data", "folder")
    for name, value in groups.items():
        _check_choice(name, value, choices[name])
    where = " ".join([*config_flags, *(f"{name}={value}" for name, value in groups.items())]) or str(file)
    composed = _compose_files(file, folder, groups, where)
    if bare := [name for name in GROUPS if name in composed and name not in _schema()]:
        raise UserError(f"{where}: the first line of a {bare[0]}'s file must be '# @package _global_'")
    config = from_plain(composed, where)
    for name, value in pairs:
        if name not in GROUPS:
            set_checked(config, name, value)
    for name, value in flags.items():
        set_checked(config, name, value, null_words=())  # a folder may be named none, and an empty one is a slip
    composed = OmegaConf.to_object(config)
    if groups.get("data") == "folder" and composed.data.path is None:
        raise UserError("data=folder: which? Name the folder of radiographs with --data DIR")
    return composed


def _check_choice(group: str, value: str, choices: list[str]) -> None:
    """Check that a group has the file `value`. Raises: `UserError` with the nearest names."""
    if value in choices:
        return
    hint = did_you_mean(value, choices, count=3, cutoff=0.5)
    if group == "data" and not hint and (os.sep in value or Path(value).exists()):
        hint = f"; name a folder of radiographs with --data {value}"
    raise UserError(f"{group}={value}: no such choice{hint}; choose from {', '.join(choices) or 'none'}")


def _choices(file: Path, folder: Path | None) -> dict[str, list[str]]:
    """Return the names of every group's files: those beside `file` and those in `folder`.

    Raises: `UserError` for a folder without groups, or a file that exists in both places (Hydra would take the first).
    """
    choices, own = (
        {group: sorted(p.stem for p in (parent / group).glob("*.yaml")) if parent else [] for group in GROUPS}
        for parent in (file.parent, folder)
    )
    if folder and not any(own.values()):
        problem = "no YAML file" if folder.is_dir() else "no such folder; it needs YAML files"
        raise UserError(f"--config-dir {folder}: {problem} in {', '.join(f'{group}/' for group in GROUPS)}")
    for group in GROUPS:
        if twice := sorted(set(own[group]) & set(choices[group])):
            raise UserError(
                f"--config-dir {folder}: {group}/{twice[0]}.yaml also exists in {file.parent}; rename your file"
            )
    return {group: sorted(choices[group] + own[group]) for group in GROUPS}


def _compose_files(file: Path, folder: Path | None, groups: dict[str, str], where: str) -> dict[str, Any]:
    """What Hydra makes of the files. Raises: `UserError` that begins with `where`."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    def quoted(text: str) -> str:  # for Hydra's override grammar
        return "'" + re.sub(r"(\\*)'", r"\1\1\\'", text) + "'"

    overrides = [f"{name}={quoted(value)}" for name, value in groups.items()]
    if folder is not None:
        overrides.append(f"hydra.searchpath=[{quoted(f'file://{folder.resolve()}')}]")
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(file.resolve().parent)):
            composed = compose(file.stem, overrides=overrides)
        return OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException, ValueError) as error:  # ValueError: not UTF-8, or no defaults list
        raise UserError(f"{where}: {str(error).strip().splitlines()[0]}") from None
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"line {mark.line + 1}: " if mark else ""
        raise UserError(f"{where}: no YAML: {place}{getattr(error, 'problem', None) or error}") from None


def get_value(config: Config, dotted: str) -> Any:
    """Return the value of a dotted key (`train.lr`)."""
    return attrgetter(dotted)(config)


def set_value(config: Config, dotted: str, value: Any) -> None:
    """Set a dotted key without any check; see `set_checked` for values that a user gives."""
    group, _, name = dotted.rpartition(".")
    setattr(attrgetter(group)(config) if group else config, name, value)


def load_run_config(path: Path) -> Config:
    """The `config.yaml` of a run folder."""
    import yaml

    try:
        return config_from_plain(yaml.safe_load(path.read_text()) or {}, str(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as a run's configuration ({error.__class__.__name__})") from None
