"""What the adaptive learning rate gains: test quality and steps over three base rates, against early stopping.

    python -m benchmarks.adaptive_lr [--device cuda] [--quick] [--json] [--write]

Settings: 300 of scikit-learn's digits with 40 % wrong training labels, at most 600 steps, the dev set's labels as
noisy or clean; and, where the data is (folder FT_DATA, default ../shared/data), fine-tuning a pretrained MiniLM encoder
on a few hundred film reviews, of which 10 or 40 % have the wrong label, in the dev set, too. The test set is always
clean. All rows use the real Trainer, the same data, the same initial weights and the same evaluations of the dev loss;
`default` is adaptive-lr without options (climb), `plateau`, `greedy` and `rollback` its other controllers, all on the
linear schedule. Defaults were chosen on digits with seeds 100 to 105 and 200 to 217.

Of the digits without any evaluation the baseline is stock's linear schedule to its end, and `default, hold_out=0.2`
keeps a fifth of the 300 rows, wrong labels among them, to evaluate on; its best rate is the one with its lowest test
NLL. There the default is plateau on the training loss.

The baseline is the strongest that transformers has: `reduce_lr_on_plateau` with `EarlyStoppingCallback` and the best
checkpoint. It gets what `plateau` has: the factor, the patience of a cut, and the stop after as many evaluations
without improvement as that waits for three cuts and an end, eight. A second row stops after four. Of transformers' own
adaptive schedulers without early stopping, `reduce_lr_on_plateau` gets that factor and patience (its default patience
of 10 evaluations rarely ends before these runs do), and `greedy` gets the lower bound of its paper (arXiv:2512.14527),
a tenth of the base rate, since its default of 1e-3 only ever raises lower rates, with our factor and patience for the
same reason.

No checkpoint is written: a callback takes the test metrics at each best dev loss ("best"), and the model that `train()`
leaves behind gives the others ("end"). `ours` and `baseline` are means over seeds, `quartiles` are of the seeds'
ratios. "Worst rate" is the rate at which that mean is worst, for each row its own. The baseline's best rate is the one
with its lowest mean dev loss. `noise` is `report.noise_floor` of the A/A ratios, one per seed: the baseline with
another initialization and data order against itself.
"""

from __future__ import annotations

import multiprocessing
import os
from argparse import Namespace
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor

from benchmarks import report
from benchmarks.adaptive_lr.rows import detail_results, headline_results
from benchmarks.adaptive_lr.runs import measured_by
from benchmarks.adaptive_lr.settings import BENCHMARK, settings
from benchmarks.data import has_reviews
from benchmarks.report import LeftOut, Result


def measured_rows(asked: Namespace) -> Iterator[Result | LeftOut]:
    # One run a core; what is measured does not depend on time. A GPU takes one after the other.
    workers = (os.cpu_count() or 1) if asked.device == "cpu" else 1
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        for setting in settings(asked.quick):
            measured = measured_by(setting, asked.quick, asked.device, pool)
            about = report.conditions(
                asked.device,
                seeds=setting.seeds,
                rates=setting.rates,
                max_steps=setting.steps,
                batch=setting.batch,
                eval_steps=setting.eval_steps,
                threads_a_run=1,
            )
            yield from headline_results(setting, measured, about)
            yield from detail_results(setting, measured, about)
    if not has_reviews():
        yield LeftOut("sentiment: FT_DATA names no folder with ckpt_minilm_l6 and sentiment_mr")


if __name__ == "__main__":
    raise SystemExit(report.run(BENCHMARK, __doc__, measured_rows))
