"""Text scores of the published programs beside ours, on random answers and on those that the tests keep.

Usage: `python benchmarks/peers/text_scores.py --vqa-eval VQA/PythonEvaluationTools/vqaEvaluation/vqaEval.py
[--answers N]`, in an environment with edgetune, `anls` and `pycocoevalcap` (`pip install anls pycocoevalcap`). The
first is the script of github.com/GT-Vision-Lab/VQA, whose two print statements are of Python 2.
"""

from __future__ import annotations

import argparse
import importlib
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edgetune_bench.captions import cider_d, words
from edgetune_runtime.bench.text_metrics import anls, normalize_answer

TEXT = """a an the two ten none red 3.5 .5 1,000 u.s.a. girl's girls 2:50 pm yes Yes! isn't isnt couldn'tve dont
black/white ice-cream man dog left of right blue sky is on table with hat"""
WORDS = TEXT.split()
MARKS = ";/[]\"{}()=+\\_-><@`,?!.:' \n\t&%"


def text(source: random.Random, longest: int) -> str:
    """Random words and marks, glued and apart."""
    parts = []
    for _ in range(source.randint(0, longest)):
        parts.append(source.choice(WORDS) if source.random() < 0.7 else source.choice(MARKS))
        parts.append(source.choice(["", " ", " ", "  "]))
    return "".join(parts)


def published_normaliser(script: Path) -> Callable[[str], str]:
    """What vqaEval.py does to an answer, from its own source."""
    source = re.sub(r'print (".*")', r"print(\1)", script.read_text(encoding="utf-8"))
    names: dict[str, Any] = {}
    exec(compile(source, str(script), "exec"), names)

    class NoQuestions:
        def getQuesIds(self) -> list[int]:
            return []

    theirs = names["VQAEval"](NoQuestions(), None)

    def normalise(answer: str) -> str:
        plain = answer.replace("\n", " ").replace("\t", " ").strip()
        return str(theirs.processDigitArticle(theirs.processPunctuation(plain)))

    return normalise


def main() -> None:
    """Print how often, or by how much at most, each score differs from the published one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--vqa-eval", type=Path, required=True)
    parser.add_argument("--answers", type=int, default=100_000)
    args = parser.parse_args()
    source = random.Random(0)

    normalise = published_normaliser(args.vqa_eval)
    answers = [text(source, 6) for _ in range(args.answers)]
    print(
        "VQA normalisation:",
        sum(normalise(one) != normalize_answer(one) for one in answers),
        "of",
        len(answers),
        "differ",
    )

    anls_score = importlib.import_module("anls").anls_score
    pairs = [
        (text(source, 3), [text(source, 3) for _ in range(source.randint(1, 3))]) for _ in range(args.answers // 10)
    ]
    print("ANLS: largest difference", max(abs(anls(said, wanted) - anls_score(said, wanted)) for said, wanted in pairs))

    cider = importlib.import_module("pycocoevalcap.cider.cider").Cider()
    worst = 0.0
    for _ in range(20):
        said = [text(source, 12) for _ in range(source.randint(2, 60))]
        wanted = [[text(source, 12) for _ in range(source.randint(1, 5))] for _ in said]
        # Its own tokenizer is a Java program; both get the words of ours.
        spaced = [[" ".join(words(one)) for one in texts] for texts in wanted]
        _, theirs = cider.compute_score(dict(enumerate(spaced)), {n: [" ".join(words(s))] for n, s in enumerate(said)})
        worst = max(worst, *(abs(a - b) for a, b in zip(theirs, cider_d(said, wanted), strict=True)))
    print("CIDEr-D: largest difference", worst)


if __name__ == "__main__":
    main()
