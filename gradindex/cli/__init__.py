"""The command line: the same words as the Python interface."""

import os
import sys


def main() -> None:
    """Run the ``gradindex`` command. Exit codes: 0 done, 1 failed, 2 bad usage."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "1")  # TensorFlow tells of its build at every start
    from gradindex.cli.app import run

    sys.exit(run(sys.argv[1:]))
