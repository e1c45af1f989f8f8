"""The signals that a log holds, as a table: what people did, what that says of an answer, and how often it is wrong.

Each signal says that an answer is better than another one, or that it is good or bad, and is wrong with a probability
epsilon. The table's epsilons are first guesses; `signal_noise.py` estimates them. Sources: the research on which this
technique rests finds explicit labels in about 30 % of chats (arXiv 2407.10944) and implicit ones weak (2507.23158); how
long an answer was looked at, and whether the user left, are the weakest, which is why they are off unless asked for.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One signal.

    Attributes:
        events: the type of event that it comes from.
        emits: "pair", "positive", "negative" or "label" (either).
        epsilon: how often it is wrong, before anything is known of this log.
        explicit: whether people said it, rather than did something that suggests it.
    """

    events: str
    emits: str
    epsilon: float
    explicit: bool = False
    opt_in: bool = False


RULES = {
    "edit": Rule("edit", "pair", 0.05),
    "choice": Rule("choice", "pair", 0.10, explicit=True),
    "both-bad": Rule("choice", "negative", 0.10, explicit=True),
    "thumbs": Rule("thumbs", "label", 0.10, explicit=True),
    "rating": Rule("rating", "label", 0.15, explicit=True),
    "regenerate-kept": Rule("regenerate", "pair", 0.25),
    "regenerate": Rule("regenerate", "negative", 0.35),
    "copy": Rule("copy", "positive", 0.25),
    "accept": Rule("accept", "positive", 0.25),
    "correction": Rule("correction", "negative", 0.35),
    "continue": Rule("continue", "positive", 0.42, opt_in=True),
    "dwell": Rule("dwell", "positive", 0.42, opt_in=True),
    "abandon": Rule("abandon", "negative", 0.42, opt_in=True),
}
EXPLICIT = frozenset(signal for signal, rule in RULES.items() if rule.explicit)
DEFAULT_SIGNALS = tuple(dict.fromkeys(rule.events for rule in RULES.values() if not rule.opt_in))
OPT_IN_SIGNALS = tuple(dict.fromkeys(rule.events for rule in RULES.values() if rule.opt_in))
