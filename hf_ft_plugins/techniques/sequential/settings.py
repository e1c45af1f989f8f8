"""The name that errors and logs give the technique by."""

NAME = "sequential"
