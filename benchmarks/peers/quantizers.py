"""Our calibrated int4 weights beside GPTQModel, llm-compressor and AutoRound: same checkpoints, samples and measure.

    python quantizers.py prepare --work W [--seeds 5]                 checkpoints and samples
    python quantizers.py ours --work W                                quantize with ours, ...
    python quantizers.py gptqmodel --work W --python ENV/bin/python   ... and with each library in its environment
    python quantizers.py llmcompressor --work W --python ENV/bin/python
    python quantizers.py autoround --work W --python ENV/bin/python
    python quantizers.py evaluate --work W [--json FILE]              measure all there is, and print tables

`--only WORD` (which may be repeated) keeps the cases and variants whose names hold every word, e.g. `--only tiny-
--only g128-sym`. Finished results are kept; delete W/results/LIBRARY to run it again. docs/peers.md says how to make
the environments.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import cases

FORMATS = [(128, True), (128, False), (32, True), (32, False)]
RUNS = {
    "ours": [("rtn", "default"), ("gptq", "default"), ("awq", "default")],
    "gptqmodel": [("gptq", "default"), ("gptq", "tuned"), ("awq", "default")],
    "llmcompressor": [("gptq", "default"), ("gptq", "tuned"), ("awq", "default")],
    "autoround": [("signround", "default")],
}
"""(method, preset) of each library; a preset's settings stand in its adapter."""


def main() -> None:
    """Do one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["prepare", *RUNS, "evaluate"])
    parser.add_argument("--work", type=Path, required=True, help="folder for everything")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--python", default=sys.executable, help="the interpreter of the library's environment")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", action="append", default=[], help="words that a case and variant must hold")
    parser.add_argument("--json", type=Path, help="where to write every figure")
    options = parser.parse_args()
    if options.step == "prepare":
        cases.prepare(options.work, options.seeds)
    elif options.step == "evaluate":
        from measure import evaluate

        evaluate(options.work, options.json)
    else:
        jobs = planned(options.work.absolute(), options.step, options.only, options.seeds)
        run_worker(options.work, options.step, jobs, options.python, options.threads)


def planned(work: Path, library: str, only: list[str], seeds: int) -> list[dict[str, Any]]:
    """The jobs of a library that have no result yet, formats first and seeds after, so that any end leaves a table."""
    jobs = []
    folders = sorted(cases.case_folders(work), key=cases.seed_of)
    for group, symmetric in FORMATS:
        for folder in [folder for folder in folders if cases.seed_of(folder) < seeds]:
            for method, preset in RUNS[library]:
                variant = f"{method}-g{group}-{'sym' if symmetric else 'asym'}-{preset}"
                output = work / "results" / library / folder.name / variant
                wanted = all(word in f"{folder.name} {variant}" for word in only)
                if not wanted or output.with_suffix(".json").is_file():
                    continue
                job = {"method": method, "bits": 4, "group_size": group, "symmetric": symmetric, "preset": preset}
                files = {
                    "checkpoint": folder / "checkpoint",
                    "calibration": folder / "calibration.pt",
                    "output": output,
                }
                jobs.append({**job, **{name: str(path) for name, path in files.items()}})
    return jobs


def run_worker(work: Path, library: str, jobs: list[dict[str, Any]], python: str, threads: int) -> None:
    """Run the jobs in one process of the library's environment."""
    path = work / f"jobs-{library}.json"
    path.write_text(json.dumps(jobs, indent=2), encoding="utf-8")
    worker = Path(__file__).with_name("worker.py")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    # In the work folder, because some libraries leave logs where they run.
    done = subprocess.run([python, worker, library, path.absolute()], env=environment, cwd=work, check=False)
    if done.returncode:
        raise SystemExit(f"{library}: the worker failed")


if __name__ == "__main__":
    main()
