"""How many draws of a stochastic loss bound the error of their mean."""

import math


def draws_needed(eps: float, delta: float, deviation: float = 1.0) -> int:
    """Return how many draws make the mean err by at most `eps` with a probability of at least 1 − `delta`.

    N = ⌈σ² / (ε² δ)⌉, the Θ(1 / (ε² δ)) of Kong and Chaudhuri (2021, "Understanding Instance-based Interpretability of
    Variational Auto-Encoders") with its constant: the mean of N independent draws of standard deviation σ has the
    variance σ²/N, and by Chebyshev's inequality P(|error| ≥ ε) ≤ σ² / (N ε²). No distribution is assumed, so that
    fewer do where draws are nearly normal.

    It holds for what is a mean over draws: a loss (the negative ELBO), its gradient in one direction, and the
    influence function, a difference of two losses of the same draws (σ is then that of the difference). VAE-TracIn's
    inner products are of two means; `UnsupervisedJob.influence` measures their error.

    Parameters
    ----------
    eps
        Error that is allowed, in the unit of `deviation`: nats for a negative ELBO. With the default deviation of 1 it
        is a share of σ.
    delta
        Probability of a larger error, above 0 and below 1.
    deviation
        σ of a single draw: the standard errors that `UnsupervisedJob.losses` gives, times the root of its `draws`.

    Raises
    ------
    ValueError
        If eps is not above 0, delta not between 0 and 1, or the deviation below 0 or not finite.

    >>> draws_needed(0.5, 0.05, deviation=1.0)
    80
    """
    if not (math.isfinite(eps) and eps > 0):
        raise ValueError(f"eps must be a number above 0, got {eps!r}.")
    if not 0 < delta < 1:
        raise ValueError(f"delta must be between 0 and 1, got {delta!r}.")
    if not (math.isfinite(deviation) and deviation >= 0):
        raise ValueError(f"deviation must be a finite number of 0 or more, got {deviation!r}.")
    exact = deviation**2 / (eps**2 * delta)
    return max(1, math.ceil(exact * (1 - 1e-12)))  # rounding does not make a whole number one more
