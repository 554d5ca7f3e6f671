"""The figures of an example, with versions and date: what it wrote into `figures.json`.

    python benchmarks/example_figures.py 06_mislabelled_data.py --data digits --out FILE

Options other than `--out` go to the example.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import record

EXAMPLES = Path(__file__).parents[1] / "examples"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("script", choices=sorted(path.name for path in EXAMPLES.glob("[0-9]*.py")))
    record.add_out(parser)
    options, given = parser.parse_known_args()
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, EXAMPLES / options.script, *given, "--out", folder], check=True)
        figures = json.loads((Path(folder) / "figures.json").read_text(encoding="utf-8"))
    print(json.dumps(figures, indent=1))
    if options.out:
        record.write(options.out, figures)


if __name__ == "__main__":
    main()
