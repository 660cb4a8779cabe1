"""The speed of an evaluation and of building the cache that it reads.

    python benchmarks/test_speed.py [--images 320] [--repeats 5]

`ours` is what `test.py --quick` does after its imports: load the checkpoint and the data, predict, compute metrics with
intervals, write files and a plot (the rival writes no report either). `rival` is benchmarks/rival.py's evaluation after
its set-up: fp32, a DataLoader, scikit-learn's report. Both are then timed as whole commands, imports included. The
second table counts images decoded and resized with antialiasing per second of one core's time, on the phantom's PNGs of
299×299; ours includes the SHA-256, the index and the file that is written.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, Contestant, Work, contest, ratio, report, rounds, show_medians, show_ratio

MODEL = "resnet18"


def trained(folder: str, images: int) -> Path:
    """Return a finished run of `MODEL` with `images` test images, trained for one epoch, as only speed counts."""
    from config import compose_config
    from training.trainer import train

    share = 0.5
    flags = {"model": MODEL, "init": "none", "save": folder, "train.epochs": 1, "train.batch": 32}
    words = [
        f"data.phantom_count={round(images / share)}",
        f"data.split={(1 - share) / 5},{(1 - share) * 4 / 5},{share}",
    ]
    return train(compose_config(words, flags, None))


def ours(run: str) -> Work:
    import importlib.util

    spec = importlib.util.spec_from_file_location("verb_test", ROOT / "test.py")
    verb = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(verb)

    def work() -> float:
        began = time.perf_counter()
        verb.main(["--weights", run, "--quick"])
        return _count(run) / (time.perf_counter() - began)

    return work


def _count(run: str) -> int:
    return len((Path(run) / "test" / "predictions.csv").read_text().splitlines()) - 1


def rival(folder: str) -> Work:
    import rival

    return rival.evaluate(folder, MODEL, 224, 64)


def command(images: int, *words: str) -> Work:
    def work() -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, *words], check=True, capture_output=True, cwd=ROOT)
        return images / (time.perf_counter() - began)

    return work


def build_cache(paths: list[str], size: int) -> Work:
    """Build an empty cache with one thread, in images per second of CPU time."""
    import cv2

    from dataset.cache import PixelStore, hash_files

    cv2.setNumThreads(1)

    def work() -> float:
        with tempfile.TemporaryDirectory() as folder:
            began = time.process_time()
            hashes = hash_files(paths, Path(folder), workers=1)
            PixelStore(Path(folder), size, "squash").build(paths, hashes, workers=1)
            return len(paths) / (time.process_time() - began)

    return work


def decode_as_rival(paths: list[str], size: int) -> Work:
    import rival

    return rival.decode(paths, size)


def evaluation_table(images: int, repeats: int) -> None:
    import pandas as pd
    from rival import link_images

    rows, measured = [], {}
    with tempfile.TemporaryDirectory() as folder:
        run = trained(folder, images)
        records = pd.read_csv(run / "split.csv", dtype=str, keep_default_na=False)
        records = records[records["split"] == "test"]
        linked = link_images(list(records["path"]), list(records["label"]), Path(folder) / "images")
        call = f"rival.evaluate({str(linked)!r}, {MODEL!r}, 224, 64)()"
        script = f"import sys; sys.path[:0] = ['benchmarks']; import rival; {call}"
        pairs = {
            "evaluation": (Contestant("ours", ours, str(run)), Contestant("rival", rival, str(linked))),
            "whole command": (
                Contestant("ours", command, len(records), "test.py", "--weights", str(run), "--quick"),
                Contestant("rival", command, len(records), "-c", script),
            ),
        }
        for what, pair in pairs.items():
            with contest(*pair) as contestants:
                rates = rounds(what, contestants, repeats)
            gain = ratio(rates["ours"], rates["rival"])
            measured[what] = {"images": len(records), "images_per_second": rates, "ratio": gain}
            middle = show_medians(rates, 1)
            target = "3.0" if what == "evaluation" else ""
            rows.append(
                {"what": f"{what}, {len(records)} images"} | middle | {"gain": show_ratio(gain), "target": target}
            )
    columns = {"what": MODEL, "ours": "test.py, images/s", "rival": "rival", "gain": "ours / rival", "target": "target"}
    report("test_speed", columns, rows, measured)


def cache_table(images: int, repeats: int) -> None:
    from config import DataConfig
    from dataset.loading import load_dataset

    records = load_dataset(DataConfig(phantom_count=max(2000, images)), 224).records
    paths = list(records["path"].iloc[:images])
    pair = (Contestant("ours", build_cache, paths, 224), Contestant("PIL", decode_as_rival, paths, 224))
    with contest(*pair) as contestants:
        rates = rounds("cache", contestants, repeats)
    gain = ratio(rates["ours"], rates["PIL"])
    middle = show_medians(rates, 0)
    row = {"what": f"{len(paths)} PNGs of 299×299 to 224×224"} | middle | {"gain": show_ratio(gain), "target": "1.5"}
    columns = {"what": "cache", "ours": "ours, images/s of one core", "PIL": "PIL + resize", "gain": "ours / PIL"}
    report("cache_speed", columns | {"target": "target"}, [row], {"images_per_cpu_second": rates, "ratio": gain})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    evaluation_table(arguments.images, arguments.repeats)
    cache_table(arguments.images, arguments.repeats)


if __name__ == "__main__":
    main()
