"""The schema of `configs/`, and the composition of a run's configuration.

Later settings win: `configs/configs.yaml` and its groups, the preset, `key=value` words, flags. Everything is checked
against the dataclasses below; an unknown key, or a value of the wrong type or range, is a `UserError`.
Nothing heavy is imported at the top: every verb imports this module before it answers `--help`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
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
    """Declare a configuration key: its default, its meaning with the unit, and its inclusive range or its choices."""
    metadata = {"help": help, "low": low, "high": high, "choices": tuple(choices)}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(kw_only=True)
class DataConfig:
    path: str | None = key(None, "folder or CSV of images; null: the phantom")
    cache_dir: str = key(".cache", "folder of the pixel cache and the phantom, relative to the project")
    size: int | None = key(None, "input side in pixels; null: the size of the model's weights (usually 224)", low=32)
    fit: str = key("squash", "how an image becomes square", choices=("squash", "letterbox"))
    group_pattern: str | None = key(None, "regular expression for file names; its first group is the patient")
    split: list[float] = key([0.8, 0.1, 0.1], "fractions of train, val, test", low=0, high=1)
    split_seed: int = key(0, "seed of the split, shared by runs with different seeds", low=0, high=2**32 - 1)
    val_per_class: int | None = key(None, "validation images per class instead of a fraction", low=1)
    test_per_class: int | None = key(None, "test images per class instead of a fraction", low=1)
    max_unreadable: float = key(0.05, "fraction of unreadable images above which the command stops", low=0, high=1)
    workers: int = key(0, "processes that decode images for the cache; 0: one per core", low=0)
    device_memory: float = key(4.0, "GPU memory in GiB for the images of a split; a larger split is streamed", low=0)
    subset: bool = key(False, "use at most 1000 training and 100 evaluation images, drawn with split_seed")
    lung_masks: str | None = key(None, "folder of lung masks named like the images")
    lesion_masks: str | None = key(None, "folder of lesion masks named like the images")
    boxes: str | None = key(None, "CSV of lesion boxes: image (file name or stem), x, y, width, height in pixels")
    phantom_count: int = key(2000, "number of images of the phantom", low=40)
    phantom_seed: int = key(0, "seed of the phantom", low=0)


@dataclass(kw_only=True)
class AugmentConfig:
    resize: int | None = key(None, "side in pixels at which training images are cached; null: the input size", low=32)
    random_crop: int | None = key(None, "side in pixels of a random crop of the resized image; null: none", low=16)
    horizontal_flip: float = key(0.5, "probability", low=0, high=1)
    vertical_flip: float = key(0.0, "probability", low=0, high=1)
    geometric: float = key(1.0, "probability that rotation, affine and zoom-out are applied at all", low=0, high=1)
    rotation: float = key(0.0, "degrees, uniform in ± rotation, about the centre", low=0, high=180)
    affine_rotation: float = key(0.0, "degrees, rotation of the affine transform, uniform in ±", low=0, high=180)
    translation: float = key(0.0, "fraction of the side, uniform in ±, in x and y", low=0, high=1)
    scale: float = key(0.0, "uniform in 1 ± scale", low=0, high=0.9)
    shear: float = key(0.0, "degrees, uniform in ±, in x", low=0, high=60)
    zoom_out: float = key(0.0, "probability of shrinking the image onto a black canvas", low=0, high=1)
    zoom_out_max: float = key(1.5, "largest side of that canvas, in sides of the image", low=1, high=4)
    brightness: float = key(0.0, "offset added to pixels in [0, 1], uniform in ±", low=0, high=1)
    contrast: float = key(0.0, "factor about the image's mean, uniform in 1 ± contrast", low=0, high=1)


@dataclass(kw_only=True)
class TrainConfig:
    epochs: int = key(10, "passes over the training images", low=1)
    batch: int = key(32, "images per optimiser step, over all ranks and micro-batches", low=1)
    accumulate: int = key(1, "micro-batches per rank and step, to save memory; batch norm sees one of them", low=1)
    eval_batch: int = key(64, "evaluation batch size", low=1)
    lr: float = key(5e-4, "peak learning rate", low=0)
    optimizer: str = key("adamw", "optimiser", choices=("adamw", "adam", "sgd"))
    momentum: float = key(0.9, "momentum of sgd", low=0, high=1)
    weight_decay: float = key(0.01, "weight decay; biases and norms have none", low=0)
    schedule: str = key("cosine", "schedule of the learning rate", choices=("cosine", "step", "constant"))
    warmup: float = key(0.1, "fraction of all steps with a linear warm-up (cosine, constant)", low=0, high=1)
    step_epochs: int = key(7, "epochs between two steps of the step schedule", low=1)
    step_gamma: float = key(0.1, "factor of the learning rate at each step", low=0, high=1)
    label_smoothing: float = key(0.0, "label smoothing of the cross entropy", low=0, high=0.99)
    clip_norm: float | None = key(1.0, "largest gradient norm; null: no clipping", low=0)
    patience: int | None = key(10, "stop after this many epochs without a lower validation loss; null: never", low=1)
    freeze_epochs: int = key(0, "first epochs that train the head alone", low=0)
    sync_batch_norm: bool = key(False, "batch normalisation over the batches of all ranks; GPUs only")
    compile: str = key("auto", "torch.compile for training; auto: in long runs on a GPU", choices=("auto", "on", "off"))
    sampler: str = key("weighted", "weighted balances classes, sequential does not", choices=("weighted", "sequential"))


@dataclass(kw_only=True)
class Config:
    model: str = key("resnet18", "a torchvision classification model, or timm/NAME")
    init: str = key("auto", "initial weights: auto, imagenet, none, or a .pt/.pth/.safetensors file")
    seed: int = key(0, "seed of weights, order, augmentation and dropout", low=0, high=2**32 - 1)
    device: str = key("auto", "auto, cpu, cuda, cuda:1 or mps")
    precision: str = key("auto", "auto: the faster of fp32 and bf16, as measured", choices=("auto", "fp32", "bf16"))
    save: str = key("runs", "parent of the run folders")
    track: str = key("tensorboard", "tracker, besides the run folder", choices=("tensorboard", "mlflow", "none"))
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


def expected(dotted: str) -> str:
    """Return what a key accepts, in words: its choices, or its type and inclusive range."""
    described, kind = field_of(dotted)
    low, high, choices = (described.metadata[name] for name in ("low", "high", "choices"))
    if choices:
        return "one of " + ", ".join(choices)
    text = "floats" if kind == list[float] else str(getattr(kind, "__name__", kind)).replace(" | None", " or null")
    text += f" from {low}" if low is not None else ""
    return text + (f" to {high}" if high is not None else " up" if low is not None else "")


@cache
def _scratch() -> DictConfig:
    from omegaconf import OmegaConf

    return OmegaConf.structured(Config)


def checked(dotted: str, value: Any, null_words: Sequence[str] = ("null", "none", "None")) -> Any:
    """Return a value for a dotted key, converted to the schema's type. Raises: `UserError` with what the key accepts.

    Args:
        null_words: text that means null, if the key allows it.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    described, kind = field_of(dotted)
    low, high, choices = (described.metadata[name] for name in ("low", "high", "choices"))
    wrong = UserError(f"{dotted}={value}: expected {expected(dotted)}{did_you_mean(str(value), choices)}")
    if isinstance(value, str) and type(None) in getattr(kind, "__args__", ()) and value in null_words:
        value = None
    if isinstance(value, str) and kind == list[float]:
        value = value.strip("[]() ").split(",")
    try:
        OmegaConf.update(_scratch(), dotted, value, merge=False)
        value = OmegaConf.select(_scratch(), dotted)
    except (OmegaConfBaseException, ValueError, TypeError):
        raise wrong from None
    value = list(value) if kind == list[float] else value
    for item in value if kind == list[float] else [value]:
        in_range = item is None or ((low is None or item >= low) and (high is None or item <= high))  # NaN is not
        if not in_range or item == "" or (choices and item not in choices):
            raise wrong
    if dotted == "data.split" and (len(value) != 3 or abs(sum(value) - 1) > 1e-6):
        raise UserError(f"data.split={value}: expected three fractions (train, val, test) that sum to 1")
    return value


def config_from_plain(plain: dict[str, Any], where: str) -> Config:
    """Return a `Config` from nested dictionaries, such as a checkpoint's; `where` names the file in errors."""
    config = Config()
    try:
        for dotted, value in _leaves(plain):
            set_value(config, dotted, checked(dotted, value))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None
    return config


def _leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the dotted keys of nested dictionaries and their values. Raises: `UserError`."""
    if not isinstance(node, dict):
        raise UserError(f"{prefix[:-1] or 'the file'} must be a mapping of keys")
    for name, value in node.items():
        is_group = is_dataclass(field_of(prefix + name)[1])
        yield from _leaves(value, f"{prefix}{name}.") if is_group else [(prefix + name, value)]


def compose_config(
    words: Sequence[str] = (), flags: dict[str, Any] | None = None, file: Path | None = None, folder: Path | None = None
) -> Config:
    """Compose `file` (default `configs/configs.yaml`) with its groups, then `key=value` words, then flags.

    Hydra composes the YAML files; those of the groups are beside `file` and, the user's own, in `folder`. Words and
    flags are then set one by one, never through Hydra's override grammar, which breaks on real paths
    (spaces, commas, parentheses, `=`). Raises: `UserError`.
    """
    where = [f"--config {file}"] * bool(file) + [f"--config-dir {folder}"] * bool(folder)
    file = Path(file or DEFAULT_CONFIG)
    if file.suffix != ".yaml" or not file.is_file():
        raise UserError(f"--config {file}: no such .yaml file")
    pairs = [word.split("=", 1) for word in words]
    groups = {name: value for name, value in pairs if name in GROUPS}
    values = {name: checked(name, value) for name, value in pairs if name not in GROUPS}
    for name, value in (flags or {}).items():
        values[name] = checked(name, value, null_words=())  # a folder may be named none
    choices = _choices(file, folder)
    if "folder" in choices["data"] and "data.path" in values:
        groups.setdefault("data", "folder")
    for name, value in groups.items():
        _check_choice(name, value, choices[name])
    place = " ".join([*where, *(f"{name}={value}" for name, value in groups.items())]) or str(file)
    composed = _compose_files(file, folder, groups, place)
    if bare := [name for name in GROUPS if name in composed and name not in _schema()]:
        raise UserError(f"{place}: the first line of a {bare[0]}'s file must be '# @package _global_'")
    config = config_from_plain(composed, place)
    for name, value in values.items():
        set_value(config, name, value)
    if groups.get("data") == "folder" and config.data.path is None:
        raise UserError("data=folder: no folder given; pass --data DIR")
    return config


def _check_choice(group: str, value: str, choices: list[str]) -> None:
    """Check that a group has the file `value`. Raises: `UserError` with the nearest names."""
    if value in choices:
        return
    hint = did_you_mean(value, choices, count=3, cutoff=0.5)
    if group == "data" and not hint and (os.sep in value or Path(value).exists()):
        hint = f"; to use a folder of images, pass --data {value}"
    raise UserError(f"{group}={value}: unknown choice{hint}; choose from {', '.join(choices) or 'none'}")


def _choices(file: Path, folder: Path | None) -> dict[str, list[str]]:
    """Return the names of every group's files: those beside `file` and those in `folder`.

    Raises: `UserError` for a folder without groups, or a file that exists in both places (Hydra would take the first).
    """
    choices, added = (
        {group: sorted(p.stem for p in (parent / group).glob("*.yaml")) if parent else [] for group in GROUPS}
        for parent in (file.parent, folder)
    )
    if folder and not any(added.values()):
        raise UserError(f"--config-dir {folder}: no such folder with .yaml files in {'/, '.join(GROUPS)}/")
    for group in GROUPS:
        if twice := sorted(set(added[group]) & set(choices[group])):
            raise UserError(f"--config-dir {folder}: {group}/{twice[0]}.yaml also exists in {file.parent}; rename it")
    return {group: sorted(choices[group] + added[group]) for group in GROUPS}


def _compose_files(file: Path, folder: Path | None, groups: dict[str, str], where: str) -> dict[str, Any]:
    """Return the files as composed by Hydra. Raises: `UserError` that begins with `where`."""
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
    except (HydraException, OmegaConfBaseException, YAMLError, ValueError) as error:  # ValueError: not UTF-8
        lines = str(error).strip().splitlines()
        reason = " ".join(map(str.strip, lines)) if isinstance(error, YAMLError) else lines[0]
        raise UserError(f"{where}: {reason}") from None


def get_value(config: Config, dotted: str) -> Any:
    """Return the value of a dotted key (`train.lr`)."""
    return attrgetter(dotted)(config)


def set_value(config: Config, dotted: str, value: Any) -> None:
    """Set a dotted key without any check; see `checked` for values that a user gives."""
    group, _, name = dotted.rpartition(".")
    setattr(attrgetter(group)(config) if group else config, name, value)


def load_run_config(path: Path) -> Config:
    """Read the `config.yaml` of a run folder. Raises: `UserError`."""
    import yaml

    try:
        return config_from_plain(yaml.safe_load(path.read_text()) or {}, str(path))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"{path}: cannot be read as a run's configuration ({error.__class__.__name__})") from None
