"""Shoal: a gRPC inference server for embedding models with dynamic batching."""
