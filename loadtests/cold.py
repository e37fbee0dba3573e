"""First answers of a model that is not in memory, and what a load consists of.

    python -m loadtests.cold
    python -m loadtests.cold --repeat 20 --server new: --server old:root=/path/of/another/checkout

Three situations, each with the files in the page cache:

    first ever    in a new process, nothing packed, no file checked before
    new process   a packed form is there, and its files were checked by another process
    loaded before the process has had the model in memory and unloaded it

The packed forms lie in a folder of their own, so that the repository's stay as they are.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from loadtests.cpu import CpuClock, others_share
from loadtests.measure import measure_cold_ms
from loadtests.servers import ROOT, ServerConfig, ServerUnderTest, stop_on_sigterm
from shoal_server.batching.warm_up import warm_up
from shoal_server.inference.onnx_model import OnnxModel
from shoal_server.inference.packed import PackedCache, packed_key
from shoal_server.inference.packing import save_packed
from shoal_server.inference.tokenizer import TextTokenizer
from shoal_server.registry.repository import ModelRepository
from shoal_server.residency.probes import return_free_memory

_TEXT = "A model that is not in memory is loaded by the first request for it."
# Each process: its first load, and so many later ones.
_LATER_LOADS = 2
# What was written less than two seconds ago is read again (registry/verification.py).
_SETTLES_S = 2.1


@dataclass(slots=True)
class Situations:
    """First answers of one server, milliseconds."""

    first_ever: list[float] = field(default_factory=list)
    new_process: list[float] = field(default_factory=list)
    loaded_before: list[float] = field(default_factory=list)
    others: list[float] = field(default_factory=list)
    """Share of the machine's CPU time that other processes took meanwhile."""


def main() -> None:
    """Measure, and print tables."""
    options = _parser().parse_args()
    stop_on_sigterm()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # as `shoal serve` has it
    console = Console() if os.isatty(1) else Console(width=120)
    configs = options.servers or [ServerConfig("shoal")]
    folder: Path = options.models / options.model / options.version
    _read_all(folder)
    found = {config.name: Situations() for config in configs}
    with tempfile.TemporaryDirectory(prefix="shoal-cold-", dir=options.scratch) as scratch:
        caches = {config.name: Path(scratch) / config.name for config in configs}
        for config in configs:
            _cold_ms(config, options, caches[config.name], loads=1)
        time.sleep(_SETTLES_S)
        for config in configs:  # what was packed is settled now, and noted as whole
            _cold_ms(config, options, caches[config.name], loads=1)
        for _ in range(options.repeat):
            for config in configs:
                into = found[config.name]
                with tempfile.TemporaryDirectory(dir=scratch) as empty:
                    times_ms, others = _cold_ms(config, options, Path(empty), loads=1)
                into.first_ever += times_ms
                into.others.append(others)
                times_ms, others = _cold_ms(
                    config, options, caches[config.name], loads=1 + _LATER_LOADS
                )
                into.new_process.append(times_ms[0])
                into.loaded_before += times_ms[1:]
                into.others.append(others)
        console.print(_situations_table(found))
        console.print(_steps_table(_measure_steps(options, Path(scratch) / "steps")))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.cold",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--repeat", type=int, default=10, help="processes of each kind")
    add("--server", action="append", type=_server, dest="servers",
        help="NAME:KEY=VALUE,… as for loadtests.bench")  # fmt: skip
    add("--models", type=Path, default=ROOT / "models", help="the model repository")
    add("--model", default="all-minilm-l6-v2")
    add("--version", default="1")
    add("--scratch", type=Path, help="where the packed forms go (the system's temporary folder)")
    return parser


def _server(text: str) -> ServerConfig:
    name, _, rest = text.partition(":")
    settings = dict(part.split("=", 1) for part in rest.split(",") if part)
    root = Path(settings.pop("root", ROOT)).resolve()
    return ServerConfig(name, settings, root)


def _read_all(folder: Path) -> None:
    """Into the page cache."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()


def _cold_ms(
    config: ServerConfig, options: argparse.Namespace, cache: Path, *, loads: int
) -> tuple[list[float], float]:
    """First answers of one process, and the others' share of the CPU meanwhile."""
    settings = {
        **config.settings,
        "preload": "none",
        "default_model": f"{options.model}@{options.version}",
        "packed_cache_dir": str(cache),
    }
    config = ServerConfig(config.name, settings, config.root)
    with ServerUnderTest(config, options.models.resolve()) as server:
        clock = CpuClock([server.pid, os.getpid()])
        before = clock.read()
        times_ms = measure_cold_ms(server, _TEXT, loads)
        return times_ms, others_share(before, clock.read())


def _measure_steps(options: argparse.Namespace, cache_root: Path) -> dict[str, list[float]]:
    """Each step of a load by itself, in a thread as in the server; milliseconds."""
    repository = ModelRepository(options.models)
    manifest = repository.version_manifest(options.model, options.version)
    folder = repository.version_folder(options.model, options.version)
    cache = PackedCache(cache_root, 1 << 40, trust_signatures=False)
    key = packed_key(manifest.files)

    def save(target: Path) -> None:
        save_packed(
            folder / "model.onnx",
            target,
            vocabulary_size=manifest.vocabulary_size,
            max_tokens=manifest.max_tokens,
        )

    packed = cache.make(key, {}, save)
    assert packed is not None

    def opened(path: Path) -> Callable[[], OnnxModel]:
        return lambda: OnnxModel.open(path, threads=1, pad_id=0, packed=path == packed)

    model = opened(packed)()
    steps: dict[str, Callable[[], object]] = {
        "SHA-256 of all files": lambda: repository.verify_files(
            options.model, options.version, manifest.files
        ),
        "checksum of the packed form": lambda: cache.find(key),
        "tokenizer": lambda: TextTokenizer.open(folder / "tokenizer.json", manifest.max_tokens),
        "session of the graph": opened(folder / "model.onnx"),
        "session of the packed form": opened(packed),
        "warm-up": lambda: warm_up(model, 0, manifest.max_tokens),
    }
    times_ms: dict[str, list[float]] = {name: [] for name in steps}
    with ThreadPoolExecutor(1) as thread:
        for _ in range(options.repeat + 1):
            for name, step in steps.items():
                times_ms[name].append(thread.submit(_timed_ms, step).result())
                return_free_memory()
    return {name: each[1:] for name, each in times_ms.items()}


def _timed_ms(step: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    result = step()
    took_ms = (time.perf_counter() - began_s) * 1000
    del result
    return took_ms


def _situations_table(found: dict[str, Situations]) -> Table:
    table = Table("server", "situation", "loads", "median ms", "least", "most", "others")
    for name, each in found.items():
        for situation, times_ms in (
            ("first ever", each.first_ever),
            ("new process", each.new_process),
            ("loaded before", each.loaded_before),
        ):
            table.add_row(name, situation, *_spread(times_ms), f"{max(each.others):.0%}")
    return table


def _steps_table(times_ms: dict[str, list[float]]) -> Table:
    table = Table("step, this checkout", "runs", "median ms", "least", "most")
    for name, each in times_ms.items():
        table.add_row(name, *_spread(each))
    return table


def _spread(times_ms: Sequence[float]) -> tuple[str, str, str, str]:
    middle = statistics.median(times_ms)
    return f"{len(times_ms)}", f"{middle:.0f}", f"{min(times_ms):.0f}", f"{max(times_ms):.0f}"


if __name__ == "__main__":
    main()
