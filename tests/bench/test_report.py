"""The report: well-formed, complete, alone, safe with hostile names; and the drawing behind its plot."""

from __future__ import annotations

import base64
import io
import itertools
import math
import re
from dataclasses import replace
from decimal import Decimal
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from answers import Row, ground, part, results, vqa
from edgetune_bench.report import report_page
from edgetune_bench.report.scatter import Box, Point, linear, logarithmic, pareto, place
from edgetune_bench.report.worst_boxes import worst
from edgetune_bench.table import cost_table, curve_table, remarks
from edgetune_runtime.bench.plan import Answers
from edgetune_runtime.bench.power.meter import Power
from edgetune_runtime.bench.results import Measured, Results

VOID = {"meta", "link", "image", "use", "rect", "line", "path", "br"}
HOSTILE = '<script>alert("x")</script> & co'
REASON = "TensorRT is not installed <here>"


class Page(HTMLParser):
    """Collects elements, attributes and text, and fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(4):
        Image.new("RGB", (64 + 16 * number, 48), (40 * number, 90, 120)).save(folder / f"{number}.png")
    return [str(folder / f"{number}.png") for number in range(4)]


def measured(pictures: list[str]) -> tuple[Results, Answers]:
    """A baseline, a row that moved its boxes on two of four pictures, one with a hostile name, and one that failed."""

    def run(shares: list[float]) -> list[Row]:
        rows = [
            ground(path, part(share), number=i) for i, (path, share) in enumerate(zip(pictures, shares, strict=True))
        ]
        return [*rows, vqa(pictures[0], "red", ["red"], number=9) | {"text": "What colour?"}]

    runs: dict[str, list[Row] | str] = {
        "merged": run([1.0, 0.9, 1.0, 0.8]),
        "int4": run([1.0, 0.9, 0.5, 0.2]),
        HOSTILE: run([1.0, 0.9, 1.0, 0.8]),
        "trt": REASON,
    }
    return results(runs, baseline="merged")


def drawn(pictures: list[str]) -> list[str]:
    """The picture of each record of `measured`."""
    return [*pictures, pictures[0]]


def test_the_page_nests_names_every_row_and_gives_the_reason_of_a_failed_one(pictures: list[str]) -> None:
    found, answers = measured(pictures)
    page = Page(report_page(found, answers))
    for expected in ("merged", "int4", "trt", HOSTILE, REASON, "d.jsonl", "cd" * 32, "ab" * 32, "seed 0"):
        assert expected in page.text, expected
    assert page.all("html")[0]["lang"] == "en"
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_the_page_fetches_nothing_and_runs_nothing(pictures: list[str]) -> None:
    found, answers = measured(pictures)
    text = report_page(found, answers, drawn(pictures))
    page = Page(text)
    assert not {"script", "iframe", "object", "embed", "img", "form"} & {tag for tag, _ in page.elements}
    fetched = [v for _, a in page.elements for name, v in a.items() if name in ("src", "href", "srcset", "xlink:href")]
    assert fetched
    assert all(value.startswith(("data:", "#")) for value in fetched)
    assert not any(name.startswith("on") for _, attributes in page.elements for name in attributes)
    assert "url(" not in text and "@import" not in text and "http" not in text.replace("http-equiv", "")
    (policy,) = [a["content"] for a in page.all("meta") if a.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")


def test_tables_and_drawings_can_be_read_without_seeing_them(pictures: list[str]) -> None:
    found, answers = measured(pictures)
    page = Page(report_page(found, answers, drawn(pictures)))
    tables = len(page.all("table"))
    assert tables >= 5
    assert len(page.all("caption")) == tables
    assert all(attributes.get("scope") in ("row", "col") for attributes in page.all("th"))
    drawings = [a for a in page.all("svg") if a.get("aria-hidden") != "true"]
    assert drawings
    assert all(a["role"] == "img" and a["aria-label"] for a in drawings)
    assert "int4" in next(a["aria-label"] for a in drawings if "scatter" in a.get("class", ""))


def bounded(pictures: list[str]) -> tuple[Results, Answers]:
    """One model at three areas, another one at its own only."""
    whole = [0.9] * 4
    shares = {"int4": whole, "int4@200k": [0.9, 0.9, 0.6, 0.2], "int4@100k": [0.9, 0.1, 0.1, 0.1], "fp32": whole}
    runs: dict[str, list[Row] | str] = {
        name: [ground(path, part(share), number=i) for i, (path, share) in enumerate(zip(pictures, row, strict=True))]
        for name, row in shares.items()
    }
    found, answers = results(runs, baseline="int4")
    areas = {"int4@200k": 200_000, "int4@100k": 100_000}
    tokens = {"int4": 300.0, "int4@200k": 190.0, "int4@100k": 95.0, "fp32": 300.0}
    rows = [
        replace(
            row,
            max_pixels=areas.get(row.name),
            image_tokens=tokens[row.name],
            path=f"out/{row.name.partition('@')[0]}",
        )
        for row in found.ran
    ]
    return replace(found, rows=tuple(rows)), answers


def test_what_a_bound_of_the_pictures_costs_is_drawn_and_told(pictures: list[str]) -> None:
    found, answers = bounded(pictures)
    page = Page(report_page(found, answers))
    (heading,) = [a for a in page.all("h2") if a.get("id") == "image-token-budget"]
    assert heading
    labels = [a["aria-label"] for a in page.all("svg") if "Acc@0.75 against" in a.get("aria-label", "")]
    assert len(labels) == 4  # against time and tokens, each for broad and narrow pages
    for label in labels:
        assert "fp32" not in label
    assert "int4@100k: 25.0 % at 95; int4@200k: 75.0 % at 190; int4: 100.0 % at 300" in labels[1]
    assert "int4@100k: 25.0 % at 95; int4@200k: 50.0 % at 190; int4: 100.0 % at 300" in labels[1]
    assert page.text.count("own") >= 4  # beside the point at which both accuracies are equal, too
    lines = [a for a in page.all("path") if "curve" in a.get("class", "")]
    assert [a["class"] for a in lines] == ["curve", "curve finer"] * 4
    assert curve_table(found.rows) == [
        {
            "row": "int4@100k",
            "max pixels": 100_000,
            "image tokens": 95.0,
            "Acc@0.5 [95 %]": "25.0 [0.0, 75.0]",
            "Acc@0.75 [95 %]": "25.0 [0.0, 75.0]",
            "Δ Acc@0.5 [95 %]": "-75.0 [-100.0, -25.0]",
            "total ms p50": "1000",
        },
        {
            "row": "int4@200k",
            "max pixels": 200_000,
            "image tokens": 190.0,
            "Acc@0.5 [95 %]": "75.0 [25.0, 100.0]",
            "Acc@0.75 [95 %]": "50.0 [0.0, 100.0]",
            "Δ Acc@0.5 [95 %]": "-25.0 [-75.0, +0.0]",
            "total ms p50": "1000",
        },
        {
            "row": "int4",
            "max pixels": None,
            "image tokens": 300.0,
            "Acc@0.5 [95 %]": "100.0 [100.0, 100.0]",
            "Acc@0.75 [95 %]": "100.0 [100.0, 100.0]",
            "Δ Acc@0.5 [95 %]": None,
            "total ms p50": "1000",
        },
    ]


def test_models_at_one_area_have_no_curve(pictures: list[str]) -> None:
    found, answers = measured(pictures)
    assert "Image-token budget" not in report_page(found, answers)
    assert curve_table(found.rows) == []


def test_energy_is_told_with_its_source_or_said_to_be_untold(pictures: list[str]) -> None:
    found, answers = measured(pictures)
    told = Power(
        answers=5, seconds=2.0, joules=3.0, watts=7.5, parts={"RAPL package-0": 2.5, "RAPL dram": 0.5}, untold=None,
        temperature_c=51.0, cpu_mhz=2400.0, gpu_temperature_c=None, gpu_mhz=None, mode=None,
    )  # fmt: skip
    why = "RAPL: energy_uj may be read by root only"
    untold = replace(told, joules=None, watts=None, parts={}, untold=why)
    powers = {"merged": told, "int4": untold}
    rows = [replace(row, power=powers.get(row.name)) if isinstance(row, Measured) else row for row in found.rows]
    found = replace(found, rows=tuple(rows))
    page = Page(report_page(found, answers))
    assert "RAPL package-0 + RAPL dram" in page.text and "not told" in page.text
    assert "Energy and clocks" in page.text
    merged, int4, *_ = cost_table(found.rows)
    assert (merged["J an answer"], merged["W"], merged["°C"], merged["CPU MHz"]) == (3.0, 7.5, 51.0, 2400.0)
    assert merged["told by"] == "RAPL package-0 + RAPL dram"
    assert int4["J an answer"] == "not told"
    assert f"energy is not told: {why}" in remarks(found.rows)


def test_the_worst_pictures_come_first_with_the_boxes_of_every_row(pictures: list[str]) -> None:
    found, answers = measured(pictures)
    page = Page(report_page(found, answers, drawn(pictures)))
    stored = page.all("image")
    sizes = []
    for attributes in stored:
        content = base64.b64decode(attributes["href"].removeprefix("data:image/jpeg;base64,"))
        sizes.append(Image.open(io.BytesIO(content)).size)
    assert sizes == [(112, 48), (96, 48)]  # picture 3 (IoU .25 to the baseline), then picture 2 (.5); 0 and 1 are equal
    assert len(page.all("use")) == 2 * 3  # the baseline and two rows each
    own = [a for a in page.all("rect") if a["class"] == "own"]
    # In the order of the records and rows: int4 then the other one; widths are the shares of ten pixels.
    assert [float(a["width"]) for a in own] == [2.0, 8.0, 5.0, 10.0]
    assert {a["class"] for a in page.all("rect")} == {"edge", "truth", "base", "own"}
    assert "IoU 0.25" in page.text and "IoU 0.50" in page.text


def test_pictures_are_shown_only_where_the_caller_knows_them(pictures: list[str]) -> None:
    """Paths in answers may come from elsewhere; what they name here is nobody's business."""
    found, answers = measured(pictures)
    page = Page(report_page(found, answers))
    assert "the pictures that were measured are not on this machine" in page.text
    assert page.all("image") == []


@pytest.mark.parametrize("baseline", [None, "merged"])
def test_results_without_boxes_or_without_a_baseline_have_a_page_too(baseline: str | None) -> None:
    def run(good: int) -> list[Row]:
        return [vqa(f"{i}", "red" if i < good else "blue", ["red"], i) for i in range(4)]

    found, answers = results({"merged": run(4), "q": run(2)}, baseline=baseline)
    page = Page(report_page(found, answers))
    assert "VQA" in page.text
    assert ("Against the baseline" in page.text) == (baseline is not None)
    assert "Worst drift" not in page.text


def test_a_page_of_nothing_but_failures() -> None:
    page = Page(report_page(*results({"a": "killed", "b": "no engine"})))
    assert "killed" in page.text and "no engine" in page.text


def test_the_pareto_line_is_that_of_a_brute_force_search() -> None:
    generator = np.random.default_rng(2)
    for _ in range(20):
        xs, ys = generator.integers(1, 8, (2, 12))
        points = [
            Point(str(i), "", float(x), float(x), float(y), 0, 0) for i, (x, y) in enumerate(zip(xs, ys, strict=True))
        ]
        expected = {
            p.name for p in points if all((q.x > p.x or q.y < p.y) or (q.x == p.x and q.y == p.y) for q in points)
        }
        line = pareto(points)
        assert {point.name for point in line} == expected
        assert [p.x for p in line] == sorted(p.x for p in line)


def test_names_do_not_cover_each_other_or_the_points() -> None:
    area = Box(0, 0, 400, 300)
    anchors = [(100.0, 100.0), (104.0, 101.0), (350.0, 100.0), (30.0, 200.0)]
    dots = [Box(x - 7, y - 7, x + 7, y + 7) for x, y in anchors]
    boxes = place(anchors, [(70.0, 15.0)] * 4, area, dots, [])
    for first, second in itertools.combinations([*boxes, *dots[2:]], 2):
        assert first.overlap(second) == 0 or {first, second} <= set(dots)
    assert all(box.outside(area) == 0 for box in boxes)


@pytest.mark.parametrize("scale", [linear, logarithmic])
@pytest.mark.parametrize(("low", "high"), [(12.0, 900.0), (99.0, 100.0), (0.013, 0.02), (5.0, 5.0)])
def test_axes_hold_their_values_and_have_round_ticks(scale: Any, low: float, high: float) -> None:
    if scale is logarithmic and low == high:
        return
    axis = scale(low, high, 40.0, 740.0)
    assert 40 <= axis(low) <= axis(high) <= 740
    assert list(axis.ticks) == sorted(axis.ticks)
    for tick in axis.ticks:
        assert len(Decimal(str(tick)).normalize().as_tuple().digits) <= 3
        assert 40 - 1e-6 <= axis(tick) <= 740 + 1e-6
    if scale is linear and high > low:
        assert len(axis.ticks) >= 2
        assert len({round(b - a, 9) for a, b in itertools.pairwise(axis.ticks)}) == 1


def test_worst_takes_the_lowest_of_any_row_and_leaves_equal_ones_out() -> None:
    assert worst([[1.0, 0.4, None, 0.9], [0.999, 0.8, None, 0.1]], 5) == [3, 1]
    assert worst([[1.0, 0.4, 0.2]], 1) == [2]
    assert worst([[None, 1.0]], 3) == []


def test_numbers_of_the_table_are_those_of_the_results(pictures: list[str], tmp_path: Path) -> None:
    found, answers = measured(pictures)
    text = report_page(found, answers)
    rows = re.findall(r'<tr><th scope="row">(.*?)</th>(.*?)</tr>', text)
    cells = next(cells for name, cells in rows if name == "int4")
    figures = [float(value.replace("−", "-")) for value in re.findall(r"<td>([−\d.]+)", cells)]
    row = found.rows[1]
    assert isinstance(row, Measured) and row.ground is not None and row.ground.acc50 is not None
    # Accuracy, its difference, mIoU, questions, their difference, box IoU, median, 95th percentile.
    expected = [75.0, -25.0, 65.0, 100.0]
    assert figures[:4] == expected
    assert math.isclose(figures[0], 100 * row.ground.acc50)
    assert 1000.0 in figures
