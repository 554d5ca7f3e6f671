"""``python -m gradindex``."""

from gradindex.cli import main

main()
