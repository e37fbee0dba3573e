"""Why a server can not start."""


class StartError(Exception):
    """The server can not start; the message says why and what to do."""
