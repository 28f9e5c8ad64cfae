"""The log marginal likelihood of a Gaussian process with its gradient in closed form, and safe factorisations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sthyper.surrogates.kernels import KernelForm

__all__ = ["NegativeLogLikelihood", "safe_cholesky"]

_JITTERS = tuple(10.0**power for power in range(-9, 4))


def safe_cholesky(K: Tensor) -> Tensor:
    """Return the lower Cholesky factor, adding as little to the diagonal as makes it exist.

    First nothing is added, then 1e-9, 1e-8, ... up to 1e3 times the larger of 1 and the mean of the diagonal.

    Args:
        K: Symmetric matrices, shape ``batch x n x n``.

    Raises:
        ValueError: If there is none even so; ``K`` then has NaN or infinite entries.
    """
    L, info = torch.linalg.cholesky_ex(K)
    if not bool(info.any()) and bool(L.diagonal(dim1=-2, dim2=-1).isfinite().all()):
        return L
    unit = max(1.0, float(K.diagonal(dim1=-2, dim2=-1).mean()))
    eye = torch.eye(K.shape[-1], dtype=K.dtype, device=K.device)
    for jitter in _JITTERS:
        L, info = torch.linalg.cholesky_ex(K + jitter * unit * eye)
        if not bool(info.any()) and bool(L.diagonal(dim1=-2, dim2=-1).isfinite().all()):
            return L
    raise ValueError("the covariance matrix has no Cholesky factor; it has NaN or infinite entries")


class NegativeLogLikelihood(torch.autograd.Function):
    """Negative log marginal likelihood of n values, one factorisation a call.

    Everything that the gradient needs is computed in ``forward``, from the inverse of the covariance matrix; autograd
    through a Cholesky factorisation costs about twice as much from some hundred points on.
    """

    @staticmethod
    def forward(
        ctx: Any, log_outputscale: Tensor, log_noise: Tensor, residual: Tensor, form: KernelForm, *Z: Tensor
    ) -> Tensor:
        """Return the value, a 0-d tensor.

        Args:
            log_outputscale: 0-d.
            log_noise: 0-d.
            residual: Targets minus mean, shape (n,).
            form: The kernel.
            Z: Scaled inputs of each factor, shapes (n, d_i).
        """
        n = len(residual)
        outputscale, noise = log_outputscale.exp(), log_noise.exp()
        correlation, slopes = form.slopes(list(Z))
        K = outputscale * correlation
        K.diagonal().add_(noise)
        L = safe_cholesky(K)
        alpha = torch.cholesky_solve(residual.unsqueeze(-1), L).squeeze(-1)
        value = 0.5 * residual.dot(alpha) + L.diagonal().log().sum() + 0.5 * n * math.log(2.0 * math.pi)
        if any(ctx.needs_input_grad):
            # G = K^-1 - alpha alpha^T is twice the derivative by K; transposed, as LAPACK's matrices are in memory.
            G = torch.cholesky_inverse(L).mT.addr_(alpha, alpha, alpha=-1.0)
            d_noise = 0.5 * noise * G.diagonal().sum()
            d_scale = 0.5 * outputscale * G.reshape(-1).dot(correlation.reshape(-1))
            d_inputs = []
            for part, slope in zip(Z, slopes, strict=True):
                W = slope.mul_(G)
                d_inputs.append(2.0 * outputscale * (W.sum(1, keepdim=True) * part - W @ part))
            ctx.gradients = (d_scale, d_noise, alpha, d_inputs)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Return the gradients."""
        d_scale, d_noise, alpha, d_inputs = ctx.gradients
        return grad * d_scale, grad * d_noise, grad * alpha, None, *(grad * d for d in d_inputs)
