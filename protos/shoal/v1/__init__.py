"""Protocol of Shoal, version 1: messages and stubs of both services."""
