"""Which sessions are in memory: pool, eviction, memory probes."""
