"""The options and results of the Python API have examples, which run as printed and load nothing heavy."""

from __future__ import annotations

import subprocess
import sys

EXAMPLES = """
import doctest, sys
from dataclasses import is_dataclass
import edgetune

modules = [(edgetune, edgetune.__all__), (edgetune.data, dir(edgetune.data))]
homes = {name: getattr(module, name) for module, names in modules for name in names if not name.startswith("_")}
found = {
    name: kind for name, kind in homes.items()
    if isinstance(kind, type) and is_dataclass(kind) and kind.__module__.startswith("edgetune.api")
}
finder, runner = doctest.DocTestFinder(recurse=False), doctest.DocTestRunner()
for name, kind in found.items():
    (test,) = finder.find(kind, name, globs={})
    if not test.examples:
        print(name, "has no example")
    runner.run(test)
print(sorted({"torch", "transformers", "onnxruntime"} & set(sys.modules)), len(found) > 20)
"""


def test_examples_in_docstrings() -> None:
    done = subprocess.run([sys.executable, "-c", EXAMPLES], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("[] True\n", "")
