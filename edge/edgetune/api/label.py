"""`edgetune.label`: the model proposes boxes for a folder of pictures, people decide, and it learns from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from edgetune.api.load import load
from edgetune_core.options import Options, StageOptions, option, takes
from edgetune_core.stage import StageResult, check_input, run_stage
from edgetune_runtime.errors import InputError
from edgetune_runtime.manifest import MANIFEST, read_manifest
from edgetune_runtime.pixels import parse_area

PROPOSALS, REJECTED = "proposals.jsonl", "rejected.jsonl"
_LEARNING = ("checkpoint", "training", "calibration")


@dataclass(frozen=True, kw_only=True)
class Arrangement(Options):
    """In which order proposals are written, and how many."""

    order: Literal["uncertain", "random"] | None = option(
        None,
        help="Which pictures people look at first: those that the model is least sure of, or random ones; by default "
        "random ones until the model has learned from some (--learn, --labelled).",
    )
    first: int | None = option(
        None, help="Write only the first N pictures for the labelling tools; all unless given.", minimum=1
    )
    near: int = option(
        6,
        help="Put a picture after all others where its perceptual hash differs from one before it in at most this "
        "many of 64 bits.",
        minimum=0,
        maximum=32,
    )
    seed: int = option(0, help="Random seed of the order.")
    image_url: str | None = option(
        None,
        help="What the address of a picture begins with in Label Studio, before its path from FOLDER; by default it is "
        "one of Label Studio's local files, whose root is FOLDER's parent.",
        metavar="PREFIX",
    )


@dataclass(frozen=True, kw_only=True)
class Asking(Arrangement):
    """How a model is asked for proposals."""

    on_error: Literal["stop", "report"] = option(
        "stop",
        help="What to do about a picture that cannot be read: stop at the first, or leave all of them out and list "
        "them in rejected.jsonl (report).",
    )
    image_root: Path | None = option(
        None,
        help="Folder that relative paths of pictures in --labelled and --learn start from; by default as the files "
        "that this verb wrote have them.",
    )
    device: str = option("cpu", help="Device to compute on: cpu, cuda, or one of several GPUs such as cuda:1.")
    threads: int | None = option(None, help="CPU threads; by default the engine's own choice.")
    engine: str | None = option(None, help="Installed engine to use in place of the runtime's own for the format.")
    max_pixels: int | None = option(
        None,
        help="Largest area of a resized picture, such as 400k pixels, where less than the bundle's own is enough.",
        parse=parse_area,
        minimum=1,
    )
    max_new_tokens: int = option(128, help="Longest answer, in tokens.", minimum=1)


@dataclass(frozen=True, kw_only=True)
class LabelOptions(StageOptions, Asking):
    """Options of `edgetune.label`.

    Examples:
        >>> from edgetune import LabelOptions
        >>> options = LabelOptions(folder="shelf", phrases=["cup", "jar"], bundle="runs/int4", output="runs/round1")
        >>> options.phrases, options.order, options.first
        (('cup', 'jar'), None, None)
        >>> LabelOptions(folder="shelf", phrases=["cup"], bundle="runs/int4", output="r2", learn=["corrected.json"])
        Traceback (most recent call last):
        edgetune_runtime.errors.InputError: --learn needs --checkpoint, the base that the next adapter is trained on
    """

    folder: Path = option(help="Folder of the pictures; those in folders of it count.", argument=True)
    phrases: tuple[str, ...] = option(help="What to look for on each.", argument=True, metavar="PHRASE...")
    bundle: Path = option(help="Folder of the bundle or checkpoint that proposes; with --learn, of the round before.")
    output: Path = option(help="Folder to write the proposals to; with --learn, to write all steps to.")
    shard: str | None = option(
        None, help="Propose for the I-th of N equal parts of the pictures only, as a job of several.", metavar="I/N"
    )
    labelled: tuple[Path, ...] = option(
        (),
        help="Records, in any format that data convert reads, whose pictures are labelled: nothing is proposed for "
        "them, and what is nearly the same comes last. Repeatable.",
    )
    learn: tuple[Path, ...] = option(
        (),
        help="What people made of proposals, in any format that data convert reads: train the next adapter on it, "
        "then propose for the other pictures. Repeatable: all rounds so far.",
    )
    checkpoint: Path | None = option(None, help="Hugging Face folder of the base model that --learn trains on.")
    training: Path | None = option(None, help="File of options of edgetune train for --learn (YAML or TOML).")
    calibration: Path | None = option(
        None,
        help="File of options of edgetune calibrate for --learn (YAML or TOML), where the bundle is made from a weight "
        "set.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shard is not None:
            from edgetune_runtime.records import Shard

            Shard.parse(self.shard)
        if not self.learn:
            for name in _LEARNING:
                if getattr(self, name) is not None:
                    raise InputError(f"--{name} needs --learn, what people made of proposals")
            return
        if self.checkpoint is None:
            raise InputError("--learn needs --checkpoint, the base that the next adapter is trained on")
        if self.labelled:
            raise InputError(
                "--labelled has no effect beside --learn, whose pictures are labelled", hint="leave it out"
            )
        if self.shard is not None:
            raise InputError(
                "--learn and --shard exclude each other: each job would train the same",
                hint="learn once, then propose in shards with --bundle OUTPUT/bundle --labelled OUTPUT/corrected",
            )


@takes(LabelOptions)
def label(options: LabelOptions) -> StageResult:
    """Propose boxes for a folder of pictures, in the order in which people should decide about them.

    Writes tasks of Label Studio, CVAT and COCO and records, all with scores. With --learn, first trains an adapter on
    what people made of earlier proposals, merges and exports it as the bundle before it was; each step is a folder in
    the output. Started again, an interrupted run goes on where it was.

    Returns:
        The stage of the proposals, whose `result` counts pictures, groups and boxes; its facts are the number of
        `pictures` to propose for and of `others`, files in the folder that are none.

    Raises:
        InputError: the folder, a picture, a phrase, a corrected record or an option cannot be used.
        BundleError: the bundle is not intact.
        EdgetuneError: a step of --learn failed.
    """
    from edgetune_data.labelling.corrections import check_phrases

    check_phrases(options.phrases)
    if not options.learn:
        return _propose(options)
    from edgetune.api.label_round import learn

    return learn(options)


def _propose(options: LabelOptions) -> StageResult:
    from edgetune_data.labelling import propose
    from edgetune_data.labelling.corrections import collect, pixels, read_settings
    from edgetune_data.read import stage_inputs
    from edgetune_runtime.records import Shard

    names, others = propose.pictures_in(options.folder)
    chosen = names if options.shard is None else Shard.parse(options.shard).take(names)
    inputs = {"pictures": options.folder, "bundle": options.bundle}
    for number, path in enumerate(options.labelled, start=1):
        inputs |= stage_inputs(f"labelled {number}", path)
    read = [read_settings(path, options.folder, options.phrases, options.image_root) for path in options.labelled]
    records = collect(options.labelled, read)[0]

    def build(work: Path) -> dict[str, Any]:
        if options.on_error == "stop":
            propose.check_headers(options.folder, chosen)
        known = pixels(records)
        runner = load(
            bundle=options.bundle,
            device=options.device,
            threads=options.threads,
            engine=options.engine,
            max_pixels=options.max_pixels,
        )
        propose.propose(
            runner,
            options.folder,
            chosen,
            options.phrases,
            work / PROPOSALS,
            known=known,
            on_error=options.on_error,
            max_new_tokens=options.max_new_tokens,
        )
        model = f"{options.bundle.resolve().name} {_fingerprint(options.bundle)}".strip()
        found = _write([work / PROPOSALS], options.folder, options.phrases, model, arrangement, work)
        return {"phrases": list(options.phrases), "model": model, **found}

    arrangement = replace(options.narrow(Arrangement), order=options.order or _usual(options))
    asking = {"engine": options.engine, "max_pixels": options.max_pixels, "max_new_tokens": options.max_new_tokens}
    stage = run_stage(
        "label",
        options.output,
        inputs=inputs,
        settings={
            "phrases": options.phrases,
            "shard": options.shard,
            "on_error": options.on_error,
            "image_root": options.image_root,
            "folder": options.folder.resolve().name,
            **asking,
            **{name: value for name, value in vars(arrangement).items() if name != "seed"},
        },
        build=build,
        seed=options.seed,
        force=options.force,
        dry_run=options.dry_run,
        resumable=True,
    )
    return replace(stage, facts={"pictures": len(chosen), "others": others})


def _usual(options: LabelOptions) -> Literal["uncertain", "random"]:
    """Return the order that is taken unless one is given: what a model doubts tells little before it has learned."""
    return "uncertain" if options.labelled else "random"


def _fingerprint(bundle: Path) -> str:
    """Return the first digits of a stage folder's fingerprint; "" for a checkpoint that no stage wrote."""
    return str(read_manifest(bundle).get("fingerprint", ""))[:12] if (bundle / MANIFEST).is_file() else ""


def _write(
    files: Sequence[Path], folder: Path, phrases: Sequence[str], model: str, chosen: Arrangement, work: Path
) -> dict[str, Any]:
    """Order proposals and write them for all tools; return what the manifest says of it."""
    from edgetune_data.labelling.order import arrange
    from edgetune_data.labelling.tasks import Tasks
    from edgetune_data.rewrite import write_lines

    assert chosen.order is not None
    pictures, rejected = arrange(files, folder, by=chosen.order, near=chosen.near, seed=chosen.seed)
    if rejected:
        write_lines(
            work / REJECTED, ({"source": str(folder / line["image"]), "problem": line["problem"]} for line in rejected)
        )
    written = pictures.first(chosen.first)
    counts = Tasks(written, phrases, model, chosen.image_url).write(work)
    return {
        "pictures": len(pictures),
        "groups": len(set(pictures.groups)),
        "duplicates": len(pictures.duplicates),
        "written": len(written),
        "rejected": len(rejected),
        **counts,
    }


@dataclass(frozen=True, kw_only=True)
class MergeProposalsOptions(StageOptions, Arrangement):
    """Options of `edgetune.merge_proposals`.

    Examples:
        >>> from edgetune import MergeProposalsOptions
        >>> options = MergeProposalsOptions(folder="shelf", proposals=["part1", "part2"], output="all", first=200)
        >>> [str(one) for one in options.proposals]
        ['part1', 'part2']
    """

    folder: Path = option(help="Folder of the pictures.", argument=True)
    proposals: tuple[Path, ...] = option(
        help="Folders that edgetune label has written for it.", argument=True, metavar="PROPOSALS..."
    )
    output: Path = option(help="Folder to write the proposals to.")


@takes(MergeProposalsOptions)
def merge_proposals(options: MergeProposalsOptions) -> StageResult:
    """Join proposals for parts of a folder, or put those for a whole one in another order, without asking again.

    Their order is that of the first of them unless another one is given.

    Raises:
        InputError: they are of different models or phrases, or two of them are about one picture.
    """
    from edgetune_data.labelling.propose import lines_of

    told: list[tuple[list[str], str]] = []
    orders: list[Any] = []
    for path in options.proposals:
        check_input(path, "proposals")
        manifest = read_manifest(path)
        if manifest.get("stage") != "label":
            raise InputError(f"{path}: holds the result of {manifest.get('stage')!r}, not of 'label'")
        told.append((manifest["result"]["phrases"], manifest["result"]["model"]))
        orders.append(manifest["settings"]["order"])
    for path, (phrases, model) in zip(options.proposals, told, strict=True):
        if (phrases, model) != told[0]:
            raise InputError(
                f"{path}: proposed by {model} for {', '.join(phrases)}, but {options.proposals[0]} by {told[0][1]} for "
                f"{', '.join(told[0][0])}"
            )
    files = [path / PROPOSALS for path in options.proposals]
    seen: dict[str, Path] = {}
    for file in files:
        for _, line in lines_of(file):
            if line["image"] in seen:
                raise InputError(f"{file}: {line['image']} is in {seen[line['image']]}, too")
            if not (options.folder / line["image"]).is_file():
                raise InputError(f"{options.folder / line['image']}: no such picture (of {file})")
            seen[line["image"]] = file
    phrases, model = told[0]
    arrangement = replace(options.narrow(Arrangement), order=options.order or orders[0])

    def build(work: Path) -> dict[str, Any]:
        with (work / PROPOSALS).open("wb") as stream:
            for file in files:
                with file.open("rb") as part:
                    stream.writelines(part)
        found = _write([work / PROPOSALS], options.folder, phrases, model, arrangement, work)
        return {"phrases": phrases, "model": model, **found}

    stage = run_stage(
        "label",
        options.output,
        inputs={f"proposals {number}": path for number, path in enumerate(options.proposals, start=1)},
        settings={
            "folder": options.folder.resolve().name,
            **{name: value for name, value in vars(arrangement).items() if name != "seed"},
        },
        build=build,
        seed=options.seed,
        force=options.force,
        dry_run=options.dry_run,
    )
    return replace(stage, facts={"pictures": len(seen), "others": 0})
