"""From a log to data sets: pairs and labels with their weights, their probabilities of being wrong, and their origin.

The log is read once, into a store on disk (`log_store.py`). Prompt by prompt its events become rows (`signals.py`),
which wait on disk while equal and similar ones are found and signals are estimated (`signal_noise.py`); then they are
written. In memory are about 200 bytes a row. The same log and options give the same rows, whatever the machine.
"""

from __future__ import annotations

import gc
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..errors import OptionError, PluginError
from ..progress import progress
from . import signal_noise as noise
from .agreement import Findings
from .formats import messages_and_events
from .log_files import NAME, Reading, files_of
from .log_store import STARTS, Store
from .personal_data import Scrubber
from .preference_writer import HEAD, KINDS, Kind, Waiting
from .prompt_group import Group
from .prompt_preferences import preferences_of
from .report import reasons, summary
from .signals import DEFAULT_SIGNALS, OPT_IN_SIGNALS

logger = logging.getLogger(__name__)

DAY = 86_400.0
SAMPLE = 1 << 20


@dataclass(frozen=True)
class Preferences:
    """What a log says.

    Attributes:
        folder: holds `pairs.jsonl` and `labels.jsonl`.
        report: `behavior_report.json`, see `report.py`.
    """

    folder: Path
    report: dict[str, Any]
    # Removes the folder, where it is our own, with the last use of this.
    _keeper: Any = field(default=None, repr=False, compare=False)

    def pairs(self, split: str | None = None) -> Iterator[dict[str, Any]]:
        """Rows of `prompt`, `chosen`, `rejected` (lists of messages) and the columns of `load_feedback`."""
        return self._rows("pairs", split)

    def labels(self, split: str | None = None) -> Iterator[dict[str, Any]]:
        """Rows of `prompt`, `completion` (lists of messages), `label` and the columns of `load_feedback`."""
        return self._rows("labels", split)

    def _rows(self, kind: Kind, split: str | None) -> Iterator[dict[str, Any]]:
        with (self.folder / f"{kind}.jsonl").open(encoding="utf-8") as lines:
            for row in map(json.loads, lines):
                if split is None or row["split"] == split:
                    yield row


def load_feedback(log: str | Path, kind: Kind = "pairs", split: str | None = None, **options: Any) -> Any:
    """A log as a `datasets.Dataset` for TRL's trainers.

    Columns: `prompt`, `chosen`, `rejected` (pairs) or `prompt`, `completion`, `label` (labels), each but the label a
    list of `{role, content}`; `behavior_weight` (mean 1 in each split), `behavior_eps` (probability of being the wrong
    way round, in [0, 0.5)), `signal`, `user` (hashed; several joined by "+", None where unknown), `source_event_ids`,
    `split`; `tools` where the log has tools.

    Args:
        log: a file or folder of any format of `formats.py`.
        kind: "pairs" for DPO and reward models, "labels" for KTO.
        split: "train" or "eval"; None for both.
        options: those of `preferences_from_log`.

    Raises:
        OptionError: an option is out of range.
        PluginError: the log cannot be read, or holds no rows of this kind, or labels of one side alone.
    """
    from .arrow_dataset import dataset_of

    if kind not in KINDS:
        raise OptionError(f"{NAME}: there is no kind of rows {kind!r}; there are {', '.join(KINDS)}.")
    if split not in (None, "train", "eval"):
        raise OptionError(f"{NAME}: there is no split {split!r}; there are train, eval, or None for both.")
    found = preferences_from_log(log, **options)
    _refuse_one_sided(found.report, kind, split, log)
    return dataset_of(found.folder / f"{kind}.jsonl", kind, split)


def load_good_answers(log: str | Path, split: str | None = None, **options: Any) -> Any:
    """A log's good answers as a `datasets.Dataset` of `prompt` and `completion`, for TRL's SFTTrainer.

    They are what was preferred in a pair and what was labelled good, each once; other columns are `load_feedback`'s.

    Args:
        log, split, options: as of `load_feedback`.

    Raises:
        OptionError: an option is out of range.
        PluginError: the log cannot be read, or nothing in it is good.
    """
    from .arrow_dataset import dataset_of

    found = preferences_from_log(log, **options)
    weights: dict[str, list[float]] = {}
    for row in progress(_good_answers(found), f"{NAME}: weighing good answers"):
        weights.setdefault(row["split"], []).append(row["behavior_weight"])
    if not weights or (split is not None and split not in weights):
        raise PluginError(
            f"{NAME}: {log} holds no answer that somebody called good{f' in the split {split!r}' if split else ''}. "
            f"{reasons(found.report)} Look at it with `hf-ft behavioral inspect`.",
            code="data-missing",
        )
    mean = {name: sum(given) / len(given) for name, given in weights.items()}
    file = found.folder / "answers.jsonl"
    with file.open("w", encoding="utf-8") as lines:
        for row in progress(_good_answers(found), f"{NAME}: writing good answers"):
            weight = row["behavior_weight"] / mean[row["split"]]
            lines.write(json.dumps({**row, "behavior_weight": weight}) + "\n")
    return dataset_of(file, "labels", split).remove_columns(["label", "behavior_eps"])


def _good_answers(found: Preferences) -> Iterator[dict[str, Any]]:
    known: set[int] = set()
    pairs = ({**row, "completion": row["chosen"], "label": True} for row in found.pairs())
    for row in chain(pairs, found.labels()):
        key = hash(json.dumps([row["prompt"], row["completion"], row.get("tools")]))
        if row["label"] and key not in known:
            known.add(key)
            yield row


def preferences_from_log(
    path: str | Path,
    *,
    format: str = "auto",
    signals: Sequence[str] = DEFAULT_SIGNALS,
    user_cap: bool = True,
    pii: bool = True,
    half_life_days: float | None = None,
    ips: bool = False,
    estimate_noise: bool = True,
    eval_share: float = 0.1,
    seed: int = 0,
    limit: int | None = None,
    folder: str | Path | None = None,
) -> Preferences:
    """Make a log into preferences.

    Args:
        format: a key of `formats.FORMATS`; auto: by the first records.
        signals: types of events that count. "continue", "abandon" and "dwell" count only if named here, and weigh a
            fifth of all at most.
        user_cap: a user's rows weigh together as the square root of their number, not as their number.
        pii: replace personal data in texts, and hash users.
        half_life_days: after so many days an event weighs half; None: age does not count.
        ips: weigh by the inverse of the logged propensity, at most 5.
        estimate_noise: estimate how often each signal is wrong from its overlap with explicit labels; else the table's.
        eval_share: share of users (of conversations, where users are unknown) whose rows are the split "eval".
        seed: which ones.
        limit: read no more than so many messages and events.
        folder: where `pairs.jsonl` and `labels.jsonl` are written; None: a temporary one that lives as long as the
            result.

    Raises:
        OptionError: an option is out of range.
        PluginError: the log cannot be read, is of an unknown format, or is broken.
    """
    options = _checked(signals, half_life_days, eval_share, limit)
    log = Path(path)
    files = files_of(log)
    keeper = None
    if folder is None:
        keeper = tempfile.TemporaryDirectory(prefix="hf-ft-behavior-")
        folder = keeper.name
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    reading, scrub = Reading(), Scrubber() if pii else None
    with tempfile.TemporaryDirectory(prefix="hf-ft-log-") as work, _without_collector():
        store = Store(Path(work), scrub, digest(files) if pii else None, options)
        try:
            name, items = messages_and_events(log, format, reading)
            with closing(items):
                store.take(islice(items, limit))
            findings, rows = _collect(store, Path(work), eval_share, seed)
        finally:
            store.close()
        prior = noise.prior_epsilons()
        epsilons = noise.estimated_epsilons(findings.overlaps) if estimate_noise else prior
        written = {}
        for kind, waiting in rows.items():
            half_life = None if half_life_days is None else half_life_days * DAY
            written[kind] = waiting.finish(
                target / f"{kind}.jsonl", epsilons, store.latest, user_cap=user_cap, half_life=half_life, ips=ips
            )
    report = summary(name, log, reading, store, findings, written, prior, epsilons, scrub)
    for warning in report["warnings"]:
        logger.warning("%s: %s: %s", NAME, log, warning)
    return Preferences(target, report, keeper)


@contextmanager
def _without_collector() -> Iterator[None]:
    """Millions of small objects without circles: looking for circles among them takes a fifth of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def digest(files: Iterable[Path]) -> bytes:
    """The key of ids' hashes: who has the log can find an id again, and nobody else; two logs have two.

    Of each file the first and the last megabyte and the size.
    """
    state = blake2b(digest_size=32)
    for file in files:
        with file.open("rb") as content:
            state.update(content.read(SAMPLE))
            size = content.seek(0, 2)
            content.seek(max(SAMPLE, size - SAMPLE))
            state.update(content.read(SAMPLE) + str(size).encode())
    return state.digest()


def _checked(
    signals: Sequence[str], half_life_days: float | None, eval_share: float, limit: int | None
) -> frozenset[str]:
    known = (*DEFAULT_SIGNALS, *OPT_IN_SIGNALS)
    unknown = [signal for signal in signals if signal not in known] if not isinstance(signals, str) else [signals]
    if unknown or not signals:
        raise OptionError(
            f"{NAME}: signals is a list of some of {', '.join(known)}; not {', '.join(unknown) or 'none'}."
        )
    if half_life_days is not None and not half_life_days > 0:
        raise OptionError(f"{NAME}: half_life_days is a number of days above 0 or None, not {half_life_days}.")
    if not 0 <= eval_share < 1:
        raise OptionError(f"{NAME}: eval_share is in [0, 1), not {eval_share}.")
    if limit is not None and limit < 1:
        raise OptionError(f"{NAME}: limit is 1 or more, or None, not {limit}.")
    return frozenset(signals)


def _refuse_one_sided(report: dict[str, Any], kind: Kind, split: str | None, log: str | Path) -> None:
    counted = report["rows"][kind]
    other: Kind = "labels" if kind == "pairs" else "pairs"
    there = report["rows"][other]["rows"]
    trainers = "DPOTrainer or RewardTrainer" if other == "pairs" else "KTOTrainer"
    advice = f" It gives {there} {other}: load those (`kind={other!r}`), for a {trainers}." if there else ""
    if not counted["rows"] or (split is not None and not counted["splits"].get(split)):
        of_split = f" for the split {split!r}" if split is not None and counted["rows"] else ""
        why = reasons(report)
        raise PluginError(
            f"{NAME}: {log} gives no {kind}{of_split}."
            + (f" {why}" if why else "")
            + (advice or " Look at it with `hf-ft behavioral inspect`; more signals or another eval_share may help."),
            code="data-missing",
        )
    if kind == "labels" and 0 in (counted["positives"], counted["negatives"]):
        only = "good" if counted["positives"] else "bad"
        raise PluginError(
            f"{NAME}: all {counted['rows']} labels of {log} are {only}; from one side alone a model learns to say "
            f"{'anything' if only == 'good' else 'nothing'}. Log the other side too, or add signals "
            f"(regenerate, correction; copy, accept).{advice}",
            code="labels-unsuited",
        )


def _collect(store: Store, work: Path, eval_share: float, seed: int) -> tuple[Findings, dict[Kind, Waiting]]:
    findings = Findings()
    rows: dict[Kind, Waiting] = {kind: Waiting(work / kind, kind) for kind in KINDS}

    @lru_cache(1 << 16)
    def is_for_eval(who: str) -> bool:
        drawn = blake2b(who.encode("utf-8", "replace"), key=seed.to_bytes(8, "little", signed=True), digest_size=8)
        return int.from_bytes(drawn.digest(), "little") < eval_share * 2**64

    groups = progress(store.groups(), f"{NAME}: what was preferred", total=lambda: store.prompts, unit="prompts")
    for group in groups:
        of_eval = _split(group, is_for_eval, findings)
        context = None
        for preference in preferences_of(group, store.raters, findings):
            if context is None:
                context, last = group.context(), group.turns[group.prompt][HEAD - 5 :]
            kind: Kind = "pairs" if preference.label is None else "labels"
            rows[kind].add(preference, context, last, group.tools, of_eval)
    for waiting in rows.values():
        waiting.close()
    for kind_of_event, dropped in findings.dropped.items():
        store.dropped.setdefault(kind_of_event, Counter()).update(dropped)
    return findings, rows


def _split(group: Group, is_for_eval: Any, findings: Findings) -> bool:
    """Whether a prompt's rows are for evaluation; users of the other split leave it, so that splits share nothing."""
    turns = [group.turns[row] for row in group.before]
    # A system prompt is that of thousands of conversations.
    began = next((turn for turn in turns if not turn.startswith(STARTS["system"])), turns[0])
    sides = [is_for_eval(began if act.user is None else act.user) for act in group.acts]
    if True not in sides:
        return False
    if False not in sides:
        return True
    if sides:
        for act, side in zip(group.acts, sides, strict=True):
            if side:
                findings.drop(act.type, "of a user for evaluation, about a prompt that others train on")
        group.acts = [act for act, side in zip(group.acts, sides, strict=True) if not side]
    return False
