"""How alike two descriptions of the same n samples are, without fitting anything.

    cos(x, y) = ⟨x, y⟩ / (‖x‖ ‖y‖)                                                                        Eq. 4
    CKA(X, Y) = HSIC(K, L) / √( HSIC(K, K) HSIC(L, L) ),      K = X Xᵀ, L = Y Yᵀ      Kornblith et al., arXiv 1905.00414
    CKNNA     = the same with K and L kept only at pairs (i, j) where j is among the k nearest of i by K and by L alike
                                                                                  Huh et al., arXiv 2405.07987

HSIC is the unbiased estimate of Song et al. (JMLR 2012): with the usual (biased) one, n samples of width D ≫ n look
alike whatever they are. It needs n ≥ 4 and may come out below 0, by chance.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import normalize

from fog_a.errors import ShapeMismatch

FEWEST = 4
"""Samples that the unbiased HSIC needs."""


def cosine(x: Float[Tensor, "*#n D"], y: Float[Tensor, "*#n D"]) -> Float[Tensor, "*n"]:
    """Eq. 4 in float32, in [−1, 1]; 0 where a vector is 0.

    >>> cosine(torch.tensor([[3.0, 4.0]]), torch.tensor([[-6.0, -8.0]])).tolist()
    [-1.0]
    """
    return (normalize(x.float(), dim=-1) * normalize(y.float(), dim=-1)).sum(-1)


def shuffled_cosine(x: Float[Tensor, "n D"], y: Float[Tensor, "n D"]) -> Float[Tensor, "n"]:
    """For each x_i, its mean cosine to the *other* samples' y_j: what is left when the teacher speaks of somebody else.

    The exact mean over all shuffles without a fixed point; NaN for a single sample.
    """
    n = len(x)
    if n < 2:
        return x.new_full((n,), math.nan)
    x, y = normalize(x.float(), dim=-1), normalize(y.float(), dim=-1)
    return (x @ y.sum(0) - (x * y).sum(-1)) / (n - 1)


def linear_cka(x: Float[Tensor, "n D"], y: Float[Tensor, "_ E"]) -> float:
    """Linear CKA with the unbiased HSIC: 1 for equal up to rotation and scale, about 0 for independent; NaN if n < 4.

    >>> x = torch.randn(50, 8)
    >>> round(linear_cka(x, 3 * x.flip(1)), 4)
    1.0
    """
    _same_count(x, y)
    return _normalized_hsic(_gram(x), _gram(y))


def cknna(x: Float[Tensor, "n D"], y: Float[Tensor, "_ E"], k: int = 10) -> float:
    """CKNNA: CKA of neighborhoods: the k nearest (at most n − 1) by inner product of normalized rows. NaN if n < 4."""
    _same_count(x, y)
    n = len(x)
    if n < FEWEST:
        return math.nan
    x, y = normalize(x.double(), dim=-1), normalize(y.double(), dim=-1)
    k_gram, l_gram = x @ x.T, y @ y.T
    near_k, near_l = _nearest(k_gram, min(k, n - 1)), _nearest(l_gram, min(k, n - 1))
    both = near_k & near_l
    cross = unbiased_hsic(k_gram * both, l_gram * both)
    scale = unbiased_hsic(k_gram * near_k, k_gram * near_k) * unbiased_hsic(l_gram * near_l, l_gram * near_l)
    return cross / math.sqrt(scale) if scale > 0 else math.nan


def unbiased_hsic(k: Float[Tensor, "n n"], l: Float[Tensor, "n n"]) -> float:  # noqa: E741
    """HSIC of two Gram matrices, unbiased: [tr(K̃L̃) + 1ᵀK̃1 1ᵀL̃1/((n−1)(n−2)) − 2·1ᵀK̃L̃1/(n−2)] / (n(n−3)), K̃_ii = 0."""
    n = len(k)
    if n < FEWEST:
        return math.nan
    k, l = k - torch.diag(k.diagonal()), l - torch.diag(l.diagonal())  # noqa: E741
    value = (k * l.T).sum() + k.sum() * l.sum() / ((n - 1) * (n - 2)) - 2 * (k.sum(0) @ l.sum(1)) / (n - 2)
    return float(value / (n * (n - 3)))


def _normalized_hsic(k: Tensor, l: Tensor) -> float:  # noqa: E741
    scale = unbiased_hsic(k, k) * unbiased_hsic(l, l)
    return unbiased_hsic(k, l) / math.sqrt(scale) if scale > 0 else math.nan


def _gram(x: Tensor) -> Float[Tensor, "n n"]:
    x = x.double() - x.double().mean(0)  # the unbiased HSIC centers by itself; this spares digits where means are large
    return x @ x.T


def _nearest(gram: Float[Tensor, "n n"], k: int) -> Bool[Tensor, "n n"]:
    gram = gram.clone().fill_diagonal_(-math.inf)
    return torch.zeros_like(gram, dtype=torch.bool).scatter_(1, gram.topk(k, dim=1).indices, True)


def _same_count(x: Tensor, y: Tensor) -> None:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y):
        raise ShapeMismatch(
            f"expected (n, D) and (n, E) of the same samples, got {tuple(x.shape)} and {tuple(y.shape)}"
        )
