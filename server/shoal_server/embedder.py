"""The page to read first: the life of a request, whatever face it came through.

    1. validate   what can be said without a model
    2. resolve    the model's name to a version of it
    3. admit      within its caller's rate, and a permit by items and bytes, or
                  Overloaded at once
    4. lease      a session; a cold model is loaded first
    5. tokenize   here when small, in a thread when large
    6. enqueue    the items wait in the model's batcher, which runs them
    7. gather     the rows, in the request's order
    8. encode     slice, normalise, encode

The deadline covers 4 to 7. Whoever leaves early (deadline, cancelled call) gives
lease and permit back and takes its items out of the queue; batch mates notice
nothing.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from shoal_server.batching.admission import Admission
from shoal_server.batching.submission import SubmissionTimings
from shoal_server.core import VectorEncoding
from shoal_server.deadlines import has_passed
from shoal_server.embed_request import (
    EmbedRequest,
    RequestLimits,
    check_against_model,
    check_size,
    estimated_tokens,
    must_normalize,
    prompt_of,
)
from shoal_server.errors import DeadlineExceeded, ModelLoadFailed, ModelNotFound, ShoalError
from shoal_server.inference.backend import Row
from shoal_server.inference.output import EncodedRows, encode_rows, shape_rows
from shoal_server.inference.tokenizer import Encoding, TextTokenizer
from shoal_server.loading import LoadedModel
from shoal_server.placement import Placement
from shoal_server.rate_limits import RateLimits
from shoal_server.registry.deprecations import DeprecationWarnings
from shoal_server.registry.prepared import ModelVersion
from shoal_server.registry.registry import Registry
from shoal_server.residency.pool import SessionPool
from shoal_server.residency.resident import Lease
from shoal_server.statistics.statistics import Statistics
from shoal_server.telemetry.metrics import Metrics
from shoal_server.usage.history import UsageHistory

T = TypeVar("T")

_TOO_LATE = "the deadline passed before the answer was there"


@dataclass(slots=True)
class RequestTimings:
    """Where the time of a request went, in seconds."""

    load_s: float = 0.0
    tokenize_s: float = 0.0
    items: SubmissionTimings | None = None


@dataclass(frozen=True, slots=True)
class EmbedResult:
    """The vectors of one request."""

    version: ModelVersion
    rows: EncodedRows
    dimensions: int
    encoding: VectorEncoding
    token_counts: list[int]
    tokens: int
    """Their sum."""
    truncated: list[int]
    """Indices of the inputs that were cut."""
    timings: RequestTimings


@dataclass(frozen=True, slots=True)
class TokenizeResult:
    """The token ids of one request's texts."""

    version: ModelVersion
    encodings: list[Encoding]
    strings: list[list[str]] | None


class Embedder:
    """Turns requests into vectors. Belongs to the event loop's thread."""

    def __init__(
        self,
        *,
        registry: Registry,
        admission: Admission,
        pool: SessionPool[LoadedModel],
        placement: Placement,
        limits: RequestLimits,
        tokenize_executor: Executor,
        metrics: Metrics,
        rate_limits: RateLimits,
        statistics: Statistics,
        history: UsageHistory,
        deprecations: DeprecationWarnings,
    ) -> None:
        self._registry = registry
        self._admission = admission
        self._pool = pool
        self._placement = placement
        self._limits = limits
        self._tokenize_executor = tokenize_executor
        self._metrics = metrics
        self._rate_limits = rate_limits
        self._statistics = statistics
        self._history = history
        self._deprecations = deprecations

    async def embed(self, request: EmbedRequest) -> EmbedResult:
        """Embed one request's inputs; the vectors are in the order of the inputs.

        Raises:
            ShoalError: What went wrong, for the caller.
        """
        began_s = time.monotonic()
        version: ModelVersion | None = None
        try:
            check_size(request, self._limits)
            version = await self._resolve(request)
            if version.deprecation is not None:
                self._deprecations.used(version, request.caller)
            try:
                result = await self._embed(request, version)
            except ModelNotFound:
                # Deregistered before it was loaded: what it was asked as may mean another by now.
                version = await self._registry.resolve(request.model, request.routing_key)
                result = await self._embed(request, version)
        except (Exception, asyncio.CancelledError) as error:
            self._statistics.failed(
                request.caller, version.key if version else None, _reason(error, request, began_s)
            )
            raise
        items = result.timings.items
        self._statistics.answered(
            request.caller,
            version.key,
            seconds=time.monotonic() - began_s,
            queue_s=items.queue_s if items else 0.0,
            inference_s=items.inference_s if items else 0.0,
            items=len(result.token_counts),
            tokens=result.tokens,
            truncated=len(result.truncated),
        )
        return result

    async def _embed(self, request: EmbedRequest, version: ModelVersion) -> EmbedResult:
        check_against_model(request, version.manifest)
        timings = RequestTimings()
        items = len(request.texts) or len(request.tokens)

        async def run(model: LoadedModel) -> tuple[list[Encoding], int, list[Row]]:
            encodings = await self._encode(request, model, timings)
            tokens = sum(len(encoding.ids) for encoding in encodings)
            submission = model.batcher.submit(
                [encoding.ids for encoding in encodings],
                priority=request.priority,
                want_pooled=request.normalize is False,
                deadline_s=request.deadline_s,
            )
            charge.settle(tokens)
            timings.items = submission.timings
            return encodings, tokens, await submission.rows()

        with self._rate_limits.admit(request.caller, estimated_tokens(request, version)) as charge:
            encodings, tokens, rows = await self._with_model(request, version, items, timings, run)
        self._observe(version, timings, items, tokens)
        shaped = shape_rows(
            # One text is the common case, and needs no copy.
            rows[0][None] if len(rows) == 1 else np.stack(rows),
            dimensions=request.dimensions,
            normalize=must_normalize(request, version),
        )
        return EmbedResult(
            version=version,
            rows=encode_rows(shaped, request.encoding),
            dimensions=shaped.shape[1],
            encoding=request.encoding,
            token_counts=[len(encoding.ids) for encoding in encodings],
            tokens=tokens,
            truncated=[index for index, each in enumerate(encodings) if each.truncated],
            timings=timings,
        )

    async def tokenize(self, request: EmbedRequest, *, include_strings: bool) -> TokenizeResult:
        """The token ids that `embed` would give the model for `request.texts`.

        Raises:
            ShoalError: What went wrong, for the caller.
        """
        check_size(request, self._limits)
        version = await self._resolve(request)
        if version.deprecation is not None:
            self._deprecations.used(version, request.caller)
        check_against_model(request, version.manifest)
        timings = RequestTimings()

        async def run(model: LoadedModel) -> TokenizeResult:
            encodings = await self._encode(request, model, timings)
            strings = None
            if include_strings:
                strings = await self._strings(request, model, encodings)
            return TokenizeResult(version, encodings, strings)

        # A request like others, but one that takes no tokens from anybody.
        with self._rate_limits.admit(request.caller, 0):
            return await self._with_model(request, version, len(request.texts), timings, run)

    async def _resolve(self, request: EmbedRequest) -> ModelVersion:
        name, key = request.model, request.routing_key
        registry = self._registry
        version = registry.meanings.known(name, key) or await registry.resolve(name, key)
        self._history.asked(name or registry.default_model)
        return version

    async def _with_model(
        self,
        request: EmbedRequest,
        version: ModelVersion,
        items: int,
        timings: RequestTimings,
        work: Callable[[LoadedModel], Awaitable[T]],
    ) -> T:
        """Permit, deadline and lease around `work`, given back whichever way it ends."""
        permit = self._admission.admit(version.key.name, items, request.size_bytes)
        try:
            if request.deadline_s is None:
                return await self._with_lease(request, version, timings, work)
            async with asyncio.timeout_at(request.deadline_s) as deadline:
                return await self._with_lease(request, version, timings, work)
        except TimeoutError:
            if request.deadline_s is None or not deadline.expired():
                raise
            raise DeadlineExceeded(_TOO_LATE) from None
        finally:
            self._admission.release(permit)

    async def _with_lease(
        self,
        request: EmbedRequest,
        version: ModelVersion,
        timings: RequestTimings,
        work: Callable[[LoadedModel], Awaitable[T]],
    ) -> T:
        lease = self._pool.lease_resident(version.key) or await self._load(version, timings)
        try:
            if request.keep_alive_s is not None:
                lease.keep_alive(request.keep_alive_s)
            return await work(lease.session)
        finally:
            lease.release()

    async def _load(self, version: ModelVersion, timings: RequestTimings) -> Lease[LoadedModel]:
        began_s = time.monotonic()
        remembered = self._pool.failure(version.key)
        try:
            lease = await self._pool.acquire(
                version.key,
                self._placement.device_for(version),
                pinned=version.serving.pinned,
            )
        except ModelLoadFailed:
            if self._pool.failure(version.key) is not remembered:
                # The files may be mended or gone: look again before the next try.
                self._registry.forget_version(version.key)
            raise
        timings.load_s = time.monotonic() - began_s
        return lease

    async def _encode(
        self, request: EmbedRequest, model: LoadedModel, timings: RequestTimings
    ) -> list[Encoding]:
        if request.tokens:
            return [Encoding(ids) for ids in request.tokens]
        began_s = time.monotonic()
        prompt = prompt_of(request.prompt_name, model.version.manifest)
        if self._is_small(request, prompt):
            encodings = model.tokenizer.encode(
                request.texts, prompt=prompt, truncate=request.truncate
            )
        else:
            encodings = await asyncio.get_running_loop().run_in_executor(
                self._tokenize_executor, _encode_in_thread, model.tokenizer, request, prompt
            )
        timings.tokenize_s = time.monotonic() - began_s
        return encodings

    async def _strings(
        self, request: EmbedRequest, model: LoadedModel, encodings: Sequence[Encoding]
    ) -> list[list[str]]:
        def read() -> list[list[str]]:
            return [model.tokenizer.strings(each.ids) for each in encodings]

        if self._is_small(request, ""):
            return read()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._tokenize_executor, read)

    def _is_small(self, request: EmbedRequest, prompt: str) -> bool:
        """Whether a thread would cost more than the work."""
        size_bytes = request.size_bytes + len(prompt) * len(request.texts)
        return size_bytes <= self._limits.inline_tokenize_bytes

    def _observe(
        self, version: ModelVersion, timings: RequestTimings, items: int, tokens: int
    ) -> None:
        name, metrics = version.key.name, self._metrics
        metrics.items.labels(name).inc(items)
        metrics.tokens.labels(name).inc(tokens)
        metrics.tokenize_seconds.labels(name).observe(timings.tokenize_s)
        if timings.items is not None:
            metrics.queue_seconds.labels(name).observe(timings.items.queue_s)


def _reason(error: BaseException, request: EmbedRequest, began_s: float) -> str:
    """What a failure is counted as."""
    if isinstance(error, ShoalError):
        return error.reason
    if not isinstance(error, asyncio.CancelledError):
        return "INTERNAL"
    is_late = has_passed(request.deadline_s, began_s=began_s, now_s=time.monotonic())
    return DeadlineExceeded.reason if is_late else "CANCELLED"


def _encode_in_thread(
    tokenizer: TextTokenizer, request: EmbedRequest, prompt: str
) -> list[Encoding]:
    return tokenizer.encode(request.texts, prompt=prompt, truncate=request.truncate)
