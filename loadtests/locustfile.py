"""Locust users that speak gRPC; `make loadtest` runs them.

Five kinds of caller share one server: steady ones, bursts, callers of several models
(with too little room for all, so that models are evicted), bulk streams, and impatient
ones that cancel. Every answer's shape is checked, and the vectors of some texts.

At the end the error budget is judged and the server must have nothing in flight.
"""

# mypy: disable-error-code="untyped-decorator"
# (Locust is not installed where types are checked.)

from __future__ import annotations

import random
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import gevent
import grpc
import grpc.experimental.gevent
import numpy as np
from locust import User, between, constant_pacing, events, task
from locust.env import Environment

from loadtests.budget import Budget, RequestCounts, judge
from loadtests.workloads import SPECS, Workload, make_workload
from shoal.v1 import embed_pb2 as pb
from shoal.v1 import embed_pb2_grpc, model_control_pb2, model_control_pb2_grpc

# Locust has patched the standard library; grpc's core must yield to gevent too. Its
# futures tell of their end up to 200 ms late under gevent, so greenlets block instead.
grpc.experimental.gevent.init_gevent()

_PATIENCE_S = 30.0
_TOKENIZE_AT_ONCE = 1000
_REFERENCE_TEXTS = 16
_LEAST_COSINE = 0.9999
_SETTLE_S = 10.0
_BURST_REQUESTS = 20


@dataclass(frozen=True, slots=True)
class Plan:
    """What all users of a run share."""

    workloads: dict[str, Workload]
    models: tuple[str, ...]
    """The default first."""
    references: tuple[tuple[float, ...], ...]
    """Vectors of the first texts of `short`, asked for before the load began."""


_plan: Plan


class WrongAnswer(Exception):
    """The server answered OK, and not with what was asked for."""


# -- before and after -----------------------------------------------------------


@events.init_command_line_parser.add_listener
def add_options(parser: ArgumentParser) -> None:
    """Thresholds; documented in docs/performance.md."""
    group = parser.add_argument_group("error budget")
    group.add_argument("--max-error-rate", type=float, default=0.001,
                       help="share of requests that may fail")  # fmt: skip
    group.add_argument("--max-rejected-rate", type=float, default=0.01,
                       help="share that may be refused with RESOURCE_EXHAUSTED")  # fmt: skip
    group.add_argument("--max-steady-p99-ms", type=float, default=2000.0,
                       help="p99 of the steady callers")  # fmt: skip


@events.test_start.add_listener
def prepare(environment: Environment, **_: object) -> None:
    """Cut texts, with the server's own tokenizer; find models; ask for references."""
    global _plan
    with grpc.insecure_channel(environment.host) as channel:
        embed = embed_pb2_grpc.EmbedServiceStub(channel)
        control = model_control_pb2_grpc.ModelControlServiceStub(channel)

        def count_tokens(texts: Sequence[str]) -> list[int]:
            counts: list[int] = []
            for at in range(0, len(texts), _TOKENIZE_AT_ONCE):
                request = pb.TokenizeRequest(texts=texts[at : at + _TOKENIZE_AT_ONCE])
                answer = embed.Tokenize(request, timeout=_PATIENCE_S)
                counts.extend(len(each.ids) for each in answer.results)
            return counts

        workloads = {name: make_workload(spec, count_tokens) for name, spec in SPECS.items()}
        listed = control.ListModels(model_control_pb2.ListModelsRequest(), timeout=_PATIENCE_S)
        models = sorted((each for each in listed.models if each.version), key=_default_first)
        texts = workloads["short"].texts[:_REFERENCE_TEXTS]
        answer = embed.Embed(pb.EmbedRequest(texts=texts), timeout=_PATIENCE_S)
        rows = np.frombuffer(answer.vectors, "<f4").reshape(-1, answer.dimensions)
    _plan = Plan(workloads, tuple(each.name for each in models), tuple(map(tuple, rows.tolist())))


@events.quitting.add_listener
def decide(environment: Environment, **_: object) -> None:
    """Set the exit status by the error budget."""
    assert environment.parsed_options is not None
    options = environment.parsed_options
    budget = Budget(options.max_error_rate, options.max_rejected_rate, options.max_steady_p99_ms)
    problems = judge(_counts(environment), budget) + _left_in_flight(environment.host or "")
    for problem in problems:
        print(f"loadtest: {problem}")
    print(f"loadtest: {'failed' if problems else 'passed'}")
    environment.process_exit_code = 1 if problems else 0


def _default_first(model: model_control_pb2.ModelInfo) -> tuple[bool, str]:
    return not model.is_default, model.name


def _counts(environment: Environment) -> RequestCounts:
    stats = environment.stats
    errors: dict[str, int] = {}
    for error in stats.errors.values():
        errors[str(error.error)] = errors.get(str(error.error), 0) + error.occurrences
    steady = stats.get("steady", "grpc")
    return RequestCounts(
        total=stats.total.num_requests,
        errors=errors,
        steady_p99_ms=steady.get_response_time_percentile(0.99) if steady.num_requests else None,
    )


def _left_in_flight(host: str) -> list[str]:
    """What the server still holds though nobody asks any longer: a leak."""
    ends_s = time.monotonic() + _SETTLE_S
    try:
        with grpc.insecure_channel(host) as channel:
            control = model_control_pb2_grpc.ModelControlServiceStub(channel)
            while True:
                info = control.GetServerInfo(model_control_pb2.GetServerInfoRequest(), timeout=10)
                held = (info.requests_in_flight, info.items_in_flight, info.bytes_in_flight)
                if not any(held):
                    return []
                if time.monotonic() > ends_s:
                    return [f"the server still holds {held} requests, items, bytes"]
                gevent.sleep(0.1)
    except grpc.RpcError as error:
        return [f"the server does not answer any more: {error.code().name}"]


# -- users ------------------------------------------------------------------------


class ShoalUser(User):  # type: ignore[misc]
    """Sends requests and tells Locust what became of them."""

    abstract = True
    _channels: dict[str, grpc.Channel] = {}  # noqa: RUF012  (shared on purpose)

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        host = environment.host or ""
        # A channel of its own for each kind of user, as services have.
        key = f"{type(self).__name__} {host}"
        if key not in self._channels:
            options = [("grpc.use_local_subchannel_pool", 1)]
            self._channels[key] = grpc.insecure_channel(host, options=options)
        self.embed = embed_pb2_grpc.EmbedServiceStub(self._channels[key])

    def texts(self, workload: str, count: int) -> list[str]:
        """Some texts, anywhere in the workload."""
        texts = _plan.workloads[workload].texts
        start = random.randrange(len(texts) - count + 1)
        return list(texts[start : start + count])

    def report(self, name: str, began_s: float, size_bytes: int, error: object | None) -> None:
        """Tell Locust of one request."""
        self.environment.events.request.fire(
            request_type="grpc",
            name=name,
            response_time=(time.perf_counter() - began_s) * 1000,
            response_length=size_bytes,
            exception=error,
            context={},
        )

    def measure(self, name: str, call: Callable[[], pb.EmbedResponse], texts: int) -> None:
        """Do one call, check its answer, report it."""
        began_s = time.perf_counter()
        try:
            answer = call()
            check_shape(answer, texts)
        except grpc.RpcError as error:
            self.report(name, began_s, 0, _short(error))
        except WrongAnswer as error:
            self.report(name, began_s, 0, error)
        else:
            self.report(name, began_s, len(answer.vectors), None)


class SteadyUser(ShoalUser):
    """One short text every half second; every vector is compared."""

    weight = 10
    wait_time = constant_pacing(0.5)

    @task
    def one_text(self) -> None:
        """Embed a text whose vector is known."""
        place = random.randrange(_REFERENCE_TEXTS)
        request = pb.EmbedRequest(texts=[_plan.workloads["short"].texts[place]])

        def call() -> pb.EmbedResponse:
            answer: pb.EmbedResponse = self.embed.Embed(request, timeout=5)
            check_vector(answer, _plan.references[place])
            return answer

        self.measure("steady", call, 1)


class BurstUser(ShoalUser):
    """Silent for seconds, then many requests at once."""

    weight = 2
    wait_time = between(2, 5)

    @task
    def burst(self) -> None:
        """Send all, then wait for all."""
        gevent.joinall([gevent.spawn(self._one) for _ in range(_BURST_REQUESTS)])

    def _one(self) -> None:
        texts = self.texts("mixed", random.choice((1, 1, 1, 4)))
        request = pb.EmbedRequest(texts=texts)
        self.measure("burst", lambda: self.embed.Embed(request, timeout=_PATIENCE_S), len(texts))


class MixedModelsUser(ShoalUser):
    """Asks one model, then another: with little room, each must be loaded again."""

    weight = 2
    wait_time = between(0.5, 2)

    @task
    def one_model(self) -> None:
        """Embed with any of the models, the first ones more often."""
        rank = min(int(random.expovariate(1.0)), len(_plan.models) - 1)
        texts = self.texts("medium", 2)
        request = pb.EmbedRequest(model=_plan.models[rank], texts=texts)
        self.measure("mixed models", lambda: self.embed.Embed(request, timeout=_PATIENCE_S), 2)


class BulkStreamUser(ShoalUser):
    """Sends a few hundred texts through one stream and reads all answers."""

    weight = 1
    wait_time = between(5, 10)

    @task
    def bulk(self) -> None:
        """Every id must be answered once."""
        batches = {str(number): self.texts("short", 16) for number in range(20)}
        began_s = time.perf_counter()
        answered: set[str] = set()
        try:
            for answer in self.embed.EmbedStream(_stream(batches), timeout=2 * _PATIENCE_S):
                if answer.id in answered or answer.id not in batches:
                    raise WrongAnswer("an id was answered twice, or never asked")
                if answer.HasField("error"):
                    raise WrongAnswer(f"code {answer.error.code} in a stream")
                check_shape(answer.response, len(batches[answer.id]))
                answered.add(answer.id)
            if len(answered) != len(batches):
                raise WrongAnswer("the stream ended before all was answered")
        except grpc.RpcError as error:
            self.report("bulk stream", began_s, 0, _short(error))
        except WrongAnswer as error:
            self.report("bulk stream", began_s, 0, error)
        else:
            self.report("bulk stream", began_s, 0, None)


class ImpatientUser(ShoalUser):
    """Cancels its calls, or gives them deadlines that can hardly be met."""

    weight = 4
    wait_time = between(0.2, 0.8)

    @task
    def cancel(self) -> None:
        """Leave while the request waits or runs."""
        request = pb.EmbedRequest(texts=self.texts("mixed", 2))
        began_s = time.perf_counter()
        future = self.embed.Embed.future(request, timeout=_PATIENCE_S)
        gevent.sleep(random.uniform(0, 0.05))
        future.cancel()
        self.report("cancelled", began_s, 0, None)

    @task
    def short_deadline(self) -> None:
        """Leave by the clock; an answer in time is welcome."""
        request = pb.EmbedRequest(texts=self.texts("mixed", 2))
        timeout_s = random.uniform(0.002, 0.05)
        began_s = time.perf_counter()
        try:
            check_shape(self.embed.Embed(request, timeout=timeout_s), 2)
        except grpc.RpcError as error:
            late = error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
            self.report("short deadline", began_s, 0, None if late else _short(error))
        except WrongAnswer as error:
            self.report("short deadline", began_s, 0, error)
        else:
            self.report("short deadline", began_s, 0, None)


def check_shape(answer: pb.EmbedResponse, texts: int) -> None:
    """Raise WrongAnswer unless there is one finite vector a text."""
    if len(answer.vectors) != texts * answer.dimensions * 4 or len(answer.token_counts) != texts:
        raise WrongAnswer("not one vector a text")
    if not np.isfinite(np.frombuffer(answer.vectors, "<f4")).all():
        raise WrongAnswer("a vector is not finite")


def check_vector(answer: pb.EmbedResponse, reference: Sequence[float]) -> None:
    """Raise WrongAnswer unless the only vector points where `reference` does."""
    row, wanted = np.frombuffer(answer.vectors, "<f4"), np.asarray(reference)
    if len(row) != len(wanted):
        raise WrongAnswer("a vector of another size")
    cosine = float(row @ wanted / (np.linalg.norm(row) * np.linalg.norm(wanted)))
    if cosine < _LEAST_COSINE:
        raise WrongAnswer("another vector than before the load")


def _stream(batches: dict[str, list[str]]) -> Iterator[pb.EmbedStreamRequest]:
    for request_id, texts in batches.items():
        yield pb.EmbedStreamRequest(id=request_id, request=pb.EmbedRequest(texts=texts))


def _short(error: grpc.RpcError) -> str:
    """The code alone: Locust counts errors by their text."""
    code: str = error.code().name
    return code
