"""Train the tiny base model from scratch on one data-centre GPU, ten minutes or less at a time.

Each call runs for `--seconds`, continues from `--state` when that file is there, and writes it again at the end, with
bf16 weights in parts under 16 MB beside it (`--weights`) and the log (`--log`), which has the averaged weights' scores
on held-out photographs. The learning rate holds its peak until `--hold` of `--total-seconds` of training and then falls
linearly to zero. `python train_base.py --join FOLDER` puts the parts into the checkpoint folder.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import batches as data
import scenes
from learner import Learner
from muon import Optimizer
from score_base import score

PART = 15_000_000  # bytes


def rate_at(seconds: float, total: float, hold: float, peak: float) -> float:
    """Learning rate after `seconds` of training: warm-up of 8 s, hold, then linear to zero."""
    done = seconds / total
    fall = 1.0 if done < hold else max(0.0, (1 - done) / (1 - hold))
    return peak * min(1.0, seconds / 8) * fall


def save_parts(weights: dict[str, Tensor], folder: Path) -> None:
    """bf16 weights in safetensors files of at most PART bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    part: dict[str, Tensor] = {}
    number = size = 0
    for name, value in sorted(weights.items()):
        value = value.to("cpu", torch.bfloat16).contiguous()
        if part and size + value.nbytes > PART:
            save_file(part, folder / f"part{number}.safetensors")
            part, number, size = {}, number + 1, 0
        part[name] = value
        size += value.nbytes
    save_file(part, folder / f"part{number}.safetensors")


def load_parts(folder: Path) -> dict[str, Tensor]:
    """The weights that `save_parts` wrote."""
    return {k: v for path in sorted(folder.glob("part*.safetensors")) for k, v in load_file(path).items()}


def train(args: argparse.Namespace) -> None:
    """Train for `args.seconds`, then write weights and state."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    learner = Learner(args.model, device, compiled=device == "cuda")
    optimizer = Optimizer(learner.net)
    before, step, seen = args.elapsed, 0, 0
    if args.state.exists():
        state = torch.load(args.state, map_location=device, weights_only=True)
        learner.load(state["live"])
        learner.average = state["average"]
        optimizer.momentum, before, step, seen = state["momentum"], state["seconds"], state["step"], state["scenes"]
        optimizer.adam.load_state_dict(state["adam"])
    elif args.start:
        weights = {name: value.float().to(device) for name, value in load_parts(args.start).items()}
        learner.load(weights)
        learner.average = {name: value.clone() for name, value in weights.items()}
    loader = torch.utils.data.DataLoader(
        data.Layouts(args.model, args.batch, step + 1, scenes.PHOTOS_OF["train"], scenes.KNOWN),
        batch_size=None,
        num_workers=args.workers,
        prefetch_factor=4 if args.workers else None,
        multiprocessing_context="spawn" if args.workers else None,  # forked tokenizers can deadlock
        pin_memory=device == "cuda",
    )
    names = [name for name, _ in learner.net.named_parameters()]
    live: list[Tensor] = [parameter for _, parameter in learner.net.named_parameters()]
    begun = time.monotonic()
    clock = began_steps = None
    losses: list[Tensor] = []
    reported = scored = 0.0
    with args.log.open("a") as log:
        for canvas, *arrays in loader:
            things, photos, queries, spans = (a.to(device, non_blocking=True) for a in arrays)
            loss = learner.loss(canvas, things, photos, queries, spans)
            loss.backward()
            # The clock starts once every grid has been compiled, so that compilation does not eat the schedule.
            if clock is None and time.monotonic() - begun > (60 if device == "cuda" else 0):
                torch.cuda.synchronize() if device == "cuda" else None
                clock, began_steps = time.monotonic(), step
            ran = time.monotonic() - clock if clock else 0.0
            seconds = before + ran
            rate = rate_at(max(seconds, 0.5), args.total_seconds, args.hold, args.peak)
            # Before the first tick a first call warms up by steps instead.
            optimizer.step(rate * min(1.0, (step + 1 if clock is None else 1e9) / 100))
            step, seen = step + 1, seen + args.batch
            keep = min(0.998, step / (step + 20))
            with torch.no_grad():
                torch._foreach_lerp_([learner.average[name] for name in names], live, 1 - keep)
            losses.append(loss.detach())
            finished = time.monotonic() - begun > args.seconds or seconds >= args.total_seconds
            if ran - reported > 15 or finished:
                reported = ran
                mean = float(torch.stack(losses).mean())
                losses.clear()
                row = {
                    "seconds": round(seconds),
                    "step": step,
                    "scenes": seen,
                    "loss": round(mean, 4),
                    "rate": round(rate, 6),
                }
                row["scenes/s"] = round((step - (began_steps or 0)) * args.batch / max(ran, 1e-9)) if clock else 0
                if ran - scored > args.score_every or finished:
                    scored = ran
                    with torch.compiler.set_stance("force_eager"):  # other shapes: not worth compiling
                        row["val"] = score(learner, args.score_scenes, 99, scenes.PHOTOS_OF["val"])
                log.write(json.dumps(row) + "\n")
                log.flush()
                print(json.dumps(row), flush=True)
                if not math.isfinite(mean):
                    raise SystemExit("the loss is not finite")
            if finished:
                break
    save_parts(learner.average, args.weights)
    state = {"live": dict(zip(names, [p.detach() for p in live], strict=True)), "average": learner.average}
    state |= {
        "momentum": optimizer.momentum,
        "adam": optimizer.adam.state_dict(),
        "seconds": seconds,
        "step": step,
        "scenes": seen,
    }
    torch.save(state, args.state)


def main() -> None:
    """Train, or join parts."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--model", type=Path, default=here / "model", help="checkpoint folder: config and tokenizer are read")
    option("--join", type=Path, metavar="FOLDER", help="write FOLDER's weight parts into the checkpoint, train nothing")
    option("--state", type=Path, default=Path("state.pt"), help="everything needed to continue")
    option("--start", type=Path, help="folder of weight parts to start from when there is no state")
    option("--weights", type=Path, default=Path("weights"), help="folder for the averaged weights")
    option("--log", type=Path, default=Path("training.jsonl"))
    option("--seconds", type=float, default=540, help="length of this call, warm-up of the compiler included")
    option("--total-seconds", type=float, default=1500, help="length of the schedule over all calls, without warm-ups")
    option("--elapsed", type=float, default=0.0, help="training seconds before this call, without a state")
    option("--hold", type=float, default=0.4, help="share of the schedule at the peak learning rate")
    option("--peak", type=float, default=2e-3, help="peak learning rate")
    option("--batch", type=int, default=512, help="scenes to a step")
    option("--workers", type=int, default=13, help="processes that draw layouts")
    option("--score-every", type=float, default=120.0, help="seconds between scores")
    option("--score-scenes", type=int, default=64, help="scenes of every canvas that are scored")
    args = parser.parse_args()
    if args.join:
        save_file(load_parts(args.join), args.model / "model.safetensors", metadata={"format": "pt"})
    else:
        train(args)


if __name__ == "__main__":
    main()
