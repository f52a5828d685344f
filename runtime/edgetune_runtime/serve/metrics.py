"""Figures for Prometheus, of one server with one or several workers."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from edgetune_runtime.timing import STAGES, Timings

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)

WORKERS = "PROMETHEUS_MULTIPROC_DIR"
"""Where the library keeps the figures of workers that are processes of their own; it reads the variable at import."""


class Metrics:
    """Counters of a server."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series for each figure, with the time of its start
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("edgetune_requests", "By path and status", ["path", "status"], registry=registry)
        self.seconds = Histogram(
            "edgetune_request_seconds",
            "From a request to the end of its response",
            ["path"],
            buckets=_BUCKETS,
            registry=registry,
        )
        self._stages = Histogram(
            "edgetune_stage_seconds", "Stages of an answer", ["model", "stage"], buckets=_BUCKETS, registry=registry
        )
        self._tokens = Counter("edgetune_tokens", "Generated tokens", ["model"], registry=registry)
        self._images = Counter("edgetune_images", "Pictures that were asked about", ["model"], registry=registry)
        self._hits = Counter("edgetune_image_cache_hits", "Pictures known from before", ["model"], registry=registry)
        self.rejects = Counter("edgetune_rejects", "Refused requests", ["status"], registry=registry)
        self.cancelled = Counter("edgetune_cancelled", "Requests whose client left", registry=registry)
        self.events = Counter("edgetune_label_studio_events", "Events of Label Studio", ["action"], registry=registry)
        self.regions = Counter(
            "edgetune_label_studio_regions",
            "Boxes of new annotations in Label Studio: kept as predicted, corrected, or drawn by hand",
            ["origin"],
            registry=registry,
        )
        self.pending = Gauge(
            "edgetune_pending_requests",
            "Requests that wait or are answered",
            ["model"],
            multiprocess_mode="livesum",
            registry=registry,
        )

    def answered(self, model: str, timings: Timings, *, queue: float | None, image: str | None) -> None:
        """Count an answer.

        Args:
            model: its name.
            timings: what it cost.
            queue: seconds that its request waited, for the first answer of a request.
            image: "new" or "known" for the first answer about a picture, None for others.
        """
        told = timings.to_dict()
        for stage in STAGES:
            self._stages.labels(model, stage).observe(told[stage])
        self._tokens.labels(model).inc(timings.tokens)
        if queue is not None:
            self._stages.labels(model, "queue").observe(queue)
        if image is not None:
            self._images.labels(model).inc()
        if image == "known":
            self._hits.labels(model).inc()

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        if WORKERS not in os.environ:
            return generate_latest(self._registry)
        folder = Path(os.environ[WORKERS])
        for file in folder.glob("gauge_live*_*.db"):  # a worker that is gone has no queue
            if not Path("/proc", file.stem.rpartition("_")[2]).exists() and Path("/proc").is_dir():
                file.unlink(missing_ok=True)
        gathered = CollectorRegistry()
        MultiProcessCollector(gathered)  # type: ignore[no-untyped-call]
        return generate_latest(gathered)
