"""Near-duplicates are found, and nothing else."""

import random

import numpy as np

from hf_ft_plugins.feedback.near_duplicates import near_duplicates, signatures


def test_near_duplicates_are_found_and_others_are_not():
    draw = random.Random(0)
    vocabulary = [f"word{n}" for n in range(3000)]
    texts = [draw.choices(vocabulary, k=120) for _ in range(200)]
    changed = [[*text[:60], "changed", *text[61:]] for text in texts[:50]]
    rows = [("a question", " ".join(text)) for text in texts + changed]
    first = near_duplicates(signatures(rows), np.zeros(250, int))
    assert (first[:200] == np.arange(200)).all()
    assert (first[200:] == np.arange(50)).mean() > 0.9
    # Of another kind, as a good and a bad answer are, they are not one.
    kinds = np.arange(250) // 200
    assert (near_duplicates(signatures(rows), kinds) == np.arange(250)).all()
    chinese = [("", "".join(chr(0x4E00 + draw.randrange(3000)) for _ in range(200))) for _ in range(30)]
    assert (near_duplicates(signatures(chinese), np.zeros(30, int)) == np.arange(30)).all()
