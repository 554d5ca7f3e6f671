"""Loops compiled by numba and LLVM; they know arrays only."""
