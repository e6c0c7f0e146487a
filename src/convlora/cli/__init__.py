"""Command line: parse, build a configuration, call. Importing it loads no torch."""

from convlora.cli.app import main

__all__ = ["main"]
