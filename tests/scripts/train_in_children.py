"""A script whose trainer is built and run in a process of multiprocessing: `train_in_children.py fork|spawn`."""

import json
import multiprocessing
import sys
from pathlib import Path


def child(folder):
    from train_tiny import train

    train(["--output_dir", folder, "--max_steps", "6"])


if __name__ == "__main__":
    method = sys.argv[1]
    process = multiprocessing.get_context(method).Process(target=child, args=(method,))
    process.start()
    process.join()
    log = json.loads((Path(method) / "result-0.json").read_text())["log"]
    print("cuts", sum(entry.get("adaptive_lr/action") == "cut" for entry in log))
