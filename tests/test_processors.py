"""The compiled loops on a processor without AVX: numba's generic target, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import llvmlite.binding
import pytest
from llvmlite import ir

from gradindex.compiled import emit

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


def test_a_processor_that_llvm_does_not_know_has_short_vectors(monkeypatch):
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", lambda: {"avx512f": True})
    assert emit.lanes() == 16
    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", lambda: {"neon": True})
    assert emit.lanes() == 8

    def unknown():
        raise RuntimeError("failed to get host cpu features.")

    monkeypatch.setattr(llvmlite.binding, "get_host_cpu_features", unknown)
    assert emit.lanes() == 8


@pytest.mark.parametrize("lanes", [8, 16])
def test_emitted_instructions_become_those_of_arm(lanes, monkeypatch):
    """No processor of that kind is at hand: that they compile, all of them."""
    monkeypatch.setattr(emit, "LANES", lanes)
    monkeypatch.setattr(emit, "_VECTOR", ir.VectorType(ir.FloatType(), lanes))
    number = ir.IntType(64)
    module = ir.Module()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [number] * 3), "square")
    source, into, count = function.args
    here = emit.Emit(ir.IRBuilder(function.append_basic_block()))
    mask, step = here.first(count), number(4 * lanes)

    def turn(values):
        (place,) = values
        rows = [here.load(here.at(place, i * lanes), mask) for i in range(lanes)]
        for i, row in enumerate(here.transposed(rows)):
            at = here.at(here.pointer(into), i * lanes)
            here.store(here.multiply_add(row, row, here.load(at)), at, mask)
            here.store(row, at)
        return [here.at(place, step)]

    here.loop(count, [here.pointer(source)], turn)
    here.builder.ret_void()
    llvmlite.binding.initialize_all_targets()
    llvmlite.binding.initialize_all_asmprinters()
    target = llvmlite.binding.Target.from_triple("aarch64-unknown-linux-gnu").create_target_machine()
    parsed = llvmlite.binding.parse_assembly(str(module))
    parsed.verify()
    assert "fmla" in target.emit_assembly(parsed)
