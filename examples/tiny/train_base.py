"""Train the tiny base model from scratch on one data-centre GPU, ten minutes or less at a time.

Each call runs for `--seconds`, continues from `--state` when that file is there, and writes it again at the end, with
bf16 weights in parts under 16 MB beside it (`--weights`), the log (`--log`), and the averaged weights' score on held-out
photographs. The learning rate holds its peak until `--hold` of `--total-seconds` of training and then falls linearly to
zero. `python train_base.py --join FOLDER` puts the parts into the checkpoint folder.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import batches as data
import numpy as np
import render
import scenes
import torch
import torch.nn.functional as F
from edgetune_runtime.families import get_family
from edgetune_runtime.geometry import Geometry
from edgetune_runtime.grounding import parse
from muon import Optimizer
from network import Grid, TinyQwen3VL
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

PART = 15_000_000  # bytes


class Stage:
    """The model, what it needs on the device, and one training step."""

    def __init__(self, folder: Path, device: str, compiled: bool) -> None:
        self.folder, self.device = folder, device
        self.config = json.loads((folder / "config.json").read_text())
        self.tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        torch.manual_seed(0)
        self.net = TinyQwen3VL(self.config).to(device)
        for name, parameter in self.net.named_parameters():
            if parameter.ndim >= 2:
                deep = name.endswith(("proj.weight", "linear_fc2.weight")) and "patch" not in name
                torch.nn.init.normal_(parameter, std=0.02 / (4 if deep else 1))
            elif name.endswith("bias"):
                torch.nn.init.zeros_(parameter)
        self.average = {name: p.detach().clone() for name, p in self.net.named_parameters()}
        self.assets = render.load_assets(device)
        self.prefix = torch.tensor(self.tokenizer.encode("<|im_start|>user\n<|vision_start|>").ids, device=device)
        self.grids, self.resizers = [], []
        for (width, height), (w, h) in zip(scenes.CANVASES, data.TARGETS, strict=True):
            self.grids.append(
                Grid(self.config, h // 16, w // 16, data.LENGTH, data.IMAGE_AT, data.SLOTS, data.SLOT, device)
            )
            self.resizers.append((data.cubic(height, h).to(device), data.cubic(width, w).to(device)))
        self.draw = render.render
        if compiled:
            # Blocks share one compiled function each; whole-model compilation would take minutes per grid.
            torch._dynamo.config.cache_size_limit = 64
            for block in [*self.net.model.visual.blocks, *self.net.model.language_model.layers]:
                block.compile(dynamic=False)
            self.draw = torch.compile(render.render, dynamic=False)
            self.loss = torch.compile(self.loss, dynamic=False)  # type: ignore[method-assign]

    def pixels(self, canvas: int, things: Tensor, photos: Tensor, vary: bool) -> Tensor:
        """Patches [B, N, 768] of drawn scenes, through the same resize as at inference."""
        width, height = scenes.CANVASES[canvas]
        with torch.no_grad():
            pictures = self.draw(self.assets, things, photos, width, height)
            pictures = data.vary(pictures) if vary else pictures
            return data.patchify(
                data.resize(pictures, *self.resizers[canvas]), self.grids[canvas].order.to(self.device)
            )

    def tokens(self, canvas: int, queries: Tensor) -> Tensor:
        w, h = data.TARGETS[canvas]
        ids = self.config["image_token_id"], self.config["vision_end_token_id"]
        return data.sequences(queries, self.prefix, (w // 32) * (h // 32), *ids)

    def loss(self, hidden: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Mean cross-entropy over answer tokens: hidden [B, Q, H], targets and weights [B, Q]."""
        logits = F.linear(hidden, self.net.model.language_model.embed_tokens.weight.to(hidden.dtype)).float()
        each = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return (each * weights.flatten()).sum() / weights.sum()

    def forward_loss(self, canvas: int, things: Tensor, photos: Tensor, queries: Tensor, spans: Tensor) -> Tensor:
        patches = self.pixels(canvas, things, photos, vary=True)
        sequence = self.tokens(canvas, queries)
        where = self.grids[canvas].queries
        place = torch.arange(data.SLOT, device=self.device)
        # Position p predicts token p + 1, so an answer over [start, end) is predicted from [start - 1, end - 1).
        wanted = (place >= spans[..., :1] - 1) & (place < spans[..., 1:] - 1)
        targets = sequence[:, where].roll(-1, 1)
        with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
            hidden = self.net(patches.bfloat16() if self.device == "cuda" else patches, sequence, self.grids[canvas])
        return self.loss(hidden[:, where], targets, wanted.flatten(1).float())

    @torch.no_grad()
    def score(self, count: int, seed: int, photos: list[int]) -> dict[str, float]:
        """Greedy answers of the averaged weights to phrases about `count` scenes of every canvas."""
        live = {name: p.detach().clone() for name, p in self.net.named_parameters()}
        self._set(self.average)
        overlaps: dict[str, list[float]] = {}
        refusals: list[bool] = []
        rng = random.Random(seed)
        for canvas in range(len(scenes.CANVASES)):
            drawn = [scenes.draw_scene(rng, photos, scenes.KNOWN, canvas) for _ in range(count)]
            asked = [[scenes.draw_phrase(rng, s, scenes.KNOWN) for _ in range(data.SLOTS)] for s in drawn]
            answers = self._answer(canvas, drawn, asked)
            width, height = scenes.CANVASES[canvas]
            geometry = Geometry(width, height, *data.TARGETS[canvas])
            for query, text in zip((q for qs in asked for q in qs), answers, strict=True):
                answer = parse(text, geometry, get_family("qwen3_vl"))
                if not query.boxes:
                    refusals.append(answer.refused)
                    continue
                first = [d.box for d in answer.detections][:1]
                value = overlap(first[0], query.boxes[0]) if first else 0.0
                words = query.text.split()
                kind = next((w for w in words if w in ("left", "right", "upper", "lower", "larger", "smaller")), "")
                kind = "relation" if any(f" {r[0]} " in query.text for r in scenes.RELATIONS) else kind and "twin"
                overlaps.setdefault(kind or "plain", []).append(value)
        self._set(live)
        every = np.concatenate([np.array(v) for v in overlaps.values()])
        result = {"acc@0.5": (every >= 0.5).mean(), "miou": every.mean(), "refused": float(np.mean(refusals))}
        result |= {f"acc@0.5 {kind}": (np.array(v) >= 0.5).mean() for kind, v in overlaps.items()}
        return {key: round(float(value), 4) for key, value in result.items()}

    @torch.no_grad()
    def _set(self, weights: dict[str, Tensor]) -> None:
        for name, parameter in self.net.named_parameters():
            parameter.copy_(weights[name])

    def _answer(self, canvas: int, drawn: list[scenes.Scene], asked: list[list[scenes.Query]]) -> list[str]:
        queries, spans = (torch.from_numpy(a).to(self.device) for a in data.tokenise(self.tokenizer, canvas, asked))
        things, photos = (torch.from_numpy(a).to(self.device) for a in render.pack(drawn))
        patches = self.pixels(canvas, things, photos, vary=False)
        sequence, where = self.tokens(canvas, queries), self.grids[canvas].queries
        slots = sequence[:, where].reshape(len(drawn), data.SLOTS, data.SLOT).clone()
        cursor = spans[..., 0].long()
        slots.masked_fill_(torch.arange(data.SLOT, device=self.device) >= cursor[..., None], 0)
        end = self.tokenizer.token_to_id("<|im_end|>")
        for _ in range(int((data.SLOT - cursor).min())):
            sequence[:, where] = slots.flatten(1)
            with torch.autocast(self.device, torch.bfloat16, enabled=self.device == "cuda"):
                hidden = self.net(
                    patches.bfloat16() if self.device == "cuda" else patches, sequence, self.grids[canvas]
                )
            hidden = hidden[:, where].view(len(drawn), data.SLOTS, data.SLOT, -1)
            last = hidden.gather(2, (cursor - 1)[..., None, None].expand(-1, -1, 1, hidden.shape[-1]))[:, :, 0]
            token = (last.float() @ self.net.model.language_model.embed_tokens.weight.T).argmax(-1)
            slots.scatter_(2, cursor[..., None], token[..., None])
            cursor = cursor + 1
        texts = []
        for ids, start in zip(slots.flatten(0, 1).tolist(), spans[..., 0].flatten().tolist(), strict=True):
            answer = ids[start:]
            answer = answer[: answer.index(end)] if end in answer else answer
            texts.append(self.tokenizer.decode(answer, skip_special_tokens=False))
        return texts


def overlap(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inner = max(w, 0) * max(h, 0)
    return inner / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inner)


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


def main() -> None:
    """Train, or join parts."""
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=here / "model")
    parser.add_argument("--join", type=Path)
    parser.add_argument("--state", type=Path, default=Path("state.pt"))
    parser.add_argument("--start", type=Path, help="folder of weight parts to start from when there is no state")
    parser.add_argument("--weights", type=Path, default=Path("weights"))
    parser.add_argument("--log", type=Path, default=Path("training.jsonl"))
    parser.add_argument("--seconds", type=float, default=540)
    parser.add_argument("--total-seconds", type=float, default=1500)
    parser.add_argument("--elapsed", type=float, default=0.0, help="training seconds before this call, without a state")
    parser.add_argument("--hold", type=float, default=0.4)
    parser.add_argument("--peak", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--workers", type=int, default=13)
    parser.add_argument("--score-every", type=float, default=120.0)
    parser.add_argument("--score-scenes", type=int, default=64)
    args = parser.parse_args()
    if args.join:
        save_file(load_parts(args.join), args.model / "model.safetensors", metadata={"format": "pt"})
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    stage = Stage(args.model, device, compiled=device == "cuda")
    optimizer = Optimizer(stage.net)
    before, step, seen = args.elapsed, 0, 0
    if args.state.exists():
        state = torch.load(args.state, map_location=device, weights_only=True)
        stage._set(state["live"])
        stage.average = state["average"]
        optimizer.momentum, before, step, seen = state["momentum"], state["seconds"], state["step"], state["scenes"]
        optimizer.adam.load_state_dict(state["adam"])
    elif args.start:
        weights = {name: value.float().to(device) for name, value in load_parts(args.start).items()}
        stage._set(weights)
        stage.average = {name: value.clone() for name, value in weights.items()}
    loader = torch.utils.data.DataLoader(
        data.Layouts(args.model, args.batch, step + 1, scenes.PHOTOS_OF["train"], scenes.KNOWN),
        batch_size=None,
        num_workers=args.workers,
        prefetch_factor=4 if args.workers else None,
        multiprocessing_context="spawn" if args.workers else None,  # forked tokenizers can deadlock
        pin_memory=device == "cuda",
    )
    names = [name for name, _ in stage.net.named_parameters()]
    live = [parameter for _, parameter in stage.net.named_parameters()]
    begun = time.monotonic()
    clock = began_steps = None
    losses: list[Tensor] = []
    reported = scored = 0.0
    with args.log.open("a") as log:
        for canvas, *arrays in loader:
            things, photos, queries, spans = (a.to(device, non_blocking=True) for a in arrays)
            loss = stage.forward_loss(canvas, things, photos, queries, spans)
            loss.backward()
            # The clock starts once every grid has been compiled, so that compilation does not eat the schedule.
            if clock is None and time.monotonic() - begun > (60 if device == "cuda" else 0):
                torch.cuda.synchronize() if device == "cuda" else None
                clock, began_steps = time.monotonic(), step
            ran = time.monotonic() - clock if clock else 0.0
            seconds = before + ran
            rate = rate_at(max(seconds, 0.5), args.total_seconds, args.hold, args.peak)
            optimizer.step(rate * min(1.0, (step + 1 if clock is None else 1e9) / 100))
            step, seen = step + 1, seen + args.batch
            keep = min(0.998, step / (step + 20))
            with torch.no_grad():
                torch._foreach_lerp_([stage.average[name] for name in names], live, 1 - keep)
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
                        row["val"] = stage.score(args.score_scenes, 99, scenes.PHOTOS_OF["val"])
                log.write(json.dumps(row) + "\n")
                log.flush()
                print(json.dumps(row), flush=True)
                if not math.isfinite(mean):
                    raise SystemExit("the loss is not finite")
            if finished:
                break
    save_parts(stage.average, args.weights)
    state = {"live": dict(zip(names, [p.detach() for p in live], strict=True)), "average": stage.average}
    state |= {
        "momentum": optimizer.momentum,
        "adam": optimizer.adam.state_dict(),
        "seconds": seconds,
        "step": step,
        "scenes": seen,
    }
    torch.save(state, args.state)


if __name__ == "__main__":
    main()
