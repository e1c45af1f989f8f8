"""Lists and dictionaries as Python prints them, read without Python's parser.

Tables without lists hold `str(turns)`. `ast.literal_eval` reads that too, and its documentation warns that a text made
for it can crash the interpreter; it also prints warnings that quote the text. So tokens are translated to JSON.
"""

from __future__ import annotations

import json
import re
from typing import Any

TOKEN = re.compile(
    r"""(?P<blank>\s+)|(?P<text>'(?:[^'\\\n]|\\.)*'|"(?:[^"\\\n]|\\.)*")|(?P<mark>[\[\]{}:,])"""
    r"""|(?P<word>None|True|False|nan|inf)\b|(?P<number>-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)(?![\w.])""",
    re.DOTALL,
)
# What `repr` escapes: quotes, backslashes, and characters that cannot be printed.
ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U(00(?:0[0-9a-f]|10)[0-9a-f]{4})|(.))", re.DOTALL)
ESCAPED = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", "'": "'", '"': '"'}
WORDS = {"None": "null", "True": "true", "False": "false", "nan": "NaN", "inf": "Infinity"}


def python_literal(text: str) -> Any:
    """The lists, dictionaries, texts, numbers, booleans and None that `repr` wrote as `text`.

    Raises:
        ValueError: it is something else, or broken.
        RecursionError: it is nested too deeply.
    """
    place, translated = 0, []
    while place < len(text):
        token = TOKEN.match(text, place)
        if token is None:
            raise ValueError(f"not a literal of Python at character {place + 1}")
        place = token.end()
        if token["text"]:
            translated.append(json.dumps(ESCAPE.sub(_unescaped, token["text"][1:-1])))
        elif not token["blank"]:
            translated.append(WORDS.get(token[0], token[0]))
    return json.loads("".join(translated))


def _unescaped(escape: re.Match[str]) -> str:
    code = escape[1] or escape[2] or escape[3]
    if code:
        return chr(int(code, 16))
    if escape[4] not in ESCAPED:
        raise ValueError("an escape that Python does not print")
    return ESCAPED[escape[4]]
