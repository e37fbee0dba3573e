"""Shoal beside the best tuned peer, on the same machine, with the same files, in turn."""
