"""The command line: the same words as the Python interface."""

import sys


def main() -> None:
    """Run the ``gradindex`` command. Exit codes: 0 done, 1 failed, 2 bad usage."""
    from gradindex.cli.app import run

    sys.exit(run(sys.argv[1:]))
