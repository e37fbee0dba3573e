"""Runs `shoal models pull` several times in one process, and prints what came of it.

huggingface_hub reads HF_ENDPOINT and the like when it is imported, so they can not be
set for a test within pytest's own process; and a process for each pull takes seconds.
"""

from __future__ import annotations

import json
import os
import sys

from typer.testing import CliRunner

from shoal_server.cli.main import make_app


def main() -> None:
    """Read jobs from standard input, write their outcomes to standard output."""
    outcomes = {}
    for name, job in json.load(sys.stdin).items():
        os.environ.update(job["variables"])
        done = CliRunner().invoke(make_app(), ["models", "pull", *job["arguments"]])
        for variable in job["variables"]:
            del os.environ[variable]
        outcomes[name] = {"status": done.exit_code, "output": done.output}
    json.dump(outcomes, sys.stdout)


if __name__ == "__main__":
    main()
