"""Labels that are far rarer than others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from edgetune_data.check.findings import Finding
from edgetune_data.check.material import Material
from edgetune_data.check.texts import normal

_CLASSES = 5  # boxes a label on average from which on labels are classes and not free phrases


def check(material: Material) -> Iterator[Finding]:
    """Yield one finding a rare label."""
    counts = Counter(normal(label) for entry in material.entries for label in entry.labels)
    if len(counts) < 2 or counts.total() < _CLASSES * len(counts):
        return
    [(commonest, most)] = counts.most_common(1)
    for label, count in sorted(counts.items(), key=lambda item: item[1]):
        if count < material.limits.rare * most:
            entries = [entry for entry in material.entries if label in map(normal, entry.labels)]
            first = entries[0]
            yield material.finding(
                "rare-label",
                entries,
                f"{label!r} has {count} boxes, {commonest!r} has {most}",
                image=first.images[0] if first.images else None,
                boxes=[place.numbers for place in first.places],
                badness=most / count,
            )
