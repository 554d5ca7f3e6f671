"""Short texts with a topic for the examples.

One-line descriptions of Debian packages, the label is the archive section: ``debian_sections.tsv.gz`` in the folder
named by the environment variable ``GRADINDEX_DATA``; without it, sentences made of random words of three topics.
"""

import csv
import gzip
import os
from pathlib import Path

import numpy as np

WORDS = {
    "games": "puzzle arcade chess player level board score cards",
    "sound": "audio mixer music midi player synthesizer codec track",
    "net": "server client protocol network mail proxy packet web",
}


FILE = "debian_sections.tsv.gz"


def print_texts(texts: list[str], names: list[str]) -> None:
    """Print what texts a script works on, how many, and what they take the place of."""
    real = (Path(os.environ.get("GRADINDEX_DATA", "")) / FILE).is_file()
    what = "one-line descriptions of Debian packages" if real else "sentences of four random words"
    instead = "" if real else f", in the place of descriptions of Debian packages: GRADINDEX_DATA has no {FILE}"
    print(f"data: {len(texts)} {what}, {len(names)} sections{instead}")


def read(limit: int, seed: int) -> tuple[list[str], np.ndarray, list[str]]:
    """Return texts, labels (n,) and the names of the sections."""
    rng = np.random.default_rng(seed)
    path = Path(os.environ.get("GRADINDEX_DATA", "")) / FILE
    if path.is_file():
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
        pairs = [(row["description"], row["section"]) for row in rows]
    else:
        pairs = [
            (" ".join(rng.choice(words.split(), 4)), section) for section, words in WORDS.items() for _ in range(200)
        ]
    chosen = [pairs[i] for i in rng.permutation(len(pairs))[:limit]]
    names = sorted({section for _, section in chosen})
    return [text for text, _ in chosen], np.array([names.index(section) for _, section in chosen]), names
