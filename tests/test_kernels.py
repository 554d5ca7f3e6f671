"""The kernels against arithmetic by hand."""

import math
import re

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from gradindex import kernels
from gradindex.kernels import Kernel
from gradindex.words import Task, choose_word
from tests import oracles

Q = np.array([[1.0, 2.0, -2.0], [0.0, 0.0, 0.0]])
T = np.array([[3.0, 0.0, 4.0], [0.0, 0.0, 0.0], [-1.0, -2.0, 2.0], [1e-6, 0.0, 0.0]])
NORMS = np.array([3.0, 0.0]), np.array([5.0, 0.0, 3.0, 1e-6])
BY_HAND = {
    "grad_dot": [-5, 0, -9, 1e-6],
    "grad_cos": [-5 / 15, 0, -1, 1 / 3],
    "grad_asym_dot": [-5 / 25, 0, -9 / 9, 1e-6 / 1e-12],
}


@pytest.mark.parametrize("name", oracles.KERNELS)
def test_values_by_hand(name):
    found = kernels.values(Kernel(name), Q @ T.T, *NORMS)
    assert found.dtype == np.float64
    assert_allclose(found, [BY_HAND[name], [0, 0, 0, 0]], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", oracles.KERNELS)
@pytest.mark.parametrize("eps", [0.0, 1e-7, 0.5])
def test_values_equal_the_naive_loop(name, eps):
    random = np.random.default_rng(0)
    q, t = random.standard_normal((4, 7)), random.standard_normal((5, 7)) * 1e-3
    norms = np.linalg.norm(q, axis=1), np.linalg.norm(t, axis=1)
    assert_allclose(kernels.values(Kernel(name), q @ t.T, *norms, eps), oracles.kernel(name, q, t, eps), rtol=1e-12)


def test_eps_is_added_to_the_denominator():
    dots, norms = np.array([[1e-8]]), np.array([1e-4])
    assert kernels.values(Kernel.COS, dots, norms, norms, 1e-7) == pytest.approx(1e-8 / (1e-8 + 1e-7))
    assert kernels.values(Kernel.ASYM_DOT, dots, np.array([7.0]), norms, 1e-7) == pytest.approx(1e-8 / 1.1e-7)
    assert kernels.values(Kernel.DOT, dots, norms, norms, 1e-7) == 1e-8


@pytest.mark.parametrize("name", oracles.KERNELS)
def test_training_norms_may_differ_by_query(name):
    dots = np.array([[1.0, 2.0], [3.0, 4.0]])
    query, train = np.array([2.0, 4.0]), np.array([[1.0, 2.0], [4.0, 8.0]])
    found = kernels.values(Kernel(name), dots, query, train)
    expected = np.vstack([kernels.values(Kernel(name), dots[i : i + 1], query[i : i + 1], train[i]) for i in (0, 1)])
    assert_array_equal(found, expected)


@pytest.mark.parametrize("name", oracles.KERNELS)
@pytest.mark.parametrize("eps", [0.0, 1e-7])
def test_weights_times_the_cosine_are_the_kernel(name, eps):
    random = np.random.default_rng(1)
    q, t = random.standard_normal(6), random.standard_normal((9, 6))
    norms = np.linalg.norm(t, axis=1)
    cosine = t @ q / norms / np.linalg.norm(q)
    found = cosine * kernels.weights(Kernel(name), float(np.linalg.norm(q)), norms, eps)
    assert_allclose(found, oracles.kernel(name, q[None], t, eps)[0], rtol=1e-12)


@pytest.mark.parametrize("name", oracles.KERNELS)
def test_weights_of_a_zero_gradient_are_zero(name):
    assert_array_equal(kernels.weights(Kernel(name), 2.0, np.zeros(2)), [0, 0])


def test_small_numbers_do_not_underflow():
    tiny = np.array([1e-30], np.float32)  # its square is zero in float32
    found = kernels.values(Kernel.ASYM_DOT, np.array([[1e-60]]), tiny.astype(np.float64), tiny)
    assert found[0, 0] == pytest.approx(1.0, rel=1e-6)
    assert math.isfinite(found[0, 0])


def test_parse():
    assert choose_word(Kernel, "grad_cos", "sim_fn") is Kernel.COS
    assert choose_word(Kernel, Kernel.DOT, "sim_fn") is Kernel.DOT
    assert choose_word(Task, "regression", "task") is Task.REGRESSION


@pytest.mark.parametrize("value", ["cos", "", None, 1, "DOT"])
def test_parse_lists_the_options(value):
    words = f"Unknown kernel {value!r}. Expected one of: 'grad_dot' | 'grad_cos' | 'grad_asym_dot'."
    with pytest.raises(ValueError, match=re.escape(words)):
        choose_word(Kernel, value, "kernel")


def test_every_kernel_has_words_of_its_own():
    assert set(kernels.WORDING) == set(kernels.KernelName)
    assert len({words.sentence for words in kernels.WORDING.values()}) == len(kernels.KernelName)
    for name, words in kernels.WORDING.items():
        assert kernels.title(name.value) == words.title
        assert words.estimated == (kernels.white(name.value) is not None)
        assert words.sentence == f"The {words.title} {words.finds}."
    assert kernels.title("cos-last") == "cos-last"
