"""Prints what a script can see of how it was started."""

import sys

HEAVY = sorted({"torch", "transformers", "accelerate", "numpy", "datasets"} & set(sys.modules))

import atexit  # noqa: E402
import json  # noqa: E402
import multiprocessing  # noqa: E402
import os  # noqa: E402
import pickle  # noqa: E402
from dataclasses import dataclass  # noqa: E402

if __package__:
    from . import sibling
else:
    import sibling

FAREWELL = "goodbye"


@dataclass
class Point:
    x: int


def squared(x):
    return Point(x * x)


def say_farewell():
    print(FAREWELL)


if __name__ == "__main__":
    atexit.register(say_farewell)
    # `__file__` names the script also for who has left the folder that it was started from.
    os.chdir(os.path.dirname(os.path.abspath(sys.argv[0])))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        spawned = pool.map(squared, [3])
    seen = {
        "heavy": HEAVY,
        "argv": sys.argv,
        "name": __name__,
        "file": __file__,
        "package": __package__,
        "spec": __spec__ and __spec__.name,
        "cached": __cached__,
        "loader": type(__loader__).__name__,
        "path": sys.path[0],
        "sibling": sibling.__file__,
        "main": sys.modules["__main__"].Point is Point,
        "pickled": pickle.loads(pickle.dumps(Point(2))) == Point(2),
        "spawned": spawned == [Point(9)],
    }
    print(json.dumps(seen))
