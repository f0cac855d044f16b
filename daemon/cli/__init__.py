"""The command line: `accrete` for people, `accreted` for service managers."""

from daemon.cli.main import accreted, main

__all__ = ["accreted", "main"]
