"""The demo: a real daemon learns real classes while it answers requests."""

from daemon.demo.run import run_demo
from daemon.demo.settings import DemoSettings

__all__ = ["DemoSettings", "run_demo"]
