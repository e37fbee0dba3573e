"""`make loadtest`: a server of its own, or a given one, under Locust's users.

    python -m loadtests.loadtest [--address HOST:PORT] [--ui] [Locust's own options]

Runs in an environment of its own (loadtests/requirements.txt): Locust brings a pytest
plugin and patches the standard library, which no test run should see.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from loadtests.servers import ROOT, ServerConfig, ServerUnderTest, stop_on_sigterm

REPORTS = ROOT / "loadtests" / "reports"
# With room for two, three models that are asked for in turn must make way.
_MORE_MODELS = ("evicted-one", "evicted-two")
_RESIDENT = 2
# Waiting for loads and finishing what is in flight, beyond the run time.
_GRACE_S = 120
_STOP_S = 30


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the load test; Locust's exit status, or 1 when the server did not hold."""
    options, locust_options = _parser().parse_known_args(arguments)
    stop_on_sigterm()
    REPORTS.mkdir(parents=True, exist_ok=True)
    if options.address:
        return _locust(options, options.address, locust_options)
    with _repository(options.models, options.model) as models:
        settings = {
            "max_resident_models": str(_RESIDENT),
            "packed_cache_dir": str(options.models / ".packed"),
        }
        config = ServerConfig("loadtest", settings)
        with ServerUnderTest(config, models, python=options.server_python) as server:
            status = _locust(options, server.address, locust_options)
            alive = server.alive
        log = server.output()
    (REPORTS / "server.log").write_text(log, encoding="utf-8")
    if not alive:
        print("loadtest: the server ended under load; see loadtests/reports/server.log")
    unexpected = log.count("unexpected_error")
    if unexpected:
        print(f"loadtest: {unexpected} unexpected errors in loadtests/reports/server.log")
    return status or int(not alive or unexpected > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.loadtest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--address", help="of a server that runs already; without, one is started")
    add("--ui", action="store_true", help="Locust's web page instead of a headless run")
    add("--ui-port", type=int, default=8089, help="of that page, on loopback")
    add("--users", type=int, default=20, help="callers at once")
    add("--spawn-rate", type=float, default=5.0, help="callers that start a second")
    add("--seconds", type=int, default=60, help="how long; headless")
    add("--models", type=Path, default=ROOT / "models", help="repository that is copied")
    add("--model", default="all-minilm-l6-v2", help="the model in it")
    add("--server-python", type=Path, default=ROOT / ".venv" / "bin" / "python",
        help="runs the server")  # fmt: skip
    return parser


def _locust(options: argparse.Namespace, address: str, more: Sequence[str]) -> int:
    report = REPORTS / f"loadtest-{time.strftime('%Y-%m-%dT%H%M%S')}.html"
    command = [
        *(sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests" / "locustfile.py")),
        *("--host", address, "--users", str(options.users)),
        *("--spawn-rate", str(options.spawn_rate)),
    ]
    if options.ui:
        command += ["--web-host", "127.0.0.1", "--web-port", str(options.ui_port)]
        print(f"loadtest: http://127.0.0.1:{options.ui_port}/ until Ctrl-C")
    else:
        command += ["--headless", "--only-summary", "--run-time", f"{options.seconds}s"]
        command += ["--html", str(report), "--stop-timeout", "30"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "protos")))}
    limit_s = None if options.ui else options.seconds + _GRACE_S
    status = _wait(subprocess.Popen([*command, *more], env=environment), limit_s)
    if not options.ui:
        print(f"loadtest: report in {report}")
    return status


def _wait(process: subprocess.Popen[bytes], limit_s: float | None) -> int:
    """The exit status; Ctrl-C reaches Locust too, which then still tells its verdict."""
    try:
        return process.wait(limit_s)
    except KeyboardInterrupt:
        return process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        print("loadtest: Locust did not end in time")
        return 1
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def _repository(models: Path, name: str) -> Iterator[Path]:
    """A repository with the model under several names; the folder's name is the model's."""
    with tempfile.TemporaryDirectory(prefix="models-", dir=REPORTS) as folder:
        for each in (name, *_MORE_MODELS):
            _link(models / name, Path(folder) / each)
        yield Path(folder)


def _link(source: Path, target: Path) -> None:
    """Copy a folder's files as hard links: hundreds of megabytes need no second copy."""
    for path in source.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place)


if __name__ == "__main__":
    sys.exit(main())
