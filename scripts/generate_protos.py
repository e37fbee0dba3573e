"""Generate the Python stubs beside the .proto files, or into another folder.

Run by `make protos`; a test runs it into a temporary folder and compares, so
that committed stubs can not go stale.
"""

from __future__ import annotations

import sys
import sysconfig
from pathlib import Path

import google.rpc
import grpc_tools
from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parents[1] / "protos"
SCRIPTS = Path(sysconfig.get_path("scripts"))
PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")


def generate(out: Path) -> list[Path]:
    """Write stubs and type stubs for every .proto below `protos/` into `out`.

    Returns:
        The files written, sorted.

    Raises:
        RuntimeError: protoc refused a file; its message is on standard error.
    """
    sources = sorted(str(path.relative_to(PROTOS)) for path in PROTOS.rglob("*.proto"))
    well_known = Path(grpc_tools.__file__).parent / "_proto"
    # google/rpc/status.proto comes with googleapis-common-protos
    googleapis = Path(google.rpc.__path__[0]).parents[1]
    status = protoc.main(
        [
            "protoc",
            # Beside this interpreter, whether or not its environment is activated.
            *(f"--plugin={SCRIPTS / plugin}" for plugin in PLUGINS),
            f"--proto_path={PROTOS}",
            f"--proto_path={well_known}",
            f"--proto_path={googleapis}",
            f"--python_out={out}",
            f"--mypy_out=quiet:{out}",
            f"--grpc_python_out={out}",
            f"--mypy_grpc_out=quiet:{out}",
            *sources,
        ]
    )
    if status != 0:
        raise RuntimeError(f"protoc ended with status {status}")
    return sorted(path for path in out.rglob("*_pb2*.py*") if path.suffix in {".py", ".pyi"})


if __name__ == "__main__":
    for path in generate(PROTOS):
        sys.stdout.write(f"{path.relative_to(PROTOS.parent)}\n")
