"""Build hook: `edgetune` requires the `edgetune-runtime` of its own version, so the version is written once."""

from __future__ import annotations

from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface


class PinnedRuntime(MetadataHookInterface):
    """Adds the run-time requirements, with the runtime pinned to the version being built."""

    def update(self, metadata: dict[str, Any]) -> None:
        """Set the dynamic field `dependencies`."""
        metadata["dependencies"] = [f"edgetune-runtime=={metadata['version']}", *self.config["dependencies"]]
