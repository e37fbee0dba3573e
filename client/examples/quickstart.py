"""Embed a few sentences and compare them.

python quickstart.py [HOST:PORT]
"""

from __future__ import annotations

import argparse
import os

import numpy as np

from shoal_client import Client

SENTENCES = [
    "A school of fish turns as one.",
    "Thousands of sardines move together.",
    "The invoice is due on Friday.",
]


def main(address: str) -> None:
    """Print how similar each pair of sentences is, and what it cost."""
    with Client(address) as client:
        result = client.embed(SENTENCES)

    vectors = np.asarray(result)  # float32[3, D]
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    for sentence, similarities in zip(SENTENCES, vectors @ vectors.T, strict=True):
        print(" ".join(f"{value:6.3f}" for value in similarities), f" {sentence}")
    milliseconds = result.timings.total_us / 1000
    print(f"{result.model}@{result.version}: {sum(result.token_counts)} tokens, {milliseconds} ms")


if __name__ == "__main__":
    default = os.environ.get("SHOAL_ADDRESS", "127.0.0.1:50051")
    parser = argparse.ArgumentParser()
    parser.add_argument("address", nargs="?", default=default, metavar="HOST:PORT")
    main(parser.parse_args().address)
