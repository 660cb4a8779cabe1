"""The configuration and the command line: precedence, checks, errors, and the page of keys."""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from command_line import Parser, check_at_least, run_verb, typed_command
from config import GROUPS, all_keys, compose_config, load_run_config
from tests.helpers.verbs import ROOT
from utils import UserError

SCRIPTS = [
    *("train.py", "test.py", "compare.py", "draw_cam.py", "tune.py"),
    *("dataset/data.py", "dataset/phantom/__main__.py"),
]


def test_order_of_precedence(tmp_path: Path) -> None:
    assert compose_config().train.lr == 5e-4
    assert compose_config(["preset=seed"]).train.lr == 3e-5
    assert compose_config(["preset=seed", "train.lr=1e-4"]).train.lr == 1e-4
    assert compose_config(["preset=seed", "train.lr=1e-4"], {"train.lr": 2e-4}).train.lr == 2e-4
    file = tmp_path / "own.yaml"
    file.write_text("train:\n  epochs: 3\n")
    assert compose_config(file=file).train.epochs == 3
    assert compose_config(file=file, flags={"train.epochs": 4}).train.epochs == 4


def test_data_flag_leaves_the_phantom_pattern() -> None:
    assert compose_config().data.group_pattern
    assert compose_config(flags={"data.path": "x"}).data.group_pattern is None


@pytest.mark.parametrize("path", ["/a b/c,d (e)/f=g", "/ä/日本", "x='1'", "[a]", "~/$HOME/{a: b}"])
def test_real_paths_arrive_unchanged(path: str) -> None:
    assert compose_config(flags={"data.path": path}).data.path == path
    assert compose_config([f"data.path={path}"]).data.path == path


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("trian.lr=1", "train.lr"),
        ("train.lrr=1", "train.lr"),
        ("modle=x", "model"),
        ("train.epochs=-1", "train.epochs=-1"),
        ("train.epochs=1.5", "expected int from 1 up"),
        ("train.lr=abc", "expected float from 0 up"),
        ("train.lr=nan", "expected float from 0 up"),
        ("precision=bf61", "bf16"),
        ("preset=sed", "seed"),
        ("augment=x", "chest"),
        ("train.batch=null", "expected int from 1 up"),
        ("data.split=0.5,0.4", "three fractions"),
        ("data.split=0.5,0.4,0.4", "sum to 1"),
        ("train=1", "unknown choice"),
    ],
)
def test_a_wrong_word_is_named_in_one_line(word: str, expected: str) -> None:
    with pytest.raises(UserError, match="(?s)" + expected) as caught:
        compose_config([word])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train:\n  epoch: 3\n", "train.epochs"),
        ("train: 3\n", "mapping"),
        ("train:\n  epochs: many\n", "train.epochs=many: expected int"),
        ("a: [1\n", "own.yaml"),
        ("- 1\n", "own.yaml"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "own.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=expected) as caught:
        compose_config(file=file)
    assert "own.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_preset_and_group_composes() -> None:
    for group in GROUPS:
        for file in (ROOT / "configs" / group).glob("*.yaml"):
            compose_config([f"{group}={file.stem}"], {"data.path": "x"} if file.stem == "folder" else {})


def test_presets_are_the_recipes_they_name() -> None:
    seed = compose_config(["preset=seed"])
    assert (seed.train.optimizer, seed.train.lr, seed.train.batch, seed.train.epochs) == ("adam", 3e-5, 64, 10)
    assert (seed.train.schedule, seed.train.step_epochs, seed.train.step_gamma) == ("step", 7, 0.1)
    assert (seed.data.val_per_class, seed.data.test_per_class) == (60, 60)
    assert seed.augment.horizontal_flip == 0.5
    assert (
        seed.augment.rotation == seed.augment.affine_rotation == seed.augment.zoom_out == seed.augment.brightness == 0
    )
    full = compose_config(["augment=seed"]).augment
    assert (full.resize, full.random_crop, full.vertical_flip, full.rotation) == (224, 224, 0.01, 45)
    assert (full.affine_rotation, full.translation, full.scale, full.shear, full.zoom_out) == (20, 0.2, 0.1, 0.1, 0.3)


def test_saved_configuration_reads_back(tmp_path: Path) -> None:
    import yaml

    config = compose_config(["preset=seed", "data.split=0.7,0.2,0.1"], {"data.path": "/x y"})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(asdict(config)))
    assert load_run_config(tmp_path / "config.yaml") == config


def test_parser_takes_words_out_and_leaves_values_of_flags() -> None:
    parser = Parser(prog="x")
    parser.config_flag("--learning-rate", "train.lr", type=float)
    parser.config_flag("--data", "data.path")
    parser.add_argument("--save", nargs="?", const=True)
    arguments, words, flags = parser.parse_command(
        ["--save", "train.epochs=3", "--data", "a=b/c", "--learning_rate", "3e-5", "preset=seed"]
    )
    assert (arguments.save, words) == (True, ["train.epochs=3", "preset=seed"])
    assert flags == {"train.lr": 3e-5, "data.path": "a=b/c"}
    assert parser.parse_command(["--learning_rate=1e-4"])[2] == {"train.lr": 1e-4}
    assert parser.parse_command([])[2] == {}


@pytest.mark.parametrize("argv", [["--epohcs", "3"], ["--epoch", "3"], ["stray"]])
def test_wrong_flags_are_one_line_and_not_abbreviated(argv: list[str], capsys: pytest.CaptureFixture) -> None:
    parser = Parser(prog="train.py")
    parser.config_flag("--epochs", "train.epochs", type=int)
    with pytest.raises(SystemExit) as end:
        parser.parse_command(argv)
    err = capsys.readouterr().err
    assert end.value.code == 2
    assert err.count("\n") == 1
    assert argv[0] in err
    assert "--epochs" in err or argv == ["stray"]


OWN = "# @package _global_\n# Mine.\ndefaults:\n  - override /augment: gentle\ntrain:\n  lr: 2.0e-4\n"


@pytest.fixture
def own_dir(tmp_path: Path) -> Path:
    """Return a folder of the user's group files, with a name that must be quoted in Hydra's grammar."""
    folder = tmp_path / "own, it's (x) = y"
    for file, text in {"preset/mine.yaml": OWN, "augment/gentle.yaml": "# Little.\nrotation: 1\n"}.items():
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_text(text)
    return folder


def test_a_user_s_group_files_add_to_the_project_s(own_dir: Path) -> None:
    config = compose_config(["preset=mine", "train.epochs=3"], folder=own_dir)
    assert (config.train.lr, config.train.epochs, config.augment.rotation) == (2e-4, 3, 1)
    assert config.augment.contrast == 0  # gentle replaces chest
    assert compose_config(["augment=gentle"], folder=own_dir).augment.rotation == 1
    assert compose_config(["preset=seed"], folder=own_dir) == compose_config(["preset=seed"])
    (own_dir / "preset" / "it's, (new).yaml").write_text(OWN.replace("2.0e-4", "0.25"))
    assert compose_config(["preset=it's, (new)"], folder=own_dir).train.lr == 0.25


@pytest.mark.parametrize(
    ("word", "near"), [("preset=mien", "mine"), ("preset=fats", "fast"), ("augment=gentel", "gentle")]
)
def test_a_wrong_choice_suggests_near_names_from_both_folders(own_dir: Path, word: str, near: str) -> None:
    with pytest.raises(UserError, match=f"did you mean {near}") as caught:
        compose_config([word], folder=own_dir)
    assert "\n" not in str(caught.value)


def test_a_wrong_folder_of_group_files_is_named(own_dir: Path, tmp_path: Path) -> None:
    for folder, words in ((tmp_path / "absent", "no such folder"), (tmp_path, "preset/")):
        with pytest.raises(UserError, match=words) as caught:
            compose_config(folder=folder)
        assert str(folder) in str(caught.value)
    (own_dir / "preset" / "mine.yaml").write_text(OWN.replace("lr:", "lrr:"))
    with pytest.raises(UserError, match=r"preset=mine: .*did you mean train.lr"):
        compose_config(["preset=mine"], folder=own_dir)
    (own_dir / "preset" / "seed.yaml").write_text(OWN)
    with pytest.raises(UserError, match=r"preset/seed\.yaml"):
        compose_config(folder=own_dir)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff\xfe", ["utf-8"]),
        (b"# @package _global_\ndefaults: 3\n", ["preset/bad", "list"]),
        (b"train: {lr: 1e-3}\n", ["first line", "# @package _global_"]),
        (b"# @package _global_\ntrain: {lr: 1e-3\n", ["line 3"]),
        (b"# @package _global_\ndefaults: [override /nothing: x]\n", ["preset/bad", "nothing"]),
    ],
)
def test_a_bad_file_of_the_user_is_named(own_dir: Path, content: bytes, words: list[str]) -> None:
    (own_dir / "preset" / "bad.yaml").write_bytes(content)
    with pytest.raises(UserError) as error:
        compose_config(["preset=bad"], folder=own_dir)
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in [f"--config-dir {own_dir} preset=bad", *words]), error.value


@pytest.mark.parametrize(
    ("word", "hint"),
    [("data=folder", "--data DIR"), ("data=/somewhere/else", "--data /somewhere/else"), ("data=phantm", "phantom")],
)
def test_a_folder_of_images_is_named_with_its_flag(word: str, hint: str) -> None:
    """`data=folder` alone once used the phantom, and split it without its patients."""
    with pytest.raises(UserError, match=f"{word}: .*{hint}"):
        compose_config([word])


@pytest.mark.parametrize(
    ("flag", "hint"), [("--preset", "preset=…"), ("--weight-decay", "train.weight_decay=…"), ("--modle", "--model")]
)
def test_an_unknown_flag_that_is_a_key_suggests_the_key(flag: str, hint: str, capsys: pytest.CaptureFixture) -> None:
    parser = Parser(prog="train.py")
    parser.config_flag("--model", "model")
    with pytest.raises(SystemExit):
        parser.read_command([flag, "x"])
    assert f"did you mean {hint}?" in capsys.readouterr().err


VERBS = [("train.py",), ("test.py",), ("draw_cam.py",), ("tune.py",), ("compare.py", "a", "b"), ("dataset/data.py",)]


@pytest.mark.slow
@pytest.mark.parametrize("command", VERBS, ids=lambda command: command[0])
def test_the_printed_configuration_is_the_one_that_is_used(command: tuple[str, ...], own_dir: Path) -> None:
    """It is printed without importing torch, and is a valid `--config` file."""
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:]\n"
        "try: runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'pandas', 'cv2', 'matplotlib', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    words = ["preset=mine", "train.lr=1e-4", "data.path=/ä b/#1: c"]
    flags = ["--print_config", "--config-dir", str(own_dir)]
    done = subprocess.run(
        [sys.executable, "-c", code, *command, *flags, *words], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    printed = own_dir / "printed.yaml"
    printed.write_text(done.stdout, encoding="utf-8")
    assert compose_config(file=printed) == compose_config(words, folder=own_dir)


def test_the_configuration_of_a_resumed_run_is_not_printed(capsys: pytest.CaptureFixture) -> None:
    parser = Parser(prog="train.py")
    parser.add_argument("--resume", type=Path)
    with pytest.raises(UserError, match=r"runs/x/config\.yaml"):
        parser.read_command(["--print-config", "--resume", "runs/x"])
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_the_page_of_keys_is_current() -> None:
    """It is the output of the command it names, with every key and every file of every group."""
    done = subprocess.run([sys.executable, "tools/config_keys.py"], cwd=ROOT, capture_output=True, encoding="utf-8")
    page = (ROOT / "configs" / "README.md").read_text(encoding="utf-8")
    assert done.stdout == page, "run python tools/config_keys.py > configs/README.md"
    for dotted in all_keys():
        assert f"| `{dotted}` |" in page
    for file in (f for group in GROUPS for f in (ROOT / "configs" / group).glob("*.yaml")):
        assert f"| `{file.parent.name}={file.stem}` |" in page
    assert "| `train.schedule` | `cosine` | one of cosine, step, constant | schedule of the learning rate |" in page
    assert "| `augment.rotation` | `7` | float from 0 to 180 |" in page  # as composed, not the schema's 0


def test_every_preset_states_what_to_expect() -> None:
    for file in (ROOT / "configs" / "preset").glob("*.yaml"):
        if file.stem != "none":
            assert f"# On the phantom (`python train.py preset={file.stem}" in file.read_text(), file


def test_every_key_has_a_help_text() -> None:
    from config import field_of

    for dotted in all_keys():
        assert field_of(dotted)[0].metadata["help"], dotted


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_can_start_train_only(
    rank: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Each rank would write the same files. One rank per node prints the error."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    monkeypatch.setattr(sys, "argv", ["/x/test.py"])
    with pytest.raises(SystemExit) as end:
        run_verb(lambda argv: pytest.fail("it ran"))
    assert end.value.code == 2
    assert capsys.readouterr().err.count("torchrun") == 1 - rank


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS)
def test_help_loads_nothing_heavy(script: str) -> None:
    code = (
        f"import runpy, sys; sys.argv = ['{script}', '--help']\n"
        f"try: runpy.run_path('{script}', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'pandas', 'cv2', 'matplotlib', 'hydra', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--help" in done.stdout


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://user:secret@host/db",
        "postgresql://user:a/secret@host/db",
        "postgresql://host/db?user=u&password=secret&x=1",
        "--storage=postgresql://host/db?sslPassword=secret",
        "postgresql://user:a@secret@host/db",
        "https://secret@host",
    ],
)
def test_a_recorded_command_holds_no_password(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    argv = ["tune.py", "--storage", url, "--data", "a@b:c", "train.lr=1"]
    monkeypatch.setattr(sys, "argv", argv)
    command = typed_command()
    assert "secret" not in command and "***" in command
    assert command.endswith("--data a@b:c train.lr=1") and sys.argv == argv
    monkeypatch.setattr(sys, "argv", ["tune.py", "postgresql+psycopg://user@host:5/db"])
    assert typed_command() == "python tune.py postgresql+psycopg://user@host:5/db"


def test_numbers_below_their_least_are_refused() -> None:
    arguments = argparse.Namespace(trials=1, score_count=0, timeout=None)
    check_at_least(arguments, trials=1, score_count=0, timeout=0)
    for least in ({"trials": 2}, {"score_count": 1}):
        with pytest.raises(UserError, match=r"--(trials 1|score-count 0): .* at least"):
            check_at_least(arguments, **least)
    with pytest.raises(UserError, match="--trials nan"):
        check_at_least(argparse.Namespace(trials=float("nan")), trials=1)
