"""`make soak`: 64 callers for minutes, while everything is changed that can be changed.

    python -m loadtests.soak                      5 minutes
    python -m loadtests.soak --seconds 20         as CI runs it
    python -m loadtests.soak --operators 0        nobody changes anything
    python -m loadtests.soak --seed 7             the operations of another draw

Starts a server of its own on loopback with six versions of three models, real graphs whose
vectors tell them apart, and room for four. While the callers ask, over unary calls and
streams, operators switch, roll back, pin, load, unload (also by force), reload, update, verify,
profile, deregister, deprecate, refuse, delete, tag and tune at random. Exits with 1 when

- a request or an operation fails in a way that docs/operations.md does not document for it,
  or documents only for something that did not go on just then;
- an answer's vectors are not those of the version that it names (cosine 0.99999, computed
  by ONNX Runtime alone), or its name did not mean that version;
- more is in memory than the budget allows;
- the server still holds anything when all have left, or both sides counted otherwise:
  requests, items, tokens, errors, RPCs, loads, unloads, switches; or an event is missing;
- the process has grown, or an idle server is not idle;
- the log has an error, or the server does not end well.

The last line is the result in JSON.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import uvloop

from loadtests.servers import (
    ROOT,
    ServerConfig,
    ServerStartError,
    ServerUnderTest,
    stop_on_sigterm,
)
from loadtests.soak.report import Bounds, Report
from loadtests.soak.run import Plan, Soak
from loadtests.soak.scene import Scene
from loadtests.soak.texts import make_texts
from loadtests.soak.verdict import log_problems
from loadtests.soak.versions import DEFAULT_MODEL, make_repository, read_vectors

MIB = 1024 * 1024
REPORTS = ROOT / "loadtests" / "reports"
_ROOM = 4
# Of one version, as the server foresees it.
_BYTES_A_MODEL = 130 * MIB
_MOST_ROUNDS, _LEAST_ROUND_S = 5, 10.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the soak; the exit status."""
    options = _parser().parse_args(arguments)
    stop_on_sigterm()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    REPORTS.mkdir(parents=True, exist_ok=True)
    plan = Plan(
        seconds=options.seconds,
        rounds=max(1, min(_MOST_ROUNDS, int(options.seconds // _LEAST_ROUND_S))),
        callers=options.callers,
        streams=options.callers // 8,
        operators=options.operators,
        seed=options.seed,
        idle_s=options.idle_seconds,
    )
    # Beside the models, so that files can be shared.
    with tempfile.TemporaryDirectory(prefix="soak-", dir=REPORTS) as folder:
        try:
            return _soak(plan, options, Path(folder))
        except ServerStartError as error:
            print(f"soak: {error}", file=sys.stderr)
            return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.soak",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--seconds", type=float, default=300.0, help="of load, in all (default: 300)")
    add("--callers", type=int, default=64, help="at once (default: 64)")
    add("--operators", type=int, default=2, help="who change things, at once (default: 2)")
    add("--seed", type=int, default=0, help="of everything that is drawn (default: 0)")
    add("--model", type=Path, default=ROOT / "models" / "all-minilm-l6-v2" / "1",
        help="folder of the prepared version that the others are made of")  # fmt: skip
    add("--server-root", type=Path, default=ROOT, help="the checkout whose code runs")
    add("--idle-seconds", type=float, default=10.0, help="of idleness measured (default: 10)")
    add("--max-idle-percent", type=float, default=0.5, help="of one core (default: 0.5)")
    add("--max-growth-mib", type=float, default=32.0,
        help="of the process without models, over the rounds (default: 32)")  # fmt: skip
    add("--max-refused", type=float, default=0.02,
        help="share of requests that may find no room (default: 0.02)")  # fmt: skip
    return parser


def _soak(plan: Plan, options: argparse.Namespace, root: Path) -> int:
    texts = make_texts()
    make_repository(options.model, root, texts)
    scene = Scene(texts, read_vectors(root, texts), popular=[])
    config = ServerConfig(
        "soak",
        {
            "default_model": DEFAULT_MODEL,
            "preload": "none",
            "max_resident_models": str(_ROOM),
            "memory_budget_bytes": str(_ROOM * _BYTES_A_MODEL),
            # A request that waits for room waits for others to have been served.
            "eviction_wait_s": "5",
            # Every request is slow when so many share two cores: no news.
            "slow_request_ms": "60000",
        },
        options.server_root.resolve(),
    )
    print(f"{plan}", flush=True)
    with ServerUnderTest(config, root) as server:
        found = uvloop.run(Soak(plan, scene, server).run())
        alive = server.alive
    log = server.output()
    (REPORTS / "soak.log").write_text(log, encoding="utf-8")
    found.problems += log_problems(log)
    if not alive:
        found.problems.append("the server ended under load; see loadtests/reports/soak.log")
    elif server.exit_status != 0:
        found.problems.append(f"the server ended with {server.exit_status}")
    bounds = Bounds(
        growth_bytes=int(options.max_growth_mib * MIB),
        idle_share=options.max_idle_percent / 100,
        refused_share=options.max_refused,
        budget_bytes=_ROOM * _BYTES_A_MODEL,
        model_bytes=_BYTES_A_MODEL,
    )
    report = Report(plan, scene.ledger, found, bounds)
    print(report.text())
    print(report.json(), flush=True)
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
