"""Embed every line of a file into an .npy array, however large, in little memory.

python bulk_to_npy.py LINES.txt VECTORS.npy [HOST:PORT]
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from numpy.lib.format import open_memmap

from shoal_client import Client


def main(source: Path, target: Path, address: str) -> None:
    """Write row i for line i; the array is on disk, never whole in memory."""
    with source.open(encoding="utf-8") as lines:
        count = sum(1 for _ in lines)
    with Client(address) as client, source.open(encoding="utf-8") as lines:
        dimensions = client.get_model().dimensions
        vectors = open_memmap(target, mode="w+", dtype="<f4", shape=(count, dimensions))
        row = 0
        texts = (line.removesuffix("\n") for line in lines)
        for chunk in client.embed_chunks(texts, priority="low"):
            vectors[row : row + len(chunk)] = chunk
            row += len(chunk)
        vectors.flush()
    print(f"{target}: float32[{count}, {dimensions}]")


if __name__ == "__main__":
    default = os.environ.get("SHOAL_ADDRESS", "127.0.0.1:50051")
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path, metavar="LINES.txt")
    parser.add_argument("target", type=Path, metavar="VECTORS.npy")
    parser.add_argument("address", nargs="?", default=default, metavar="HOST:PORT")
    given = parser.parse_args()
    main(given.source, given.target, given.address)
