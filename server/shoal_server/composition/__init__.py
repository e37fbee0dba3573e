"""The parts of a server, wired; `app.py` starts and stops them."""
