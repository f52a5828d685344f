"""Where the figures come from: inputs with their sha256, software, machine, command, settings and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgetune_bench.report.html import Column, table, text
from edgetune_bench.report.html import section as wrap


def section(results: Mapping[str, Any]) -> str:
    """Everything that is needed to measure the same again."""
    inputs = results["inputs"]
    columns = [
        Column("sha256", [f"<code>{text(entry['sha256'])}</code>" for entry in inputs.values()], wide=True),
        Column("path", [text(entry["path"]) for entry in inputs.values()], wide=True),
    ]
    hashes = table("Inputs and their sha256", [text(name) for name in inputs], columns, corner="input")
    machines = results.get("machines") or {"": results}
    parts = "".join(_machine(name, part) for name, part in machines.items())
    statistics = ", ".join(f"{text(key)} {text(value)}" for key, value in results["statistics"].items())
    pictures = f"<p>Pictures: sha256 <code>{text(results['data']['images_sha256'])}</code></p>\n"
    return wrap("Provenance", "", f"{hashes}{pictures}<p>Intervals: {statistics}.</p>\n{parts}")


def _machine(name: str, part: Mapping[str, Any]) -> str:
    facts = "".join(
        f"<div><dt>{text(key)}</dt><dd>{_list(part[key])}</dd></div>" for key in ("machine", "versions", "options")
    )
    title = f"<h3>{text(name)}</h3>\n" if name else ""
    return f"{title}<pre>{text(part['command'])}</pre>\n<dl class='facts long'>{facts}</dl>\n"


def _list(values: Mapping[str, object]) -> str:
    return "<br>".join(f"{text(key)} <b>{text(value)}</b>" for key, value in values.items() if value is not None)
