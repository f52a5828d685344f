"""Runs a script or a module as `python` does, and writes the stacks of all its threads where it takes too long.

    python benchmarks/studies/watched.py SECONDS FOLDER (-m MODULE | SCRIPT) ...

Each process of a launch writes to a file of its own, FOLDER/rank0.txt and so on, and runs on.
"""

from __future__ import annotations

import faulthandler
import os
import runpy
import sys
from pathlib import Path


def main() -> None:
    """Run what the command line names."""
    seconds, folder, *words = sys.argv[1:]
    path = Path(folder, f"rank{os.environ.get('RANK', '0')}.txt")
    with path.open("w", encoding="utf-8") as file:
        faulthandler.dump_traceback_later(float(seconds), file=file)
        try:
            if words[0] == "-m":
                sys.argv = words[1:]
                runpy.run_module(words[1], run_name="__main__", alter_sys=True)
            else:
                sys.argv = words
                runpy.run_path(words[0], run_name="__main__")
        finally:
            faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
