"""The gateway's metrics, for Prometheus. docs/gateway-operations.md describes each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    GCCollector,
    Histogram,
    Info,
    PlatformCollector,
    ProcessCollector,
)

from motes import __version__
from motes.core import Record, Usage
from motes.gateway.admission import Admission
from motes.gateway.answering import Served
from motes.gateway.logs import RequestLog
from motes.protocols import RewardModelTraits

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80, 160, 320)
SHARES = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
KINDS: dict[tuple[str, str], Callable[[Usage], int]] = {
    ("language model", "generated"): lambda usage: usage.generated_tokens,
    ("language model", "prefill"): lambda usage: usage.computed_prefill_tokens,
    ("language model", "needed"): lambda usage: usage.generated_tokens + usage.prefill_tokens,
    ("language model", "failed_generated"): lambda usage: usage.failed_generated_tokens,
    ("language model", "failed_prefill"): lambda usage: usage.failed_prefill_tokens,
    ("reward model", "computed"): lambda usage: usage.computed_reward_tokens,
    ("reward model", "needed"): lambda usage: usage.reward_tokens,
    ("reward model", "failed"): lambda usage: usage.failed_reward_tokens,
}
"""The kinds of tokens by role: computed, needed if each run were alone, and lost in failed attempts."""


class Metrics:
    """The gateway's counters.

    Attributes:
        registry: all of them.
        waited, failures: by model.
        connections, refused: set by the server.
        shared_limits: by the address of the server that shares the quotas, set where there is one.
    """

    def __init__(self, gate: Admission) -> None:
        self.registry = registry = CollectorRegistry()
        by_model: dict[str, Any] = {"labelnames": ("model",), "registry": registry}
        labels = ("endpoint", "model", "caller", "status")
        self._requests = Counter("motes_requests", "Requests that have ended.", labels, registry=registry)
        to_end = "From a request's arrival to its end, except for refused requests and clients that left (4xx)."
        to_room = "From a request's arrival until there was room."
        to_text = "From a request's arrival until its stream sent text."
        self._seconds = Histogram("motes_request_seconds", to_end, buckets=SECONDS, **by_model)
        self._first_text = Histogram("motes_first_text_seconds", to_text, buckets=SECONDS, **by_model)
        self.waited = Histogram("motes_wait_seconds", to_room, buckets=SECONDS, **by_model)
        self._tokens = Counter(
            "motes_tokens", "Tokens, all particles.", ("model", "caller", "role", "kind"), registry=registry
        )
        self._rounds = Counter("motes_rounds", "Rounds of populations.", **by_model)
        self._resamplings = Counter("motes_resamplings", "Rounds that began with resampling.", **by_model)
        self._ess = Histogram("motes_ess_share", "ESS over particles, each round.", buckets=SHARES, **by_model)
        self.failures = Counter(
            "motes_upstream_errors", "Runs that failed because of a model behind the gateway.", **by_model
        )
        self.fallbacks = Counter("motes_fallbacks", "Answers without the reward model, which failed.", **by_model)
        self._dropped = Counter("motes_particles_dropped", "Particles that failed because of a model.", **by_model)
        roles = ("model", "role")
        by_outcome = "Attempts of requests to upstream servers, by how they ended."
        self._attempts = Counter("motes_upstream_attempts", by_outcome, (*roles, "outcome"), registry=registry)
        successful = "Successful attempts, from sending to the last byte."
        self._upstream = Histogram("motes_upstream_seconds", successful, roles, buckets=SECONDS, registry=registry)
        particles = Gauge("motes_particles_in_flight", "Particles of requests that have room.", registry=registry)
        particles.set_function(lambda: gate.in_flight)
        self.connections = Gauge("motes_connections", "Open connections of clients.", registry=registry)
        self.refused = Counter("motes_connections_refused", "Connections refused at the bound.", registry=registry)
        waiting = Gauge("motes_requests_waiting", "Requests that wait for room.", registry=registry)
        waiting.set_function(lambda: gate.in_queue)
        is_shared = "1: gateways share quotas through this server; 0: it cannot be used, this process counts alone."
        self.shared_limits = Gauge("motes_shared_limits_up", is_shared, ("server",), registry=registry)
        Info("motes_build", "The version of motes.", registry=registry).info({"version": __version__})
        for collector in (ProcessCollector, PlatformCollector, GCCollector):  # of this process, Python, its memory
            collector(registry=registry)

    def watch(self, models: Mapping[str, Served]) -> None:
        """Count the attempts of requests to upstream servers. A model that several virtual models share counts for the
        first of them."""
        watched: set[int] = set()
        for name, served in models.items():
            roles = {
                "language model": served.lm,
                "reward model": served.reward,
                "outcome reward": served.outcome_reward,
            }
            for role, upstream in roles.items():
                watch = RewardModelTraits(upstream).watch_requests  # language models have the same trait
                if watch is not None and id(upstream) not in watched:
                    watched.add(id(upstream))
                    watch(partial(self._count_attempt, name, role))

    def _count_attempt(self, model: str, role: str, outcome: str, seconds: float) -> None:
        self._attempts.labels(model, role, outcome).inc()
        if outcome == "ok":
            self._upstream.labels(model, role).observe(seconds)

    def count_dropped(self, model: str, particles: int) -> None:
        self._dropped.labels(model).inc(particles)

    def count_request(self, entry: RequestLog) -> None:
        self._requests.labels(entry.endpoint, entry.model, entry.caller, entry.status).inc()
        if entry.status is not None and not 400 <= entry.status < 500:  # a refusal takes no time
            self._seconds.labels(entry.model).observe(entry.seconds)
        if entry.first_text is not None:
            self._first_text.labels(entry.model).observe(entry.first_text)

    def count_round(self, model: str, record: Record) -> None:
        self._rounds.labels(model).inc()
        self._resamplings.labels(model).inc(record.resampled)
        self._ess.labels(model).observe(record.ess / len(record.trajectories))

    def count_usage(self, model: str, caller: str, usage: Usage) -> None:
        for (role, kind), count in KINDS.items():
            self._tokens.labels(model, caller, role, kind).inc(count(usage))
