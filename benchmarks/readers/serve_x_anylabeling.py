"""`edgetune serve` asked by the client of X-AnyLabeling itself, which needs no screen for that.

    make test-x-anylabeling

makes X-AnyLabeling's environment, exports the tiny example model, starts our server with an API key, and has the
client list the models and ask about 12 scenes. Its shapes are compared with `Session.ground`. Qt wants some system
libraries; on Debian they are libegl1, libgl1, libnss3, libxkbcommon0, libdbus-1-3 and libasound2.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from reader_environments import python
from serve_label_studio import KEY, gap, our_server, prepare

from edgetune_runtime import Session

CLIENT = Path(__file__).with_name("ask_x_anylabeling.py")


def ask(program: Path, home: Path, port: int, key: str, questions: list[tuple[str, str]]) -> dict[str, Any]:
    """What the client makes of our answers."""
    variables = os.environ | {"QT_QPA_PLATFORM": "offscreen", "HOME": str(home)}
    variables.pop("PYTHONPATH", None)
    command = [str(program), str(CLIENT), f"http://127.0.0.1:{port}/x-anylabeling", key]
    done = subprocess.run(
        command, input=json.dumps(questions), env=variables, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"error: X-AnyLabeling's client left with {done.returncode}: {done.stderr.strip()[-2000:]}")
    told: dict[str, Any] = json.loads(done.stdout[done.stdout.index('{"models"') :])
    return told


def main() -> None:
    """Start the server, have the client ask, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for the bundle and the pictures")
    parser.add_argument("--environments", type=Path, required=True, help="folder for X-AnyLabeling's environment")
    options = parser.parse_args()
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    program = python(options.environments.resolve(), "x_anylabeling")
    records = prepare(work)
    phrases = [phrase for _, phrase in records]
    words = ". ".join(phrases) + "."
    with Session.load(work / "bundle", threads=1) as session:
        expected = [
            [
                (phrase, found)
                for phrase, each in zip(phrases, session.ground(path, phrases), strict=True)
                for found in each
            ]
            for path, _ in records
        ]
    with our_server(work / "bundle", work / "edgetune.log") as port:
        told = ask(program, work, port, KEY, [(str(path), words) for path, _ in records])
        refused = ask(program, work, port, "wrong", [(str(records[0][0]), words)])
        silent = ask(program, work, port, KEY, [(str(records[0][0]), "")])
    boxes = [found.box for each in expected for _, found in each]
    corners = [[x1, y1, x2, y1, x2, y2, x1, y2] for x1, y1, x2, y2 in boxes]
    shapes = [shape for each in told["told"] for shape in each]
    far = gap([[number for point in points for number in point] for _, _, points, _ in shapes], corners)
    names = [(label, score) for label, _, _, score in shapes] == [(p, f.score) for each in expected for p, f in each]
    checks = {
        f"models: {', '.join(told['models'])}, asked by {told['mode']}": told["mode"] == "text_prompt",
        f"{len(shapes)} rectangles of {len(records)} pictures, at most {far:.1e} pixels from Session.ground": far < 1e-9
        and len(shapes) >= len(records) // 2
        and {kind for _, kind, _, _ in shapes} == {"rectangle"},
        "their labels and scores": names,
        f"messages to the user: {told['messages']}": not told["messages"],
        f"models with a wrong key: {refused['models']}": not refused["models"],
        f"without words: {silent['messages']}": len(silent["messages"]) == 1 and silent["told"] == [[]],
    }
    for what, right in checks.items():
        print(f"{'ok   ' if right else 'WRONG'} {what}")
    sys.exit(0 if all(checks.values()) else 1)


if __name__ == "__main__":
    main()
