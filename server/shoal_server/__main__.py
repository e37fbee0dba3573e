"""`python -m shoal_server` is `shoal`."""

from shoal_server.cli.main import main

main()
