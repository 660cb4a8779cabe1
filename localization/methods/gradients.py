"""Class activation maps computed from a layer's activations and gradients alone, which come from a single pass.

Each function takes activations A and gradients g = ∂score/∂A, both (n, channels, h, w) float32, and returns maps
(n, h, w) float32 ≥ 0, not rescaled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

_COLUMNS, _STEPS, _CONVERGED = 6, 40, 1e-6


def grad_cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Grad-CAM (Selvaraju 2017, eq. 1 and 2): ReLU(Σ_k α_k A_k), α_k the spatial mean of the gradient of channel k."""
    return _weighted(gradients.mean((2, 3)), activations)


def grad_cam_plus_plus(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Grad-CAM++ (Chattopadhay 2018, eq. 19): channel weights Σ_ij α_ij ReLU(g_ij), α = g² / (2 g² + g³ Σ_ij A_ij).

    The paper explains the exponential of the class score; the factor that this adds is common to all channels and is
    left out. α is 0 where g or the denominator is 0.
    """
    squares = gradients.square()
    denominator = 2 * squares + squares * gradients * activations.sum((2, 3), keepdim=True)
    alpha = torch.where(denominator != 0, squares / denominator, 0.0)
    return _weighted((alpha * F.relu(gradients)).sum((2, 3)), activations)


def hires_cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """HiResCAM (Draelos and Carin 2020): ReLU(Σ_k g_k ⊙ A_k), exact for a network that ends in a linear layer."""
    return F.relu((gradients * activations).sum(1))


def x_grad_cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """XGrad-CAM (Fu 2020, eq. 10): channel weights Σ_ij g_ij A_ij / Σ_ij A_ij; 0 where the denominator is 0."""
    sums = activations.sum((2, 3))
    return _weighted(torch.where(sums != 0, (gradients * activations).sum((2, 3)) / sums, 0.0), activations)


def layer_cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """LayerCAM (Jiang 2021, eq. 5 and 6): ReLU(Σ_k ReLU(g_k) ⊙ A_k)."""
    return F.relu((F.relu(gradients) * activations).sum(1))


def eigen_cam(activations: torch.Tensor, _gradients: torch.Tensor) -> torch.Tensor:
    """Eigen-CAM (Muhammad and Yeasin 2020): the cells' first principal component, rectified. It is class-agnostic.

    The cells are centred first, as in a principal component analysis (and in the grad-cam package); the paper
    decomposes the activations without centring them.

    The sign of a principal component is arbitrary. It is chosen to correlate with the mean activation, so that the map
    is high where the layer is more active than elsewhere.
    """
    return _first_component(activations)


def eigen_grad_cam(activations: torch.Tensor, gradients: torch.Tensor) -> torch.Tensor:
    """Eigen-Grad-CAM: the first principal component of g ⊙ A, rectified, with the sign chosen as in `eigen_cam`."""
    return _first_component(gradients * activations)


def mean_of_layers(layers: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the mean of several layers' maps (n, h, w) on the finest grid, each map divided by its peak.

    The maps of a single layer are returned unchanged. A map without positive evidence counts as zeros.
    """
    if len(layers) == 1:
        return layers[0]
    grid = max((maps.shape[1:] for maps in layers), key=lambda shape: shape[0] * shape[1])
    total = torch.zeros((len(layers[0]), *grid), device=layers[0].device)
    for maps in layers:
        peaks = maps.amax((1, 2), keepdim=True)
        scaled = torch.where(peaks > 0, maps / peaks.clamp_min(torch.finfo(maps.dtype).tiny), maps)
        total += F.interpolate(scaled[:, None], grid, mode="bilinear", align_corners=False)[:, 0]
    return total / len(layers)


def _weighted(weights: torch.Tensor, activations: torch.Tensor) -> torch.Tensor:
    """ReLU(Σ_k weights_k A_k) for weights (n, channels)."""
    return F.relu(torch.einsum("nk,nkhw->nhw", weights, activations))


def _first_component(values: torch.Tensor) -> torch.Tensor:
    """Return each cell's projection on the first principal axis of its image's cells: (n, h, w), rectified.

    The map of an image with a value that is not finite is NaN.
    """
    finite = values.isfinite().flatten(1).all(1)[:, None, None]
    values = values.where(finite[..., None], 0)
    n, channels, height, width = values.shape
    cells = values.flatten(2).double()
    cells = cells - cells.mean(2, keepdim=True)
    total = cells.sum(1)
    if channels < height * width:
        axis = _top_eigenvector(cells @ cells.mT)
        component = (axis[:, None] @ cells)[:, 0]
    else:
        vector = _top_eigenvector(cells.mT @ cells)
        component = vector * (cells @ vector[:, :, None]).norm(dim=1)
    sign = torch.where((component * total).sum(1, keepdim=True) < 0, -1.0, 1.0)
    return F.relu(sign * component).view(n, height, width).float().where(finite, torch.nan)


def _top_eigenvector(matrices: torch.Tensor) -> torch.Tensor:
    """Return the eigenvector (n, m) of the largest eigenvalue of symmetric positive semi-definite (n, m, m) matrices.

    It is found by subspace iteration, because a full decomposition costs many forward passes of the network. Matrices
    for which that does not converge (the largest eigenvalues are close together) are decomposed in full.
    """
    n, m, _ = matrices.shape
    if m <= 3 * _COLUMNS:
        return torch.linalg.eigh(matrices)[1][:, :, -1]
    scale = matrices.diagonal(dim1=1, dim2=2).sum(1).clamp_min(torch.finfo(matrices.dtype).tiny)
    matrices = matrices / scale[:, None, None]
    generator = torch.Generator().manual_seed(0)
    basis = torch.randn(1, m, _COLUMNS, generator=generator, dtype=matrices.dtype).to(matrices.device).expand(n, -1, -1)
    for step in range(_STEPS):
        image = matrices @ basis
        if step % 4 == 3:
            basis = torch.linalg.qr(image)[0]
            projected = matrices @ basis
            values, small = torch.linalg.eigh(basis.mT @ projected)
            vector, top = (basis @ small[:, :, -1:])[:, :, 0], values[:, -1]
            error = ((projected @ small[:, :, -1:])[:, :, 0] - top[:, None] * vector).norm(dim=1)
            gap = (top - values[:, -2]).clamp_min(torch.finfo(matrices.dtype).tiny)
            left = error > _CONVERGED * gap
            if not left.any():
                return vector
        else:
            basis = image / image.norm(dim=1, keepdim=True).clamp_min(torch.finfo(matrices.dtype).tiny)
    vector[left] = torch.linalg.eigh(matrices[left])[1][:, :, -1]
    return vector
