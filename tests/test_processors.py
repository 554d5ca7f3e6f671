"""The compiled loops on a processor without AVX: numba's generic target, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

LOOPS = """
import importlib
import numba
import pytest

code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly", *{tests!r}])
assert numba.config.CPU_NAME == "generic"
modules = "gradients.products", "sketch.lanes", "sketch.spectra", "sketch.scatter"
names = {{name for name in modules for one in vars(importlib.import_module("gradindex." + name)).values()
          if hasattr(one, "signatures") and one.signatures}}
assert names == set(modules), names
raise SystemExit(int(code))
"""
TESTS = ["tests/sketch/test_spectra.py", "tests/gradients/test_products.py"]


def test_loops_without_avx(tmp_path):
    """The loops against their slow twins; those of layers, which emit no vector instructions, are not among them."""
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOOPS.format(tests=TESTS)],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
