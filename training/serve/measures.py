"""What Prometheus sees. Replicas of one server share a folder (PROMETHEUS_MULTIPROC_DIR), so any of them tells of all."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, multiprocess

from training.serve.served import Identity

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Measures:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = self._counter("requests", "Requests by route and HTTP status.", ("route", "status"))
        self.tokens = self._counter("tokens", "Tokens read and written.", ("kind",))
        self.seconds = self._histogram("request_seconds", "From a request to its last byte.", ("route",))
        self.first_token = self._histogram("first_token_seconds", "From a request to the first token of a stream.")
        self.running = self._gauge("running_answers", "Answers being written or waiting.", "livesum")
        self.replicas = self._gauge("replicas", "Replicas alive.", "livesum")
        self.info = self._gauge(
            "model_info", "1 for the model each replica answers with.", "livesum", ("model", "fingerprint")
        )
        self.fence = self._gauge("model_fence", "Lowest fence any replica answers with.", "livemin")
        self.stuck = self._gauge("champion_not_served", "Replicas that could not load the champion.", "livesum")
        self.swaps = self._counter("swaps", "New champions, by what became of them.", ("outcome",))
        self._named: Identity | None = None

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(f"nightmill_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Histogram:
        return Histogram(f"nightmill_{name}", text, labels, registry=self.registry, buckets=SECONDS)

    def _gauge(self, name: str, text: str, mode: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(f"nightmill_{name}", text, labels, registry=self.registry, multiprocess_mode=mode)

    def started(self, identity: Identity) -> None:
        self.replicas.set(1)
        self.stuck.set(0)
        self._name(identity)

    def swapped(self, identity: Identity) -> None:
        self.swaps.labels("done").inc()
        self.stuck.set(0)
        self._name(identity)

    def rejected(self, why: str) -> None:
        self.swaps.labels("stale" if why == "stale fence" else "refused").inc()
        if why != "stale fence":
            self.stuck.set(1)

    def _name(self, identity: Identity) -> None:
        if self._named is not None:
            self.info.labels(self._named.model, self._named.fingerprint).set(0)
        self.info.labels(identity.model, identity.fingerprint).set(1)
        self.fence.set(identity.fence)
        self._named = identity

    def text(self) -> bytes:
        registry = self.registry
        if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
            registry = CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)
        exposition: bytes = generate_latest(registry)
        return exposition
