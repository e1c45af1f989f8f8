"""What transfer gains on few pictures, in and out of distribution, against stock fine-tuning, and the probe's speed.

On few sentences: `python -m benchmarks.transfer_text`.

    python -m benchmarks.transfer [--device cuda] [--quick] [--json] [--write]

Settings, each a pretrained model, a few labelled examples and a test set, all rows with the same examples, steps,
batches and new head:

- digits: a small ResNet that has learned 900 scans, half of them inverted, shifted or blurred, gets a new head and 80
  other, plain scans; tested plain (in distribution) and inverted, shifted, blurred (out of it).
- flowers: MobileNetV1 0.25/128 from ImageNet, 40 photographs of each of five flowers; tested likewise. Its config's
  dropout of 0.999 (of a converted checkpoint; the share that is kept) is set to 0.001 in every row.

All but digits need the folder FT_DATA (default ../shared/data) and are skipped without it. A row's rate is the
one of three with the best mean accuracy in distribution on dev data, for each row its own. `ours` and `baseline` are
mean accuracies over seeds, in points; `ratio` is their quotient. `noise` is `report.noise_floor` of stock's accuracy
with another initialization and order of data over stock's, one ratio a seed; `quartiles` are of the seeds' ratios.
`by_rate` holds mean and deviation of every part at every rate.

The probe's speed: seconds of `train()` for 20 epochs of a head on a frozen backbone, of processor time on a CPU; what
both get right on the test set stands in the conditions. And seconds until the head on the frozen MobileNet reaches, on
dev data, the accuracy that the slower of the two ends with, less a point; evaluations are not counted. Rounds are
interleaved; the A/A is stock's probe again.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator

from benchmarks import report
from benchmarks.data import DATA, has_reviews
from benchmarks.report import LeftOut, Result
from benchmarks.transfer.comparison import results_of
from benchmarks.transfer.probe import probe_results, twenty_epochs
from benchmarks.transfer.runs import measure
from benchmarks.transfer.settings import BENCHMARK, settings


def measured_rows(asked: Namespace) -> Iterator[Result | LeftOut]:
    names = ["digits"]
    if (DATA / "flowers5_128px").exists() and (DATA / "ckpt_mobilenet_v1_025_128").exists():
        names.append("flowers")
    else:
        yield LeftOut("flowers: FT_DATA names no folder with its data")
    seeds = {name: (1 if name != "digits" else 2) if asked.quick else 5 for name in names}
    if "flowers" in names and has_reviews():
        yield from twenty_epochs(asked.quick, asked.device)
    if "flowers" in names:
        yield from probe_results(1 if asked.quick else 5, 60 if asked.quick else 200, asked.device)
    measured = measure(names, seeds, asked.device, asked.quick)
    for name in names:
        setting = settings(asked.quick)[name]
        about = report.conditions(asked.device, seeds=seeds[name], rates=setting.rates, max_steps=setting.steps)
        yield from results_of(setting, measured[name], about)


if __name__ == "__main__":
    raise SystemExit(report.run(BENCHMARK, __doc__, measured_rows))
