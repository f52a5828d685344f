"""The script that measures pictures in and boxes out beside other engines, as far as it needs none of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from builders import REPOSITORY
from edgetune_runtime.timing import peak_rss

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks" / "peers"))  # as for a script and its workers
sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks" / "peers" / "image_peers"))

import image_to_box
import measuring
import table

SCRIPT = REPOSITORY / "benchmarks" / "peers" / "image_to_box.py"


def test_every_peer_takes_every_place() -> None:
    order = list(measuring.turns("abc", 4))
    rounds = ["".join(name for number, name in order if number == each) for each in range(4)]
    assert rounds == ["abc", "bca", "cab", "abc"]


def test_peak_memory_is_the_systems() -> None:
    """The runtime reads its own peak by itself; a process beside this one adds its own."""
    assert measuring.peak_mb([os.getpid()]) == pytest.approx(peak_rss() / 1e6, rel=0.01)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        both = measuring.peak_mb([os.getpid(), other.pid])
        assert both > measuring.peak_mb([os.getpid()])
        other.communicate(b"\n")


def test_a_process_that_ended_has_no_peak(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text("Name:\tgone\nState:\tZ (zombie)\n")
    with pytest.raises(ValueError, match="has no line VmHWM"):
        measuring.peak_mb([7], tmp_path)


def test_cpu_seconds_are_the_systems() -> None:
    used, own = measuring.cpu_seconds([os.getpid()]), time.process_time()
    while time.process_time() < own + 0.3:
        pass
    # The system counts in ticks of 10 ms.
    assert measuring.cpu_seconds([os.getpid()]) - used == pytest.approx(time.process_time() - own, abs=0.05)


WORKER = """
import sys
sys.path.append({folder!r})
from answering import Peer, Told, serve

def load(settings):
    if settings["mode"] == "missing":
        raise FileNotFoundError("no such model")
    def answer(picture, words, tokens):
        print("a library's own words")
        if not words:
            raise RuntimeError("no phrase")
        return Told([10] * len(words), [tokens] * len(words))
    return Peer(answer, "nothing", ["pytest"])

serve(load)
"""


def worker(folder: Path, mode: str) -> measuring.Worker:
    script = folder / "worker.py"
    script.write_text(WORKER.format(folder=str(SCRIPT.parent / "image_peers")))
    return measuring.Worker(Path(sys.executable), script, {"mode": mode}, dict(os.environ), folder / "log")


def test_a_worker_answers_and_says_why_it_cannot(tmp_path: Path) -> None:
    held = worker(tmp_path, "")
    assert held.told["versions"] == {"pytest": pytest.__version__}
    told = held.ask(tmp_path / "picture.png", ["one", "two"], 5)
    assert told["prompt_tokens"] == [10, 10] and told["tokens"] == [5, 5]
    assert told["wall_s"] >= told["seconds"] > 0
    with pytest.raises(measuring.Failed, match="RuntimeError: no phrase"):
        held.ask(tmp_path / "picture.png", [], 5)
    assert held.peak_mb() > 5
    held.close()


def test_a_worker_that_does_not_load_tells_its_last_line(tmp_path: Path) -> None:
    with pytest.raises(measuring.Failed, match="left with 1: FileNotFoundError: no such model"):
        worker(tmp_path, "missing")


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["--peers", "edgetune,abacus"], "no such peer: abacus"),
        (["--rounds", "0"], "are 1 or more"),
        (["--shape", "2b"], "--shape 2b needs --tokenizer"),
    ],
)
def test_what_makes_no_sense_is_refused(
    words: list[str], error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        image_to_box.parse(["--work", str(tmp_path), *words])
    assert error in capsys.readouterr().err


def test_other_prompts_or_lengths_are_told() -> None:
    told = {"prompt_tokens": [98, 99], "tokens": [40, 40]}
    assert table.complaint(told, [34, 35], 64, 40) is None
    assert table.complaint(told, [34, 34], 64, 40) == "made 65 tokens of the picture in place of 64"
    assert table.complaint(told, [34, 35], 64, 41) == "answered with 40 tokens in place of 41"


def figures(seconds: list[float], first: float | None) -> dict[str, Any]:
    return table.summary(
        [{"wall_s": each, "cpu_s": each, "first_s": first, "token_s": None, "prompt_tokens": [9]} for each in seconds]
    )


def test_the_table_has_medians_and_ratios() -> None:
    peer = {"cold_s": table.spread([3.0]), "peak_mb": 1234.0, "model_mb": 19.0}
    found = {
        "phrases": [1, 4],
        "peers": {
            "edgetune": peer | {"how": "a", "answers": {"1": figures([2, 1, 3], 0.5), "4": figures([5], None)}},
            "other": peer | {"how": "b", "answers": {"1": figures([1, 1, 9], None), "4": figures([6], None)}},
            "absent": {"error": "no network", "model_mb": 0.0},
        },
    }
    last = "3.00 (3.00–3.00) | 1,234 | 19 |"
    assert table.markdown(found).splitlines()[2:] == [
        f"| edgetune (a) | 2.00 (1.00–3.00) | 1.00 | 2.00 | 0.50 |  | 5.00 (5.00–5.00) | {last}",
        f"| other (b) | 1.00 (1.00–9.00) | 0.50 | 1.00 |  |  | 6.00 (6.00–6.00) | {last}",
        "| absent | no network | | | | | | | | |",
    ]


def test_pictures_go_in_and_figures_come_out(tmp_path: Path) -> None:
    """A peer that cannot be had is a row with the reason, and a failure."""
    figures = tmp_path / "figures.json"
    words = ["--rounds", "1", "--cold", "1", "--phrases", "1", "2", "--tokens", "5", "--threads", "1"]
    places = ["--work", str(tmp_path), "--peers", "edgetune,genai", "--json", str(figures)]
    variables = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), *words, *places]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, check=False)
    assert done.returncode == 1, done.stderr
    found = json.loads(figures.read_text())
    assert "onnxruntime-genai" in found["peers"]["genai"]["error"]
    ours = found["peers"]["edgetune"]
    assert found["image_tokens"] == 64 and found["picture"] == [256, 256]
    assert [len(ours["answers"][count]["prompt_tokens"]) for count in ("1", "2")] == [1, 2]
    assert ours["peak_mb"] > 50 and ours["cold_s"]["median"] > ours["answers"]["1"]["first_s"] > 0
    assert len(found["sha256"]["model.safetensors"]) == 64
    assert len(done.stdout.splitlines()) == 4
