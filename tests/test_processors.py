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
modules = {modules!r}
names = {{name for name in modules for one in vars(importlib.import_module("gradindex." + name)).values()
          if hasattr(one, "signatures") and one.signatures}}
assert names == set(modules), set(modules) - names
raise SystemExit(int(code))
"""
TESTS = ["tests/sketch/test_spectra.py", "tests/gradients/test_products.py", "tests/gradients/test_layer_loops.py"]
MODULES = [
    *("compiled.outer_products", "sketch.lanes", "sketch.tensor_sketch", "sketch.scatter"),
    *(f"compiled.{name}" for name in ("filters", "ghost_norms", "lstm_steps", "patches", "squares")),
]


def test_loops_without_avx(tmp_path):
    """All loops against their slow twins."""
    environment = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CACHE_DIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOOPS.format(tests=TESTS, modules=MODULES)],
        cwd=Path(__file__).parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]


def test_no_module_of_loops_is_left_out():
    package = Path(__file__).parents[1] / "gradindex"
    found = {path for path in package.rglob("*.py") if "\n@compiled(" in path.read_text()}
    assert found == {package / f"{name.replace('.', '/')}.py" for name in MODULES}
