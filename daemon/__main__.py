"""`python -m daemon` is `accrete`."""

from daemon.cli import main

main()
