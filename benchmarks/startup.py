"""The time to start: `--help`, and from the command to the end of the first training step.

    python benchmarks/startup.py [--repeats 5]

Everything is timed from outside, as a user would: from giving the command until the help has ended, or until train.py's
progress bar shows the first step as done (with the cache built and the precision remembered). `bare` is the least that
a training step needs in its own process: import torch and torchvision, build the model, one step in the same precision.
"""

from __future__ import annotations

import argparse
import os
import re
import select
import subprocess
import sys
import tempfile
import time

from common import ROOT, ratio, report, show_medians, show_ratio

PROGRAMS = ("train.py", "test.py", "draw_cam.py", "dataset/data.py")
FIRST_STEP = re.compile(rb"epoch 1/\d+:[^\r]*\| [1-9]\d*/")
BARE = """
import torch, torchvision, torch.nn.functional as F
device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
model = torchvision.models.get_model({model!r}, num_classes=4).to(device, memory_format=torch.channels_last)
inputs = torch.randn({batch}, 3, 224, 224, device=device).contiguous(memory_format=torch.channels_last)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
with torch.autocast(device.type, torch.bfloat16, enabled={bf16}):
    scores = model(inputs)
F.cross_entropy(scores.float(), torch.zeros({batch}, dtype=torch.long, device=device)).backward()
optimizer.step()
print("epoch 1/1: | 1/", flush=True)
"""


def until(command: list[str], sign: re.Pattern[bytes]) -> float:
    """Return the seconds until the command's output shows `sign`, then end it. Raises: `RuntimeError`."""
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=ROOT) as process:
        seen = b""
        while select.select([process.stdout], [], [], 300)[0] and (chunk := os.read(process.stdout.fileno(), 65536)):
            seen += chunk
            if sign.search(seen):
                seconds = time.perf_counter() - began
                process.kill()
                return seconds
    raise RuntimeError(f"{' '.join(command)} showed no first step:\n{seen.decode(errors='replace')[-2000:]}")


def help_table(repeats: int) -> None:
    rows, measured = [], {}
    for program in PROGRAMS:
        seconds = []
        for _ in range(repeats + 1):
            began = time.perf_counter()
            subprocess.run([sys.executable, program, "--help"], check=True, capture_output=True, cwd=ROOT)
            seconds.append(time.perf_counter() - began)
        measured[program] = seconds[1:]
        rows.append({"program": program} | show_medians({"seconds": seconds[1:]}, 2))
    report("help", {"program": "--help of", "seconds": "seconds"}, rows, measured)


def first_step_table(models: list[str], batch: int, repeats: int) -> None:
    from config import DataConfig
    from dataset.cache import cache_folder
    from pretrained_models import build_model
    from training.precision import choose_precision
    from utils import pick_device

    device, rows, measured = pick_device("auto"), [], {}
    for model in models:
        # stores the measured precision under the key that the command looks up
        network = build_model(model, 4)[0]
        precision = choose_precision(network, model, (batch, 3, 224, 224), device, cache_folder(DataConfig()))
        with tempfile.TemporaryDirectory() as folder:
            ours = [sys.executable, "train.py", "--model", model, "--init", "none", "--batch", str(batch)]
            ours += ["--save", folder]
            bare = [sys.executable, "-c", BARE.format(model=model, batch=batch, bf16=precision == "bf16")]
            seconds: dict[str, list[float]] = {"ours": [], "bare": []}
            for number in range(repeats + 1):
                for name, command in (("ours", ours), ("bare", bare)):
                    taken = until(command, FIRST_STEP)
                    if number:  # the first pair, not counted, reads everything into memory and builds the cache
                        seconds[name].append(taken)
        times_longer = ratio(seconds["ours"], seconds["bare"])
        measured[model] = {"precision": precision, "seconds": seconds, "ratio": times_longer}
        middle = show_medians(seconds, 2)
        rows.append({"model": model} | middle | {"ratio": show_ratio(times_longer), "target": "at most 1.3"})
    columns = {
        "model": "command to first step",
        "ours": "train.py, s",
        "bare": "bare, s",
        "ratio": "ours / bare",
        "target": "target",
    }
    report("startup", columns, rows, measured | {"batch": batch})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="resnet18", help="torchvision names, with commas")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    help_table(arguments.repeats)
    first_step_table(arguments.models.split(","), arguments.batch, arguments.repeats)


if __name__ == "__main__":
    main()
