"""What reaches a terminal: text and nothing that it obeys, whatever its encoding, and quiet ends where it is gone."""

from __future__ import annotations

import doctest
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgetune_runtime import terminal
from edgetune_runtime.terminal import printable

RUN = (sys.executable, "-m", "edgetune_runtime.cli")
EVIL = "\x1b]52;c;cHduZWQ=\x07\x1b[2J \x9b31m \u202egnp.exe"


def test_the_examples_of_its_documentation() -> None:
    assert doctest.testmod(terminal).failed == 0


@given(
    st.text(st.characters() | st.characters(categories=["Cc", "Cs", "Cf"])),
    st.sampled_from(["utf-8", "ascii", "cp1252"]),
)
def test_it_fits_the_terminal_and_steers_nothing(text: str, encoding: str) -> None:
    shown = printable(text, encoding)
    shown.encode(encoding)
    assert not any((ord(letter) < 32 and letter not in "\t\n") or 127 <= ord(letter) < 160 for letter in shown)
    assert not set(shown) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u200e\u200f\u061c")


@given(st.text())
def test_a_json_document_stays_one(text: str) -> None:
    assert json.loads(printable(json.dumps([text], ensure_ascii=False), "ascii")) == [text]


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_plain_words_stay_as_they_are(text: str) -> None:
    assert printable(text) == text


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_an_answer_is_printed_on_any_terminal(encoding: str, qwen3_vl_bundle: Path, picture: Path) -> None:
    command = [*RUN, str(qwen3_vl_bundle), str(picture), f"Tür 门 {EVIL}", "--max-new-tokens", "2", "--threads", "1"]
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    done = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    first = done.stdout.decode(encoding).splitlines()[0]
    words = {"utf-8": "Tür 门", "ascii": r"T\u00fcr \u95e8", "cp1252": r"Tür \u95e8"}[encoding]
    assert first.startswith(words + r" \u001b]52;c;cHduZWQ=\u0007\u001b[2J \u009b31m \u202egnp.exe")


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    Image.linear_gradient("L").convert("RGB").resize((64, 48)).save(path)
    return path


def test_an_error_names_a_file_and_steers_nothing(tmp_path: Path) -> None:
    name = f"{EVIL}\nerror: all is well.png"
    done = subprocess.run([*RUN, tmp_path, name, "x"], capture_output=True, text=True, encoding="utf-8", check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(r"error: \u001b]52;") and len(done.stderr.splitlines()) == 1
    assert "\x1b" not in done.stderr and "\x9b" not in done.stderr


def test_words_that_are_not_utf8_are_refused(qwen3_vl_bundle: Path, picture: Path) -> None:
    command = [*map(os.fsencode, (*RUN, str(qwen3_vl_bundle), str(picture))), b"the \xff cup", b"--threads", b"1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "error: the text cannot be written as UTF-8: its character 12 is '\\udcff'" in done.stderr
    assert "Traceback" not in done.stderr


SHELL = "import sys; from edgetune_runtime import terminal; terminal.prepare(); {}; sys.exit(terminal.finish(0))"


@pytest.mark.skipif(sys.platform == "win32", reason="shells of POSIX")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_not_taken_by_the_next_file(closed: str, tmp_path: Path) -> None:
    code = f"stream = open({str(tmp_path / 'f')!r}, 'w'); assert stream.fileno() > 2"
    code += "; terminal.say('a'); terminal.report('b')"
    command = f'"{sys.executable}" -c "$CODE" {closed}'
    done = subprocess.run(["sh", "-c", command], env={**os.environ, "CODE": SHELL.format(code)}, check=False)
    assert done.returncode == 0
    assert (tmp_path / "f").read_text() == ""


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")
@pytest.mark.parametrize("verb", [("--help",), ("doctor", "--json")])
def test_a_reader_that_leaves_ends_a_verb_quietly(verb: tuple[str, ...]) -> None:
    pytest.importorskip("edgetune")
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "edgetune", *verb]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (1, "")
