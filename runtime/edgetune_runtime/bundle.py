"""A bundle: the folder that export writes and the runtime loads, self-describing and relocatable.

Everything that inference needs beyond the weights is in `manifest.json` under `result.bundle`: no code
of the model, no configuration class and no template engine is asked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from edgetune_runtime.errors import BundleError, InputError
from edgetune_runtime.families import Chat, Family, get_family
from edgetune_runtime.images.smart import ImageSpec
from edgetune_runtime.manifest import MANIFEST, read_manifest, verify_files


@dataclass(frozen=True)
class Rope:
    """Rotary embedding: base `theta`, the split of the head's half among (time, height, width), and its layout."""

    theta: float
    mrope_section: tuple[int, ...]
    interleaved: bool
    head_dim: int


@dataclass(frozen=True)
class Limits:
    """What the bundle was made for, in tokens: the whole sequence, and one image's share of it."""

    max_length: int
    max_image_tokens: int


@dataclass(frozen=True)
class Bundle:
    """A loaded description; the weights stay on disk.

    Attributes:
        folder: where the bundle is, absolute.
        format: "onnx", ...: which backend runs it.
        precision: "fp32", "fp16", "int8" or "int4", of the decoder.
        half: whether it computes in float16.
        family: the family's facts; chat and grounding request as stored in the bundle.
        spec: image preprocessing.
        eos: token ids that end an answer.
        tokens: role -> token id ("image", "vision_start", ...).
        rope: rotary embedding.
        model: sizes ("layers", "kv_heads", "head_dim", "hidden", "deepstack", ...).
        limits: length limits.
        files: role -> absolute path ("vision", "embed", "decoder", "tokenizer").
        manifest: the whole manifest, as read.
    """

    folder: Path
    format: str
    precision: str
    half: bool
    family: Family
    spec: ImageSpec
    eos: tuple[int, ...]
    tokens: Mapping[str, int]
    rope: Rope
    model: Mapping[str, int]
    limits: Limits
    files: Mapping[str, Path]
    manifest: Mapping[str, Any]

    @property
    def chat(self) -> Chat:
        """The prompt's pieces."""
        return self.family.chat

    @classmethod
    def load(cls, folder: Path | str, *, verify: bool = True, skip_larger_than: int | None = None) -> Bundle:
        """Read and check a bundle's manifest and files.

        Args:
            folder: the bundle.
            verify: compare every file with its sha256; without it only the manifest is read.
            skip_larger_than: compare files of more bytes than this by their size only, for a faster start.

        Raises:
            BundleError: not a bundle, a file that is missing or was changed, or a field that is missing,
                of the wrong type or unknown to this version.
        """
        folder = Path(folder).absolute()
        manifest = read_manifest(folder)
        fields = (manifest.get("result") or {}).get("bundle")
        if not isinstance(fields, dict):
            raise BundleError(
                f"{folder / MANIFEST}: a {manifest.get('stage')!r} folder, not a bundle",
                hint="give a folder written by `edgetune export`",
            )
        if verify:
            verify_files(folder, max_bytes=skip_larger_than)
        try:
            return cls._from_fields(folder, fields, manifest)
        except (KeyError, TypeError, ValueError, AttributeError, InputError) as error:
            what = f"missing field {error}" if isinstance(error, KeyError) else str(error)
            raise BundleError(f"{folder / MANIFEST}: {what}", hint="export the bundle again") from error

    @classmethod
    def _from_fields(cls, folder: Path, fields: Mapping[str, Any], manifest: Mapping[str, Any]) -> Bundle:
        family = get_family(fields["family"])
        if fields["box_frame"] != family.box_format.frame:
            raise InputError(
                f"box_frame {fields['box_frame']!r} is not that of {family.title}: {family.box_format.frame!r}"
            )
        spec = ImageSpec.from_dict(fields["image"])
        tokens = dict(fields["tokens"])
        eos = tuple(tokens.pop("eos"))
        rope = fields["rope"]
        return cls(
            folder=folder,
            format=fields["format"],
            precision=fields["precision"],
            half=fields["precision"] == "fp16" or fields["target"] == "cuda",
            family=replace(
                family,
                chat=Chat(**fields["chat"]),
                ground_prompt=fields["ground_prompt"],
                patch_size=spec.patch_size,
                temporal_patch_size=spec.temporal_patch_size,
                merge_size=spec.merge_size,
            ),
            spec=spec,
            eos=eos,
            tokens=tokens,
            rope=Rope(rope["theta"], tuple(rope["mrope_section"]), rope["interleaved"], rope["head_dim"]),
            model=dict(fields["model"]),
            limits=Limits(**fields["limits"]),
            files={role: _inside(folder, name, manifest) for role, name in fields["files"].items()},
            manifest=manifest,
        )


def _inside(folder: Path, name: str, manifest: Mapping[str, Any]) -> Path:
    """Return the path of a bundle file, which must be one that the manifest lists and so verifies."""
    if PurePosixPath(name).as_posix() not in manifest["files"]:
        raise ValueError(f"{name!r} is used but not listed in 'files'")
    return folder / name
