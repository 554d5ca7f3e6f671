import subprocess
import sys

import pytest

HEAVY = (
    "torch",
    "tensorflow",
    "keras",
    "faiss",
    "numba",
    "scipy",
    "pyarrow",
    "matplotlib",
    "sklearn",
    "rich",
    "typer",
    "ray",
)


BLOCK = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {name!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Block())
"""


def run(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_importing_gradindex_loads_next_to_nothing():
    done = run(f"import sys, gradindex; print([m for m in {HEAVY!r} if m in sys.modules])")
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


@pytest.mark.parametrize("framework", ["torch", "tensorflow"])
def test_everything_public_loads_without_a_framework(framework):
    code = f"""{BLOCK.format(name=framework)}
import gradindex
for name in gradindex.__all__:
    getattr(gradindex, name)
print("ok")
"""
    done = run(code)
    assert done.stdout.strip() == "ok", done.stderr


@pytest.mark.parametrize(("framework", "title"), [("torch", "PyTorch"), ("tensorflow", "TensorFlow")])
def test_a_missing_framework_says_what_to_type(framework, title):
    backend = {"torch": "pytorch"}.get(framework, framework)
    code = f"""{BLOCK.format(name=framework)}
import gradindex
try:
    gradindex.GradientSimilarity(object(), print, backend={backend!r})
except ImportError as error:
    print(error)
"""
    done = run(code)
    assert done.stdout.strip() == f"{title} is not installed. Type: pip install 'gradindex[{framework}]'", done.stderr


def test_unknown_names_are_attribute_errors():
    import gradindex

    with pytest.raises(AttributeError, match="module 'gradindex' has no attribute 'nothing'"):
        gradindex.nothing  # noqa: B018
    assert set(gradindex.__all__) <= set(dir(gradindex))
