"""Settings that go together, by what a server is for; single settings override them."""

from __future__ import annotations

from collections.abc import Mapping

PRESETS: Mapping[str, Mapping[str, object]] = {
    # Many callers, or few that send much: batches may wait to grow and a lot may wait for
    # them. What a larger batch gains is small on a CPU and large on a GPU.
    "throughput": {
        "max_wait_ms": 20.0,
        "max_batch_items": 64,
        "max_batch_tokens": 16_384,
        "cuda_max_batch_items": 512,
        "cuda_max_batch_tokens": 65_536,
        "max_stream_requests": 128,
        "max_queue_s": 120.0,
    },
    # Somebody waits for each answer: nothing waits for batch mates, runs are short, and
    # what would wait long is told at once.
    "latency": {
        "max_wait_ms": 0.0,
        "max_batch_items": 8,
        "max_batch_tokens": 2048,
        "cuda_max_batch_items": 32,
        "cuda_max_batch_tokens": 8192,
        "max_queue_s": 2.0,
    },
    # A small machine: the memory of a run grows with the tokens of its batch, and stays
    # with the session.
    "low-memory": {
        "max_batch_items": 8,
        "max_batch_tokens": 2048,
        "cuda_max_batch_items": 32,
        "cuda_max_batch_tokens": 8192,
        "cuda_slots": 1,
        "load_threads": 1,
        "tokenize_threads": 1,
        "max_waiting_items": 2000,
        "max_waiting_items_per_model": 2000,
        "max_inflight_bytes": 32 * 1024 * 1024,
        "ram_idle_s": 300.0,
        "gpu_idle_s": 120.0,
    },
}
