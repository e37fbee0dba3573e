"""Whether both sides of the wire counted the same: what is wrong, in words."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any

from loadtests.servers import Sample
from loadtests.soak.ledger import Ledger
from loadtests.soak.watching import Events
from shoal.v1 import model_control_pb2 as pb
from shoal.v1 import statistics_pb2, versions_pb2

# Calls that publish a `name_switched` each time they are answered.
_SWITCHES = {
    "SwitchModel": versions_pb2.SWITCH_CAUSE_SWITCH,
    "RollbackModel": versions_pb2.SWITCH_CAUSE_ROLLBACK,
    "SetVersionPolicy": versions_pb2.SWITCH_CAUSE_POLICY,
    "DeleteAlias": versions_pb2.SWITCH_CAUSE_DELETED,
}
# Calls that are left half way, and may fail at the server in that moment.
_LEFT = frozenset({"ProfileModel"})
# Calls that publish an event of their own.
_TOLD = {
    "ProfileModel": "model_profiled",
    "DeregisterModel": "model_deregistered",
    "RegisterModel": "model_registered",
}


def compare(what: str, ours: Mapping[Any, float], theirs: Mapping[Any, float]) -> Iterator[str]:
    """Where two counts of the same differ."""
    for key in sorted({*ours, *theirs}, key=str):
        if ours.get(key, 0) != theirs.get(key, 0):
            yield f"{what}, {key}: {ours.get(key, 0):g} here, {theirs.get(key, 0):g} at the server"


def idle_problems(info: pb.GetServerInfoResponse) -> Iterator[str]:
    """What a server still holds that nobody calls; and whether its books balance."""
    in_flight = info.requests_in_flight, info.items_in_flight, info.bytes_in_flight
    if any(in_flight):
        yield "{} requests, {} items, {} bytes in flight".format(*in_flight)
    for each in info.residents:
        name, residency = f"{each.model}@{each.version}", each.residency
        if each.state != pb.MODEL_STATE_READY:
            yield f"{name} is {pb.ModelState.Name(each.state)}"
        if residency.leases or residency.waiting_items:
            yield f"{name}: {residency.leases} leases, {residency.waiting_items} items wait"
    device = info.devices[0]
    counted = sum(each.residency.memory_bytes for each in info.residents)
    if (device.resident_models, device.resident_bytes) != (len(info.residents), counted):
        yield (
            f"{device.resident_models} models of {device.resident_bytes} bytes are counted, "
            f"{len(info.residents)} of {counted} are there"
        )


def count_problems(
    ledger: Ledger,
    statistics: statistics_pb2.GetStatisticsResponse,
    samples: Sequence[Sample],
) -> Iterator[str]:
    """Where what the callers counted differs from the server's statistics and metrics."""
    failed: Counter[str] = Counter()
    for failure, times in ledger.failed.items():
        failed[failure.reason] += times
    theirs: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    for each in statistics.models:
        if not each.model:
            reasons.update(each.since_start.errors)
            continue
        traffic, key = each.since_start, f"{each.model}@{each.version}"
        reasons.update(traffic.errors)
        counts = theirs.setdefault(key, Counter())
        counts["answered"] = traffic.requests - sum(traffic.errors.values())
        counts["items"], counts["tokens"] = traffic.items, traffic.tokens
    for name, ours in (
        ("answered", ledger.answered), ("items", ledger.items), ("tokens", ledger.tokens)
    ):  # fmt: skip
        yield from compare(
            f"GetStatistics, {name}", ours, {key: each[name] for key, each in theirs.items()}
        )
    yield from compare("GetStatistics, errors", failed, reasons)
    rpcs = added(samples, "shoal_requests_total", lambda of: _rpc(of["method"], of["code"]))
    counted: Counter[tuple[str, str]] = Counter()
    for (method, code), times in ledger.rpcs.items():
        counted[_rpc(method, code)] += times
    yield from compare("shoal_requests_total", counted, rpcs)
    streamed = added(samples, "shoal_stream_requests_total", lambda of: of["code"])
    yield from compare("shoal_stream_requests_total", ledger.stream_requests, streamed)
    for name, total in (("shoal_items_total", ledger.items), ("shoal_tokens_total", ledger.tokens)):
        here = {"all": float(total.total())}
        yield from compare(name, here, added(samples, name, lambda _: "all"))


def _rpc(method: str, code: str) -> tuple[str, str]:
    """What a call counts as."""
    return (method, "") if method in _LEFT else (method, code)


def event_problems(
    ledger: Ledger,
    events: Events,
    info: pb.GetServerInfoResponse,
    samples: Sequence[Sample],
) -> Iterator[str]:
    """Where the events differ from what was called for, and from the metrics."""
    yield from events.problems
    kinds = added(samples, "shoal_events_total", lambda of: of["kind"])
    yield from compare("shoal_events_total", events.kinds, kinds)
    loads = added(samples, "shoal_model_loads_total", lambda of: of["result"])
    told = {"ok": events.kinds["model_loaded"], "failed": events.kinds["model_load_failed"]}
    yield from compare("shoal_model_loads_total", told, loads)
    unloads = added(
        samples,
        "shoal_model_unloads_total",
        lambda of: f"UNLOAD_REASON_{of['reason'].upper()}",
    )
    yield from compare("shoal_model_unloads_total", events.unloads, unloads)
    switches = {str(cause): ledger.rpcs[method, "OK"] for method, cause in _SWITCHES.items()}
    switches[str(versions_pb2.SWITCH_CAUSE_UPDATE)] = ledger.updates
    yield from compare("name_switched", switches, events.switches)
    for method, kind in _TOLD.items():
        answered = {kind: ledger.rpcs[method, "OK"]}
        yield from compare(method, answered, {kind: events.kinds[kind]})
    there = Counter(f"{each.model}@{each.version}" for each in info.residents)
    yield from compare("model_loaded less model_unloaded", +events.resident, there)


def log_problems(log: str) -> Iterator[str]:
    """Lines of a server's log that nobody wants to read."""
    for line in log.splitlines():
        try:
            level = json.loads(line).get("level", "")
        except (ValueError, AttributeError):
            level = "error" if "Traceback" in line or "rror" in line else ""
        if level in ("error", "critical"):
            yield f"the log says: {line[:300]}"


def added(
    samples: Sequence[Sample], name: str, by: Callable[[Mapping[str, str]], Hashable]
) -> Counter[Any]:
    """A metric's samples, added up by something of their labels."""
    totals: Counter[Any] = Counter()
    for sample in samples:
        if sample.name == name:
            totals[by(sample.labels)] += int(sample.value)
    return totals
