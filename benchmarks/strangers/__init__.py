"""Inputs as strangers bring them: for every technique, situations from real life, each right or refused well.

A situation is an architecture, a layout of data, a form of a column, a tokenizer, a collator, an optimizer or a trainer
that people use and that nobody had in mind; where there is something to enumerate (all names of `optim`, all heads
that `AutoModelFor...` gives), it is enumerated. Each is held to a reference of its own: a value by hand, or what stock
does. One module a technique, with a function `situations()`.

Verdicts: **right**; **refused**: a `PluginError` before anything was trained, whose text holds the mend that the
situation names; **wrong**: another value, or an error where the input is fine or with another reason; **raw error**:
any other exception. Gate: no row wrong, no raw error.
"""
