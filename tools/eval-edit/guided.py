"""Carries a small edit to a photo's full resolution: at every pixel the affine map of colours that turns the small photo
into the small edit around it (a guided filter with a colour guide), enlarged and applied to the full photo.

Source: K. He, J. Sun, X. Tang, Guided Image Filtering, section 3.5. A second implementation, to hold the worker's to.
"""

import torch
import torch.nn.functional as F

RADIUS = 12
EPSILON = 1e-3


def mean(planes: torch.Tensor) -> torch.Tensor:
    """Over the square around each pixel; (N, H, W), the border repeated."""
    padded = F.pad(planes[None], (RADIUS,) * 4, mode="replicate")
    return F.avg_pool2d(padded, 2 * RADIUS + 1, 1)[0]


def fit(source: torch.Tensor, edit: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Of (3, H, W) each: the maps (9, H, W), from the source's channel to the edit's, and the offsets (3, H, W)."""
    _, height, width = source.shape

    def covariance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        products = (a[:, None] * b[None]).reshape(9, height, width)
        means = (mean(a)[:, None] * mean(b)[None]).reshape(9, height, width)
        return (mean(products) - means).reshape(3, 3, height, width).permute(2, 3, 0, 1)

    maps = torch.linalg.solve(covariance(source, source) + EPSILON * torch.eye(3), covariance(source, edit))
    offsets = mean(edit) - torch.einsum("ihw,hwij->jhw", mean(source), maps)
    return mean(maps.permute(2, 3, 0, 1).reshape(9, height, width)), mean(offsets)


def transfer(small: torch.Tensor, edit: torch.Tensor, photo: torch.Tensor) -> torch.Tensor:
    maps, offsets = fit(small, edit)
    size = photo.shape[1:]
    maps = F.interpolate(maps[None], size, mode="bilinear")[0].reshape(3, 3, *size)
    offsets = F.interpolate(offsets[None], size, mode="bilinear")[0]
    return (torch.einsum("ihw,ijhw->jhw", photo, maps) + offsets).clamp(0, 1)
