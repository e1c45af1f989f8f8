"""Small logs that the tests write, and what is read of them."""

import json

from hf_ft_plugins.feedback import preferences_from_log

EMAIL = "jane.doe@example.org"


def lines(path, records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def conversation(*answers, prompt="What is blue?", name="c"):
    """One prompt with several answers: ids `c.p`, `c.0`, `c.1`, ..."""
    question = {"id": f"{name}.p", "parent_id": None, "role": "user", "content": prompt}
    return [
        question,
        *(
            {"id": f"{name}.{number}", "parent_id": f"{name}.p", "role": "assistant", "content": answer}
            for number, answer in enumerate(answers)
        ),
    ]


def found(path, **options):
    options = {"eval_share": 0.0, "estimate_noise": False, **options}
    made = preferences_from_log(path, **options)
    return list(made.pairs()), list(made.labels()), made.report


def contents(row):
    return row["chosen"][0]["content"], row["rejected"][0]["content"]


def why(report, kind):
    return report["events"][kind]["dropped"]


def weigh(log, acts, **options):
    messages = [m for n in range(len(acts)) for m in conversation(f"an answer {n}", name=f"c{n}", prompt=f"q{n}")]
    acts = [{"type": "copy", "message_id": f"c{n}.0", **act} for n, act in enumerate(acts)]
    _, labels, _ = found(log(messages, acts, str(len(options)) + str(len(acts))), **options)
    return [row["behavior_weight"] for row in labels]
