"""What a user chooses about reading, checking and cropping data sets."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from edgetune_core.options import Options, option
from edgetune_runtime.errors import InputError

BoxFormat = Literal["xyxy", "xywh", "xyxy-norm1", "xywh-norm1", "cxcywh-norm1", "xyxy-norm1000"]


@dataclass(frozen=True, kw_only=True)
class ReadSettings(Options):
    """How a data set is read; None and empty leave it to the format.

    Attributes:
        image_root: the folder that relative picture paths start from, in place of the data file's own.
        split: read only this split.
        box_format: what the numbers of a box mean; without "norm" they are pixels.
        orientation: whether boxes were drawn on pictures turned upright by their EXIF tag, or as they are stored.
        annotations: the second file of a format that has two.
        columns: our name -> the file's name of a column.
        questions: the name of a labelling control -> the question that it answers.
        group: rows with the same picture and phrase are one record.
        crowd: what a region that is marked as a crowd is: "keep" takes its box for one object, "skip" leaves it out,
            None refuses its record.
        absent: phrases that were looked for on every picture (coco, cvat, labelstudio): where a picture has no box of
            one, a record says that the object is not there.
        text_boxes: the frame of boxes that are written as text into conversations, see `edgetune_data.text_boxes`; None
            leaves them text.
        allow_download: fetch pictures from http(s) addresses.
    """

    image_root: Path | None = option(
        None, help="Folder that relative paths of pictures start from; by default as the format has it."
    )
    split: str | None = option(None, help="Read only this split (refcoco, csv, parquet, vqa).")
    box_format: BoxFormat | None = option(
        None, help="How csv and parquet write boxes; xyxy is corners in pixels, and what is taken unless given."
    )
    orientation: Literal["upright", "stored"] | None = option(
        None,
        help="Whether boxes on pictures with an EXIF rotation were drawn on the upright picture or on the "
        "picture as it is stored; by default the sizes in the file tell, and where they do not, such "
        "pictures are refused.",
    )
    annotations: Path | None = option(None, help="The second file of refcoco (instances) or of vqa (answers).")
    columns: Mapping[str, str] = option(
        {},
        help="Our name of a column and the file's own (csv, parquet), or an image tag and the entry of the "
        "Label Studio task that it shows. Repeatable.",
        flag="--column",
        metavar="OURS=THEIRS",
    )
    questions: Mapping[str, str] = option(
        {},
        help="The question that a Label Studio control (its from_name) asks. Repeatable.",
        flag="--question",
        metavar="CONTROL=TEXT",
    )
    group: bool = option(
        False, help="Make one record of all rows with the same picture and phrase (csv, parquet).", flag="--group-rows"
    )
    crowd: Literal["keep", "skip"] | None = option(
        None,
        help="COCO regions that are marked as a crowd, as CVAT marks masks: keep takes the box as one object,"
        " skip leaves the region out; refused unless given.",
    )
    absent: tuple[str, ...] = option(
        (),
        help="A phrase that was looked for on every picture of the data set: one without a box of it becomes a record "
        "of an absent object (coco, cvat, labelstudio). Repeatable.",
        metavar="PHRASE",
    )
    text_boxes: Literal["pixels", "norm1000", "norm1", "padded1", "auto"] | None = option(
        None,
        help="Make boxes of those that conversations hold as text, written in pixels, in 0-1000 or 0-1 of "
        "width and height, or in 0-1 of the picture padded to a square; auto finds out which where the "
        "file proves it. They stay text unless given.",
    )
    allow_download: bool = option(
        False, help="Download pictures whose paths are http(s) addresses; refused unless given."
    )

    def given(self) -> set[str]:
        """Return the names of the options that are set."""
        return {name for name, value in vars(self).items() if value}


@dataclass(frozen=True, kw_only=True)
class CheckLimits(Options):
    """Thresholds of the check, with their units.

    Attributes:
        min_box: image tokens; a box of less area, after the model's own resize, is tiny. A quarter is half a token a
            side.
        near: bits of 64; pictures whose perceptual hashes differ in at most this many are near-duplicates.
        max_blur: 0-1; a picture is blurred from this perceptual blur on (0 is sharp).
        min_bright: 0-1; a picture whose brightest hundredth is below this brightness is dark.
        max_bright: 0-1; a picture whose darkest twentieth is above this brightness is bright.
        min_entropy: bits; a picture with less entropy of its grey levels holds hardly anything.
        max_enlarge: a picture whose sides the model has to enlarge more than this many times is small for it.
        same_box: IoU; boxes of one phrase that overlap less are different boxes.
        rare: a label with less than this share of the boxes of the most frequent one is rare.
        frame_boxes: fewer boxes than this say nothing about the frame they are in.
        vague: more regular expressions (case-insensitive, whole phrase) for phrases that name nothing.
    """

    min_box: float = option(0.25, help="Warn about boxes with a smaller area than this many image tokens.", minimum=0)
    near: int = option(
        6,
        help="Warn about pictures whose perceptual hashes differ in at most this many of 64 bits.",
        minimum=0,
        maximum=32,
    )
    max_blur: float = option(
        0.6, help="Warn about pictures that are blurred more than this, from 0 (sharp) to 1.", minimum=0, maximum=1
    )
    min_bright: float = option(
        0.32,
        help="Warn about pictures whose brightest 1 % of pixels is darker than this, from 0 (black) to 1.",
        minimum=0,
        maximum=1,
    )
    max_bright: float = option(
        0.95,
        help="Warn about pictures whose darkest 5 % of pixels is brighter than this, from 0 to 1 (white).",
        minimum=0,
        maximum=1,
    )
    min_entropy: float = option(
        3.0,
        help="Warn about pictures that show hardly anything: colour histograms with less entropy than this many bits.",
        minimum=0,
    )
    max_enlarge: float = option(
        2.0, help="Warn about pictures whose sides the model enlarges more than this many times.", minimum=0
    )
    same_box: float = option(
        0.5,
        help="Warn where one phrase has boxes in one picture that overlap less than this IoU.",
        minimum=0,
        maximum=1,
    )
    rare: float = option(
        0.05,
        help="Warn about labels with fewer boxes than this share of the most frequent label's, from 0 to 1.",
        minimum=0,
        maximum=1,
    )
    frame_boxes: int = option(10, help="Fewest boxes of a file from which its coordinate frame is judged.", minimum=1)
    vague: tuple[str, ...] = option(
        (),
        help="Also warn about phrases that match this regular expression as naming nothing. Repeatable.",
        metavar="REGEX",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for pattern in self.vague:
            try:
                re.compile(pattern)
            except re.error as error:
                raise InputError(f"--vague {pattern!r}: not a regular expression: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Return the thresholds as JSON values."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in ((one, getattr(self, one)) for one in CheckLimits.__dataclass_fields__)
        }


@dataclass(frozen=True, kw_only=True)
class CropRules(Options):
    """How crops are cut.

    Attributes:
        margin: of the objects' width to the left and right, and of their height above and below.
        min_size: pixels; a shorter side grows to this, as far as the picture reaches.
        max_size: pixels; the margin shrinks so that no side is longer, unless the objects are. None: no limit.
        max_aspect: the longer side over the shorter one; the shorter one grows, as far as the picture reaches.
        min_visible: 0-1; a box with a smaller share of its area in the crop is not in it any more.
    """

    margin: float = option(0.5, help="Space left around the objects, as a share of their size.", minimum=0)
    min_size: int = option(224, help="Shortest side of a crop in pixels.", minimum=1)
    max_size: int | None = option(
        None,
        help="Longest side of a crop in pixels; a crop that its objects need is larger. Unlimited unless given.",
        minimum=1,
    )
    max_aspect: float = option(3.0, help="Largest ratio of a crop's longer side to its shorter one.", minimum=1)
    min_visible: float = option(
        0.5,
        help="With --around box, leave out other boxes of which the crop would show less than this share, from 0 to 1.",
        minimum=0,
        above=True,
        maximum=1,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_size is not None and self.max_size < self.min_size:
            raise InputError(f"--max-size {self.max_size} is less than --min-size {self.min_size}")
