"""Without the SDK: the generated stubs alone, as other languages have them.

python raw_stubs.py [HOST:PORT]
"""

from __future__ import annotations

import argparse
import os

import grpc
import numpy as np

from shoal.v1.embed_pb2 import EmbedRequest, EmbedStreamRequest
from shoal.v1.embed_pb2_grpc import EmbedServiceStub


def main(address: str) -> None:
    """Embed by a call, then over a stream."""
    with grpc.insecure_channel(address) as channel:
        stub = EmbedServiceStub(channel)

        response = stub.Embed(EmbedRequest(texts=["a text", "another"]), timeout=10)
        # Rows are little-endian float32 without gaps.
        vectors = np.frombuffer(response.vectors, "<f4").reshape(-1, response.dimensions)
        print(f"{response.model}: float32{list(vectors.shape)}")

        requests = (
            EmbedStreamRequest(id=str(number), request=EmbedRequest(texts=[f"text {number}"]))
            for number in range(3)
        )
        for answer in stub.EmbedStream(requests, timeout=10):
            # Answers may come out of order, and each may be an error of its own.
            outcome = answer.WhichOneof("result")
            print(f"{answer.id}: {outcome}")


if __name__ == "__main__":
    default = os.environ.get("SHOAL_ADDRESS", "127.0.0.1:50051")
    parser = argparse.ArgumentParser()
    parser.add_argument("address", nargs="?", default=default, metavar="HOST:PORT")
    main(parser.parse_args().address)
