"""Take scripts/check_cuda.py to a GPU machine that has no network, in small pieces.

Here, where there is a network (makes DIR/part-000, part-001, …, and DIR/parts.sha256):

    python scripts/carry_to_gpu.py pack DIR

It downloads the server's dependencies for the other machine's Python (`--python 3.12`),
onnxruntime-gpu among them, builds this repository's own packages, adds the model with its
variants (make the fp16 one first: `shoal models quantize NAME --precision fp16`), and cuts
all of it into parts of 56 MiB (`--part-mib`).

There, with all parts in one folder and this repository beside it (standard library and pip
are enough):

    python3 scripts/carry_to_gpu.py unpack DIR /tmp/shoal
    /tmp/shoal/venv/bin/python scripts/check_cuda.py --models /tmp/shoal/models --json FILE

`unpack` makes an environment of its own, so that another ONNX Runtime on that machine does
no harm, and links the CUDA and cuDNN that are installed as pip packages there (CUDA 13,
cuDNN 9) into it. NVIDIA's driver must be there.

Where a call to that machine takes only so many bytes, bring one part a call and copy it to
a place that outlasts the call; nothing but the last call needs more than `cp`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

ROOT = Path(__file__).resolve().parents[1]
_OURS = ("protos", "client", "server")
# Of check_cuda.py and the load generator, beside what the server needs.
_OTHERS = ("psutil",)
_SUMS = "parts.sha256"
_PART = "part-"
_MIB = 1 << 20
# pip takes each as a name, not as a least version.
_PLATFORMS = tuple(
    f"{name}_x86_64"
    for name in (
        *(f"manylinux_2_{minor}" for minor in range(39, 16, -1)),
        *("manylinux2014", "manylinux2010", "manylinux1"),
    )
)


def main() -> int:
    """Pack or unpack; the exit status."""
    options = _parse()
    try:
        if options.command == "pack":
            _pack(options)
        else:
            _unpack(options.parts, options.target)
    except (OSError, ValueError, subprocess.CalledProcessError) as error:
        print(f"carry_to_gpu: {error}", file=sys.stderr)
        return 1
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    pack = commands.add_parser("pack", help="where there is a network")
    pack.add_argument("parts", type=Path, help="folder for the parts")
    pack.add_argument("--models", type=Path, default=ROOT / "models")
    pack.add_argument("--model", default="all-minilm-l6-v2")
    pack.add_argument("--python", default="3.12", help="of the other machine (3.12)")
    pack.add_argument("--part-mib", type=float, default=56, help="size of a part (56)")
    pack.add_argument(
        "--only", action="append", help="a requirement to take in place of all the server's"
    )
    unpack = commands.add_parser("unpack", help="on the GPU machine")
    unpack.add_argument("parts", type=Path, help="folder of the parts")
    unpack.add_argument("target", type=Path, help="folder to make")
    return parser.parse_args()


# -- here ---------------------------------------------------------------------------


def _pack(options: argparse.Namespace) -> None:
    options.parts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        wheels = Path(scratch)
        _download(options.only or _requirements(), options.python, wheels)
        if not options.only:
            _build(wheels)
        with (
            _Parts(options.parts, int(options.part_mib * _MIB)) as parts,
            tarfile.open(fileobj=parts, mode="w|") as archive,
        ):
            archive.add(wheels, "wheels")
            archive.add(options.models / options.model, f"models/{options.model}")
    print(f"carry_to_gpu: {parts.count} parts in {options.parts}")


def _requirements() -> list[str]:
    """What protos, server and its GPU extra need, our own packages left out."""
    found = list(_OTHERS)
    for name in _OURS:
        project = tomllib.loads((ROOT / name / "pyproject.toml").read_text())["project"]
        extras = project.get("optional-dependencies", {})
        found += [*project["dependencies"], *extras.get("gpu", []), *extras.get("cli", [])]
    return sorted({each for each in found if not each.startswith("shoal-")})


def _download(requirements: Sequence[str], python: str, wheels: Path) -> None:
    platforms = [f"--platform={platform}" for platform in _PLATFORMS]
    _pip(
        *("download", "--only-binary=:all:", "--implementation=cp", f"--python-version={python}"),
        *(f"--constraint={ROOT / 'constraints.txt'}", f"--dest={wheels}", *platforms),
        *requirements,
    )


def _build(wheels: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        # A copy of each: building leaves its traces beside the sources.
        copies = [shutil.copytree(ROOT / name, Path(scratch) / name) for name in _OURS]
        _pip("wheel", "--no-deps", f"--wheel-dir={wheels}", *map(str, copies))


def _pip(*arguments: str) -> None:
    quiet = ("--quiet", "--disable-pip-version-check")
    subprocess.run([sys.executable, "-m", "pip", *arguments, *quiet], check=True)


class _Parts(io.RawIOBase):
    """A stream that goes into files of one size, with their sums beside them."""

    def __init__(self, folder: Path, size_bytes: int) -> None:
        self.count = 0
        self._folder = folder
        self._size_bytes = size_bytes
        self._left = 0
        self._file: BinaryIO | None = None
        for stale in folder.glob(f"{_PART}*"):
            stale.unlink()

    def writable(self) -> bool:
        """It is."""
        return True

    def write(self, data: bytes, /) -> int:  # type: ignore[override]
        """Write all of it, over as many parts as that takes."""
        rest = memoryview(data)
        while rest:
            if not self._left:
                self._next()
            assert self._file is not None  # noqa: S101
            now = rest[: self._left]
            self._file.write(now)
            self._left -= len(now)
            rest = rest[len(now) :]
        return len(data)

    def _next(self) -> None:
        if self._file is not None:
            self._file.close()
        self._file = (self._folder / f"{_PART}{self.count:03}").open("wb")
        self._left = self._size_bytes
        self.count += 1

    def close(self) -> None:
        """End the last part and write the sums."""
        if not self.closed and self._file is not None:
            self._file.close()
            sums = [f"{_sha256(part)}  {part.name}\n" for part in _parts(self._folder)]
            (self._folder / _SUMS).write_text("".join(sums), encoding="ascii")
        super().close()


# -- there --------------------------------------------------------------------------


def _unpack(folder: Path, target: Path) -> None:
    _verify(folder)
    target.mkdir(parents=True, exist_ok=True)
    with _Joined(folder) as parts, tarfile.open(fileobj=parts, mode="r|") as archive:
        archive.extractall(target, filter="data")
    environment = target / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    python = environment / "bin" / "python"
    wheels = sorted(map(str, (target / "wheels").glob("*.whl")))
    # By this Python's pip: none has to be on board.
    _pip(f"--python={python}", "install", "--no-index", "--no-deps", *wheels)
    linked = _link_cuda(environment)
    print(f"carry_to_gpu: {len(wheels)} packages in {environment}; CUDA from {linked or 'nowhere'}")


def _verify(folder: Path) -> None:
    for line in (folder / _SUMS).read_text(encoding="ascii").splitlines():
        expected, name = line.split()
        part = folder / name
        if not part.is_file():
            raise ValueError(f"{name} is missing in {folder}")
        if _sha256(part) != expected:
            raise ValueError(f"{name} is not the part that was packed")


def _link_cuda(environment: Path) -> Path | None:
    """Make CUDA's pip packages of this Python those of the environment too."""
    found = importlib.util.find_spec("nvidia")
    locations = list(found.submodule_search_locations or ()) if found else []
    if not locations:
        return None
    (site,) = environment.glob("lib/python*/site-packages")
    link = site / "nvidia"
    if not link.exists():
        link.symlink_to(locations[0], target_is_directory=True)
    return Path(locations[0])


class _Joined(io.RawIOBase):
    """The parts as one stream."""

    def __init__(self, folder: Path) -> None:
        self._rest: Iterator[Path] = iter(_parts(folder))
        self._file: BinaryIO | None = None

    def readable(self) -> bool:
        """It is."""
        return True

    def read(self, size: int = -1, /) -> bytes:
        """At most `size` bytes; none at the end."""
        while True:
            data = self._file.read(size) if self._file is not None else b""
            if data:
                return data
            part = next(self._rest, None)
            if part is None:
                return b""
            self._close_part()
            self._file = part.open("rb")

    def close(self) -> None:
        """Close the part that is open."""
        self._close_part()
        super().close()

    def _close_part(self) -> None:
        if self._file is not None:
            self._file.close()


def _parts(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"{_PART}*"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
