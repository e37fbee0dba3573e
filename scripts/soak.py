"""Many callers for a while: no errors, no growth of memory, and no CPU when it is over.

    .venv/bin/python scripts/soak.py                    64 callers, 30 s, then 10 s idle
    .venv/bin/python scripts/soak.py --seconds 3600     an hour of it

Starts a server of its own on loopback. Every answer is compared, bit for bit, with
what the same text gave when it was alone. Growth is the median memory of the last
third of the time less that of the second; the first third is the warm-up. Exits 0
when errors, growth and idle CPU are within their bounds, 1 when not.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

import grpc
import grpc.aio
import psutil

from shoal.v1 import embed_pb2 as pb
from shoal.v1 import embed_pb2_grpc

SHOAL = Path(sys.executable).with_name("shoal")
MIB = 1024 * 1024

SENTENCE = (
    "a shoal of fish swims as one here many requests run as one batch and each caller gets "
    "the vector that its text has alone whoever it was batched with"
)
WORDS = SENTENCE.split()
# Words of the texts: many short ones, few long ones.
LENGTHS = (*range(1, 25), 30, 40, 50, 60, 80, 100, 150, 250)
TEXTS_PER_REQUEST = 6
TIMEOUT_S = 60.0
SAMPLE_EVERY_S = 0.2


@dataclass(slots=True)
class Soak:
    """What was seen."""

    requests: int = 0
    texts: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    rss_bytes: list[int] = field(default_factory=list)
    """Of the server, sampled at even intervals."""
    seconds: float = 0.0
    cpu_s: float = 0.0
    """Of the server."""

    def growth_bytes(self) -> float:
        """Of the server's memory after the warm-up."""
        third = len(self.rss_bytes) // 3
        return median(self.rss_bytes[2 * third :]) - median(self.rss_bytes[third : 2 * third])


def main() -> int:
    """Run the soak; the exit status."""
    options = _parse()
    # Every request is slow when so many share two cores: no news.
    command = [str(SHOAL), "serve", "--grpc-port=0", "--http-port=0", "--log-level=error"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        address = _wait_until_ready(server)
        if address is None:
            print("soak: the server did not start; see above", file=sys.stderr)
            return 1
        process = psutil.Process(server.pid)
        print(f"{options.callers} callers for {options.seconds:g} s", flush=True)
        seen = asyncio.run(_soak(address, process, options.callers, options.seconds))
        idle_percent = _idle_percent(process, options.idle_seconds)
    finally:
        server.terminate()
        status = server.wait()
    return _report(options, seen, idle_percent, status)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="how long (default: 30)")
    parser.add_argument("--callers", type=int, default=64, help="at once (default: 64)")
    parser.add_argument(
        "--idle-seconds", type=float, default=10.0, help="of idleness measured (default: 10)"
    )
    parser.add_argument(
        "--max-growth-mib", type=float, default=16.0, help="bound of growth (default: 16)"
    )
    parser.add_argument(
        "--max-idle-percent", type=float, default=0.5, help="of one core (default: 0.5)"
    )
    return parser.parse_args()


def _wait_until_ready(server: subprocess.Popen[str]) -> str | None:
    """The address on the server's ready line; None when it ended without one."""
    assert server.stdout is not None  # noqa: S101
    for line in server.stdout:
        if line.startswith("shoal: ready "):
            return line.split("grpc=")[1].split()[0]
    return None


async def _soak(address: str, process: psutil.Process, callers: int, seconds: float) -> Soak:
    async with grpc.aio.insecure_channel(address) as channel:
        stub = embed_pb2_grpc.EmbedServiceStub(channel)
        alone = {text: (await _embed(stub, [text]))[0] for text in _texts()}
        seen = Soak()
        began_s, cpu_before_s = time.monotonic(), _cpu_s(process)
        until_s = began_s + seconds
        sampling = asyncio.create_task(_sample(process, seen))
        await asyncio.gather(*(_call(stub, alone, seed, until_s, seen) for seed in range(callers)))
        sampling.cancel()
        seen.seconds = time.monotonic() - began_s
        seen.cpu_s = _cpu_s(process) - cpu_before_s
        return seen


def _texts() -> list[str]:
    choose = random.Random(0)  # noqa: S311
    return [" ".join(choose.choices(WORDS, k=length)) for length in LENGTHS]


async def _call(
    stub: embed_pb2_grpc.EmbedServiceAsyncStub,
    alone: dict[str, bytes],
    seed: int,
    until_s: float,
    seen: Soak,
) -> None:
    """One caller: asks, checks, asks again."""
    choose = random.Random(seed)  # noqa: S311
    texts = [*alone]
    while time.monotonic() < until_s:
        wanted = choose.choices(texts, k=choose.randint(1, TEXTS_PER_REQUEST))
        try:
            found = await _embed(stub, wanted)
        except grpc.aio.AioRpcError as error:
            seen.errors[error.code().name] += 1
            continue
        if found != [alone[text] for text in wanted]:
            seen.errors["wrong vector"] += 1
        seen.requests += 1
        seen.texts += len(wanted)


async def _embed(stub: embed_pb2_grpc.EmbedServiceAsyncStub, texts: list[str]) -> list[bytes]:
    """The bytes of each text's vector."""
    answer = await stub.Embed(pb.EmbedRequest(texts=texts), timeout=TIMEOUT_S)
    width = len(answer.vectors) // len(texts)
    return [answer.vectors[at : at + width] for at in range(0, len(answer.vectors), width)]


async def _sample(process: psutil.Process, seen: Soak) -> None:
    while True:
        seen.rss_bytes.append(process.memory_info().rss)
        await asyncio.sleep(SAMPLE_EVERY_S)


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _idle_percent(process: psutil.Process, seconds: float) -> float:
    """CPU that the server takes while nobody calls it, of one core."""
    if not seconds:
        return 0.0
    before_s = _cpu_s(process)
    time.sleep(seconds)
    return 100 * (_cpu_s(process) - before_s) / seconds


def _report(
    options: argparse.Namespace, seen: Soak, idle_percent: float, server_status: int
) -> int:
    growth_mib = seen.growth_bytes() / MIB
    wrong = {
        "errors": bool(seen.errors),
        "growth": growth_mib > options.max_growth_mib,
        "idle CPU": idle_percent > options.max_idle_percent,
        "exit status of the server": server_status != 0,
    }
    rss = [size / MIB for size in seen.rss_bytes]
    print(
        f"requests   {seen.requests} ({seen.requests / seen.seconds:.0f}/s), "
        f"{seen.texts} texts ({seen.texts / seen.seconds:.0f}/s)\n"
        f"errors     {seen.errors.total()} {dict(seen.errors) or ''}\n"
        f"memory     {rss[0]:.1f} MiB at the start, {rss[-1]:.1f} at the end, "
        f"{max(rss):.1f} at most; growth after warm-up {growth_mib:+.1f} "
        f"(bound {options.max_growth_mib:g})\n"
        f"CPU        {seen.cpu_s / seen.seconds:.2f} cores under load, "
        f"{1e6 * seen.cpu_s / max(1, seen.texts):.0f} µs a text; "
        f"{idle_percent:.2f}% of a core idle (bound {options.max_idle_percent:g})"
    )
    for what in (name for name, is_wrong in wrong.items() if is_wrong):
        print(f"soak: out of bounds: {what}", file=sys.stderr)
    return 1 if any(wrong.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
