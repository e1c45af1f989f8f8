"""Ends in the way that its first argument names."""

import sys


def fail():
    raise ValueError("the first error")


match sys.argv[1]:
    case "status":
        sys.exit(3)
    case "text":
        sys.exit("a text")
    case "error":
        fail()
    case "chained":
        try:
            fail()
        except ValueError as first:
            raise KeyError("the second error") from first
    case "interrupt":
        raise KeyboardInterrupt
    case "well":
        sys.exit(0)
