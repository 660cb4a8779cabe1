"""The search space: errors that name file and key, values that the schema allows, and trial 0."""

from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from config import Config, checked, compose_config, get_value
from search.space import SPACES, default_values, find_space, read_space, suggest, with_values
from tests.helpers.searches import write_space
from utils import UserError


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train.learning_rate: {low: 1.0e-5, high: 1.0e-2}", ["train.learning_rate", "did you mean train."]),
        ("train.weight_decy: {low: 0, high: 1}", ["did you mean train.weight_decay"]),
        ("train.warmup: {low: 0, high: 2}", ["train.warmup=2", "from 0 to 1"]),
        ("train.warmup: {low: -1, high: 1}", ["train.warmup=-1", "from 0 to 1"]),
        ("train.batch: {low: 1.5, high: 8}", ["train.batch=1.5", "expected int from 1 up"]),
        ("train.optimizer: {choices: [adamw, sdg]}", ["train.optimizer=sdg", "did you mean sgd"]),
        ("train.lr: {low: 1.0e-5, hihg: 1}", ["train.lr", "expected {low", "'hihg'"]),
        ("train.lr: {low: 1.0e-5}", ["train.lr", "expected {low: …, high: …}"]),
        ("train.lr: {low: 1, high: 1}", ["train.lr", "different values"]),
        ("train.lr: {low: 0, high: 1, log: true}", ["train.lr", "low > 0"]),
        ("train.lr: {low: 0, high: 1, step: 0.3}", ["train.lr", "not divisible by `step`"]),
        ("train.batch: {low: 16, high: 64, step: 1.5}", ["train.batch", "int as step"]),
        ("train.lr: {low: 1, high: 2, log: true, step: 1}", ["train.lr", "log"]),
        ("train.optimizer: {low: adam, high: sgd}", ["train.optimizer", "choices"]),
        ("train.batch: {choices: [16, 16]}", ["train.batch", "different"]),
        ("train.batch: {choices: '16'}", ["train.batch", "{choices: […]}"]),
        ("model: {choices: [resnet18, ResNet18]}", ["model", "different"]),
        ("train.lr: {low: 1.0e-5, high: .inf}", ["train.lr", "inf", "finite"]),
        ("train.lr: {choices: [.nan, 1.0e-3]}", ["train.lr", "nan"]),
        ("train.warmup: {low: 0, high: 1, step: .nan}", ["train.warmup", "step=nan"]),
        ("train.lr: 0.1", ["train.lr", "expected {low"]),
        ("train: {lr: {low: 0, high: 1}}", ["train: cannot be searched"]),
        ("model: {choices: [resnet18, resnt50]}", ["resnt50", "resnet50"]),
        ("seed: {low: 0, high: 9}", ["seed", "luck"]),
        ("data.split_seed: {low: 0, high: 9}", ["data.split_seed", "same"]),
        ("[1, 2", ["YAML"]),
        ("- a", ["mapping"]),
    ],
)
def test_a_bad_space_names_file_and_key(tmp_path: Path, text: str, words: list[str]) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        default_values(read_space(path), Config(), str(path))
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in [str(path), *words]), error.value


@pytest.mark.parametrize("name", [path.stem for path in SPACES.glob("*.yaml")])
def test_every_space_of_the_project_draws_what_the_schema_allows(name: str) -> None:
    space, config = read_space(find_space(name)), compose_config()
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    default = default_values(space, config, name)
    study.enqueue_trial(default)
    assert suggest(study.ask(), space) == default
    for _ in range(20):
        drawn = suggest(study.ask(), space)
        assert {key: get_value(with_values(config, drawn), key) for key in space} == drawn
        for key, value in drawn.items():
            assert checked(key, value) == value


def test_trial_0_must_be_in_the_space(tmp_path: Path) -> None:
    space = read_space(write_space(tmp_path, train__lr={"low": 1e-3, "high": 1e-2}))
    with pytest.raises(
        UserError, match=r"space.yaml: train.lr: the configuration's value, 0.0005, is not in the space"
    ):
        default_values(space, Config(), "space.yaml")
