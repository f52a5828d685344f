"""Checks as JUnit XML, the form in which CI systems show tests: a suite for each row, a case for each check."""

from __future__ import annotations

import re
from collections.abc import Sequence
from xml.etree import ElementTree

from edgetune_bench.gate import Check

# What XML 1.0 cannot hold (section 2.2); a worker's last words may hold anything.
_ILLEGAL = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(checks: Sequence[Check], *, created: str, allow_inconclusive: bool = False) -> str:
    """Return the document, with a declaration.

    A check that could not tell is a failure of type "inconclusive", or skipped where that is allowed.

    Args:
        checks: in the order of the rows.
        created: when the results were measured, in ISO 8601.
        allow_inconclusive: whether a check that could not tell is not to fail.
    """
    root = ElementTree.Element("testsuites", name="edgetune gate")
    for row in dict.fromkeys(check.row for check in checks):
        suite = ElementTree.SubElement(root, "testsuite", name=_legal(row), timestamp=_legal(created[:19]))
        for check in checks:
            if check.row == row:
                _case(suite, check, allow_inconclusive)
    for element in (*root, root):
        counts = {"tests": "testcase", "failures": "failure", "skipped": "skipped"}
        for name, tag in counts.items():
            element.set(name, str(len(list(element.iter(tag)))))
        element.set("errors", "0")
        element.set("time", "0")
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}\n'


def _case(suite: ElementTree.Element, check: Check, allow_inconclusive: bool) -> None:
    case = ElementTree.SubElement(suite, "testcase", classname=_legal(check.row), name=check.name, time="0")
    message = _legal(check.message)
    if check.outcome == "inconclusive" and allow_inconclusive:
        ElementTree.SubElement(case, "skipped", message=message)
    elif check.outcome != "pass":
        ElementTree.SubElement(case, "failure", type=check.outcome, message=message).text = message
    else:
        ElementTree.SubElement(case, "system-out").text = message


def _legal(text: str) -> str:
    return _ILLEGAL.sub("\ufffd", text)
