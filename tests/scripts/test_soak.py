"""scripts/soak.py, for a few seconds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_short_soak_is_within_its_bounds() -> None:
    """No errors and no runaway memory; its figures are for long runs on quiet machines."""
    command = [sys.executable, "scripts/soak.py", "--seconds=5", "--callers=64"]
    bounds = ["--idle-seconds=0.5", "--max-growth-mib=256", "--max-idle-percent=100"]

    done = subprocess.run(
        [*command, *bounds], cwd=ROOT, capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "errors     0" in done.stdout
