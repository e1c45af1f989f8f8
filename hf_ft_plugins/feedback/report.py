"""What became of a log: `behavior_report.json`, and a page that people read (`behavior_report.html`).

Counted are lines, messages, events and rows; what was left out has a reason at each of these. The page needs nothing
from anywhere else.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from .agreement import Findings
from .events import TYPES
from .log_files import Reading
from .log_store import Store
from .personal_data import Scrubber
from .preference_writer import Written
from .signal_noise import effective_size
from .signals import RULES

BECAME = ("pair", "positive", "negative")
# KTO, eq. 8 (arXiv 2402.01306): lambda_D n_D / (lambda_U n_U) lies between these.
KTO_BALANCE = (1.0, 4 / 3)
# Of an example's turn, characters.
MOST_TEXT = 600
NO_TEXT = "(no text)"


def summary(
    name: str,
    log: Path,
    reading: Reading,
    store: Store,
    findings: Findings,
    written: dict[Any, Written],
    prior: dict[str, float],
    epsilons: dict[str, float],
    scrub: Scrubber | None,
) -> dict[str, Any]:
    """The report; every value is of JSON."""
    report: dict[str, Any] = {
        "log": log.name,
        "format": name,
        "lines": {
            "read": reading.lines,
            "broken": reading.broken,
            "broken_first": reading.quoted,
            "left_out": dict(reading.left_out),
            "remarks": dict(reading.remarks),
            "keys": list(reading.keys),
            "columns_not_read": sorted(reading.unread),
        },
        "messages": {**{note: count for note, count in store.notes.items() if count}, "circles": store.cycles},
        "events": {kind: _events(kind, store, findings) for kind in TYPES if store.seen[kind]},
        "conflicts": dict(findings.conflicts),
        "rows": {kind: _rows(kind, rows) for kind, rows in written.items()},
        "noise": {signal: _noise(signal, findings, prior, epsilons) for signal in RULES},
        "shown_position": {str(place): count for place, count in sorted(store.shown.items())},
        "personal_data": None if scrub is None else dict(scrub.found.most_common()),
    }
    report["warnings"] = list(_warnings(report))
    return report


def _events(kind: str, store: Store, findings: Findings) -> dict[str, Any]:
    used = findings.used.get(kind, Counter())
    dropped = store.dropped.get(kind, Counter())
    return {
        "seen": store.seen[kind],
        **{how: used[how] for how in BECAME},
        "dropped": dict(dropped.most_common()),
    }


def _rows(kind: str, rows: Written) -> dict[str, Any]:
    total = float(rows.weight.sum())
    names = np.array(rows.signal, dtype=object)
    by_signal = {}
    for signal in sorted(set(rows.signal), key=list(RULES).index):
        of_it = names == signal
        weight = rows.weight[of_it]
        by_signal[signal] = {
            "rows": len(weight),
            "weight": round(float(weight.sum()) / total, 4) if total else 0.0,
            "effective_rows": round(effective_size(weight), 1),
            "epsilon_prior": round(float(rows.prior[of_it].mean()), 4),
            "epsilon": round(float(rows.epsilon[of_it].mean()), 4),
        }
    users = rows.users[rows.users > 0]
    found: dict[str, Any] = {
        "rows": len(rows.weight),
        "splits": {"train": int((~rows.evaluation).sum()), "eval": int(rows.evaluation.sum())},
        "effective_rows": round(effective_size(rows.weight), 1),
        "by_signal": by_signal,
        "dropped": dict(rows.dropped.most_common()),
        "users": {
            "users": len(users),
            "capped": int((users > 1).sum()),
            "largest_share_of_rows": round(float(users.max() / users.sum()), 4) if len(users) else None,
            "largest_share_of_weight_capped": round(float(np.sqrt(users.max()) / np.sqrt(users).sum()), 4)
            if len(users)
            else None,
        },
    }
    if kind == "pairs":
        gap = rows.words[:, 0] - rows.words[:, 1]
        found["length_gap_words"] = {
            "mean": round(float(gap.mean()), 2) if len(gap) else None,
            "median": float(np.median(gap)) if len(gap) else None,
            "chosen_longer": round(float((gap > 0).mean()), 4) if len(gap) else None,
        }
        return found
    good, bad = int(rows.label.sum()), int((~rows.label).sum())
    found |= {"positives": good, "negatives": bad}
    if good and bad:
        low, high = (round(share * bad / good, 4) for share in KTO_BALANCE)
        # One of the two stays 1; the other may lie in the range.
        found["kto"] = {
            "desirable_weight": [low, high] if good < bad else 1.0,
            "undesirable_weight": 1.0 if good < bad else [round(good / bad / KTO_BALANCE[1], 4), round(good / bad, 4)],
        }
    return found


def _noise(signal: str, findings: Findings, prior: dict[str, float], epsilons: dict[str, float]) -> dict[str, Any]:
    overlaps = {
        judge if judged == signal else judged: {"agreed": round(agreed, 1), "differed": round(differed, 1)}
        for (judged, judge), (agreed, differed) in findings.overlaps.items()
        if signal in (judged, judge)
    }
    return {"prior": prior[signal], "estimated": round(epsilons[signal], 4), "overlaps": overlaps}


def _warnings(report: dict[str, Any]) -> Iterator[str]:
    pairs, labels, read = report["rows"]["pairs"], report["rows"]["labels"], report["lines"]
    if not pairs["rows"] and not labels["rows"]:
        yield f"it gives neither pairs nor labels. {reasons(report)}"
    elif not pairs["rows"]:
        yield "it gives labels and no pairs: it serves KTO, not DPO."
    if labels["rows"] and not (labels["positives"] and labels["negatives"]):
        yield f"all {labels['rows']} labels are {'good' if labels['positives'] else 'bad'}: KTO needs both."
    if report["messages"]["circles"]:
        yield f"parents go round in a circle, for example from message {report['messages']['circles'][0]}."
    missing = sum(
        count for events in report["events"].values() for reason, count in events["dropped"].items()
        if "does not exist" in reason
    )  # fmt: skip
    if missing:
        yield f"{missing} events are about messages that the log does not hold."
    for reason, count in read["left_out"].items():
        yield f"{count} of {read['read']} records were left out: {reason}."
    for remark, count in read["remarks"].items():
        yield f"{count} {remark}."
    if read["broken"]:
        yield f"{read['broken']} of {read['read']} lines are broken; the first: {'; '.join(read['broken_first'])}."


def reasons(report: dict[str, Any]) -> str:
    """Why a log gives nothing: what was left out or dropped, the three most frequent; else as what it was read."""
    counted = Counter(report["lines"]["left_out"])
    for events in report["events"].values():
        counted.update(events["dropped"])
    if counted:
        why = "; ".join(f"{reason}: {count}" for reason, count in counted.most_common(3))
        return f"Left out or dropped: {why}."
    if report["events"]:
        return ""
    return (
        f"It was read as {report['format']}, and no record says which answer is good or better; the first has the keys "
        f"{', '.join(report['lines']['keys'])}. If it is another format, name it (`--format`)."
    )


def write(report: dict[str, Any], folder: Path, pair: Mapping[str, Any] | None = None) -> Path:
    """Write both forms into `folder`; returns the page, which shows `pair` (see `rendered`)."""
    (folder / "behavior_report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
    page = folder / "behavior_report.html"
    page.write_text(rendered(report, pair), encoding="utf-8")
    return page


def rendered(report: dict[str, Any], pair: Mapping[str, Any] | None = None) -> str:
    """The page.

    Args:
        pair: a row of `Preferences.pairs()` to show, cut, its personal data replaced even where the rows keep theirs.
    """
    import jinja2

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters["share"] = lambda value: f"{100 * value:.1f}\N{NO-BREAK SPACE}%"
    environment.filters["count"] = lambda value: f"{value:,}" if isinstance(value, int) else f"{value:,.1f}"
    template = (files(__package__) / "report.html.jinja").read_text(encoding="utf-8")
    example = None if pair is None else _shown(pair)
    return environment.from_string(template).render(report=report, became=BECAME, example=example)


def _shown(pair: Mapping[str, Any]) -> dict[str, Any]:
    """The last turns of a pair as text."""
    turns = {name: pair[name][-1] for name in ("prompt", "chosen", "rejected")}
    texts = {name: _cut(Scrubber()(turn["content"] or NO_TEXT)) for name, turn in turns.items()}
    return {**texts, "earlier": len(pair["prompt"]) - 1, "signal": pair["signal"]}


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TEXT else f"{text[: MOST_TEXT - 1]}…"
