"""A small service that answers with the most similar of some documents.

Many callers at once are the point: each awaits its own embedding, and the server
runs those that are in flight together as one batch. One line in, one line out:

python async_service.py [HOST:PORT]
echo 'swimming animals' | nc 127.0.0.1 PORT
"""

from __future__ import annotations

import argparse
import asyncio
import os

import numpy as np

from shoal_client import AsyncClient, ShoalError

DOCUMENTS = [
    "Fish breathe through gills.",
    "Interest rates rose again.",
    "The violin has four strings.",
]


class SearchService:
    """Answers each line that it is sent with the document closest to it."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._documents = np.empty((0, 0), np.float32)

    async def start(self) -> asyncio.Server:
        """Embed the documents, then listen on a free port of this machine."""
        self._documents = (await self._client.embed(DOCUMENTS)).vectors
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def search(self, query: str) -> str:
        """The document whose vector has the largest dot product with the query's."""
        try:
            embeddings = await self._client.embed([query], timeout_s=5, priority="high")
        except ShoalError as error:
            return f"error: {error}"
        return DOCUMENTS[int(np.argmax(self._documents @ embeddings[0]))]

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async for line in reader:
            answer = await self.search(line.decode(errors="replace").strip())
            writer.write(answer.encode() + b"\n")
            await writer.drain()
        writer.close()


async def main(address: str) -> None:
    """Serve until interrupted."""
    async with AsyncClient(address) as client:
        server = await SearchService(client).start()
        print("listening on {}:{}".format(*server.sockets[0].getsockname()), flush=True)
        async with server:
            await server.serve_forever()


if __name__ == "__main__":
    default = os.environ.get("SHOAL_ADDRESS", "127.0.0.1:50051")
    parser = argparse.ArgumentParser()
    parser.add_argument("address", nargs="?", default=default, metavar="HOST:PORT")
    asyncio.run(main(parser.parse_args().address))
