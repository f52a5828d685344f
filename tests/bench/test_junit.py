"""JUnit XML as CI systems read it: parsed again by expat, and held to the shape that their schemas share."""

from __future__ import annotations

import xml.dom.minidom
from pathlib import Path
from xml.dom.minidom import Element

import pytest
from click.testing import CliRunner

from answers import Row, ground, part, results
from edgetune.cli import cli
from edgetune_bench.gate import Check
from edgetune_bench.junit import junit_xml

CHECKS = [
    Check("int4", "runs", "pass", "600 records"),
    Check("int4", "drop of acc@0.5", "inconclusive", "0.5 points [-1, 2]", "1 over", limit=1.0),
    Check("int4", "p95", "fail", "90 ms", "10 ms over", limit=80.0),
    Check("trt <b> & co", "runs", "fail", "exit code 3", 'no "engine"\x00\x1b[31m \ud800 ü €'),
]
# Jenkins' junit-10.xsd and the schema of the Ant task agree on these; "required" first.
ATTRIBUTES = {
    "testsuites": ({"name"}, {"tests", "failures", "errors", "skipped", "time"}),
    "testsuite": ({"name", "tests", "failures", "errors"}, {"skipped", "time", "timestamp"}),
    "testcase": ({"name", "classname"}, {"time"}),
    "failure": ({"type"}, {"message"}),
    "skipped": (set(), {"message"}),
    "system-out": (set(), set()),
}
CHILDREN = {
    "testsuites": {"testsuite"},
    "testsuite": {"testcase"},
    "testcase": {"failure", "skipped", "system-out"},
    "failure": set(),
    "skipped": set(),
    "system-out": set(),
}


def elements(node: Element) -> list[Element]:
    return [child for child in node.childNodes if isinstance(child, Element)]


def check_shape(node: Element) -> None:
    required, optional = ATTRIBUTES[node.tagName]
    names = set(node.attributes.keys())
    assert required <= names <= required | optional, node.tagName
    children = elements(node)
    assert {child.tagName for child in children} <= CHILDREN[node.tagName]
    if node.tagName == "testcase":
        assert len(children) == 1
    if node.tagName in ("testsuites", "testsuite"):
        for attribute, tag in (("tests", "testcase"), ("failures", "failure"), ("skipped", "skipped")):
            assert int(node.getAttribute(attribute)) == len(node.getElementsByTagName(tag))
    for child in children:
        check_shape(child)


def read(text: str) -> Element:
    document = xml.dom.minidom.parseString(text.encode("utf-8"))
    root = document.documentElement
    assert root is not None
    assert root.tagName == "testsuites"
    check_shape(root)
    return root


def test_a_suite_for_each_row_and_a_case_for_each_check() -> None:
    suites = elements(read(junit_xml(CHECKS, created="2026-01-02T03:04:05+00:00")))
    assert [suite.getAttribute("name") for suite in suites] == ["int4", "trt <b> & co"]
    assert [case.getAttribute("name") for case in elements(suites[0])] == ["runs", "drop of acc@0.5", "p95"]
    assert suites[0].getAttribute("timestamp") == "2026-01-02T03:04:05"
    assert [suites[0].getAttribute(name) for name in ("tests", "failures", "skipped")] == ["3", "2", "0"]
    types = [failure.getAttribute("type") for failure in suites[0].getElementsByTagName("failure")]
    assert types == ["inconclusive", "fail"]


def test_what_cannot_be_told_may_be_allowed() -> None:
    root = read(junit_xml(CHECKS, created="2026-01-02T03:04:05", allow_inconclusive=True))
    assert [root.getAttribute(name) for name in ("tests", "failures", "skipped")] == ["4", "2", "1"]


def test_the_last_words_of_a_worker_stay_well_formed() -> None:
    (_, suite) = elements(read(junit_xml(CHECKS, created="2026-01-02T03:04:05")))
    (failure,) = suite.getElementsByTagName("failure")
    message = failure.getAttribute("message")
    assert message.startswith('exit code 3: no "engine"')
    assert message.endswith("ü €")


@pytest.mark.parametrize("hits", [True, False])
def test_the_verb_writes_it_before_it_fails(tmp_path: Path, hits: bool) -> None:
    import json

    runs: dict[str, list[Row] | str] = {
        "base": [ground(f"{i}", part(1.0), number=i) for i in range(300)],
        "q": [ground(f"{i}", part(1.0 if hits else 0.2), number=i) for i in range(300)],
    }
    (tmp_path / "r.json").write_text(json.dumps(results(runs, baseline="base")[0].to_dict()))
    arguments = ["gate", str(tmp_path / "r.json"), "--max-drop", "1", "--junit", str(tmp_path / "g.xml")]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == (0 if hits else 1), done.output
    root = read((tmp_path / "g.xml").read_text(encoding="utf-8"))
    assert root.getAttribute("failures") == ("0" if hits else "1")
