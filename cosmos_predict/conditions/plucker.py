"""Camera geometry: poses, Pluecker ray maps, their folding into tokens. Pure functions on tensors.

Conventions: OpenCV camera axes (x right, y down, z forward); a pose is a 3x4 matrix [R | t] that maps a point p of its
source frame to R p + t; `world2cam` maps world to camera, `cam2world` is its inverse. Pixel (row i, column j) has its
centre at (j + 0.5, i + 0.5). A Pluecker ray is six numbers: the moment o x d, then the unit direction d, with o the
camera centre.

Everything is computed in at least float32: in bfloat16, pixel centres above 256 would lose their half.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from cosmos_predict.errors import DataError
from cosmos_predict.networks.norms import wide

STATIC = 1e-6  # translations that differ by less are those of a camera that stands still


def _rotation_translation(pose: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    if pose.shape[-1] != 4 or pose.shape[-2] not in (3, 4):
        raise DataError(f"a camera pose must be (..., 3, 4) or (..., 4, 4), got {tuple(pose.shape)}")
    pose = wide(pose)
    return pose[..., :3, :3], pose[..., :3, 3]


def pose_matrix(rotation: torch.Tensor, translation: torch.Tensor) -> torch.Tensor:
    """Return poses (..., 3, 4) = [R | t] from rotations (..., 3, 3) and translations (..., 3)."""
    return torch.cat([wide(rotation), wide(translation)[..., None]], dim=-1)


def to_homogeneous(pose: torch.Tensor) -> torch.Tensor:
    """Return poses (..., 4, 4) from (..., 3, 4) by appending the row (0, 0, 0, 1)."""
    rotation, translation = _rotation_translation(pose)
    last = pose.new_tensor([0.0, 0.0, 0.0, 1.0], dtype=rotation.dtype).expand(*pose.shape[:-2], 1, 4)
    return torch.cat([pose_matrix(rotation, translation), last], dim=-2)


def invert_pose(pose: torch.Tensor) -> torch.Tensor:
    """Return the inverse poses (..., 3, 4), [R^T | -R^T t], of poses (..., 3|4, 4)."""
    rotation, translation = _rotation_translation(pose)
    inverse = rotation.transpose(-1, -2)
    return pose_matrix(inverse, -(inverse @ translation[..., None])[..., 0])


def compose_poses(outer: torch.Tensor, inner: torch.Tensor) -> torch.Tensor:
    """Return outer o inner (apply `inner` first) as (..., 3, 4); leading axes broadcast."""
    rotation, translation = _rotation_translation(outer)
    inner_rotation, inner_translation = _rotation_translation(inner)
    return pose_matrix(rotation @ inner_rotation, (rotation @ inner_translation[..., None])[..., 0] + translation)


def relative_to_first(world2cam: torch.Tensor) -> torch.Tensor:
    """Express world-to-camera poses (N, 3|4, 4) in the first camera: pose_k o pose_0^-1 (N, 3, 4)."""
    return compose_poses(world2cam, invert_pose(world2cam[:1]))


def normalize_translations(translation: torch.Tensor) -> torch.Tensor:
    """Divide translations (N, 3) by their largest pairwise distance; those of a static camera (`STATIC`) stay as they are."""
    translation = wide(translation)
    # The direct differences: the default of cdist loses digits when poses are far from the origin.
    largest = torch.cdist(translation, translation, compute_mode="donot_use_mm_for_euclid_dist").max()
    return translation / largest if largest > STATIC else translation


def pixel_intrinsics(intrinsics: torch.Tensor, width: float, height: float) -> torch.Tensor:
    """Scale intrinsics given as fractions of an image, (..., 3, 3) or (..., 4), to one of `width` x `height` cells.

    With `width`, `height` = resized image size / latent compression this is the camera-control recipe's grid, on which
    cell (i, j) lies at ((j + 0.5) / width, (i + 0.5) / height) of the image, on past 1 in the padding.
    """
    intrinsics = wide(intrinsics)
    if intrinsics.shape[-2:] == (3, 3):
        scale = intrinsics.new_tensor([width, height, 1.0])[:, None]
    else:
        scale = intrinsics.new_tensor([width, height, width, height])
    return intrinsics * scale


def plucker_rays(cam2world: torch.Tensor, intrinsics: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return the Pluecker ray maps (N, H, W, 6) of `height` x `width` pixels: [moment o x d, unit direction d].

    Args:
        cam2world: (N, 3|4, 4) camera-to-world poses.
        intrinsics: in pixels of that grid: (N, 4) or (4,) rows fx, fy, cx, cy, or (N, 3, 3) or (3, 3) matrices.
        height, width: size of the map; it may reach beyond the image, as it does over padding.

    Raises:
        DataError: shapes that do not fit, or a focal length of zero.
    """
    rotation, center = _rotation_translation(cam2world)
    intrinsics = wide(intrinsics).to(rotation)
    if intrinsics.shape[-2:] == (3, 3):
        fx, fy = intrinsics[..., 0, 0], intrinsics[..., 1, 1]
        cx, cy, skew = intrinsics[..., 0, 2], intrinsics[..., 1, 2], intrinsics[..., 0, 1]
    elif intrinsics.shape[-1] == 4:
        fx, fy, cx, cy = intrinsics.unbind(-1)
        skew = torch.zeros_like(fx)
    else:
        raise DataError(f"intrinsics must be rows fx, fy, cx, cy or 3 x 3 matrices, got {tuple(intrinsics.shape)}")
    count = rotation.shape[0]
    if fx.ndim and fx.shape[0] not in (1, count):
        raise DataError(f"{fx.shape[0]} intrinsics for {count} poses: give one per pose, or one for all")
    if not bool((fx != 0).all() and (fy != 0).all()):
        raise DataError("a focal length is 0: intrinsics are fx, fy, cx, cy in pixels, in this order")
    fx, fy, cx, cy, skew = (value.reshape(-1, 1, 1) for value in (fx, fy, cx, cy, skew))
    centres = (torch.arange(n, dtype=rotation.dtype, device=rotation.device) + 0.5 for n in (height, width))
    v, u = torch.meshgrid(*centres, indexing="ij")
    y = (v - cy) / fy
    x = (u - cx - skew * y) / fx
    direction = F.normalize(torch.stack([x, y, torch.ones_like(x)], dim=-1), dim=-1)
    direction = torch.einsum("nij,nhwj->nhwi", rotation, direction.expand(count, -1, -1, -1))
    moment = torch.linalg.cross(center[:, None, None, :].expand_as(direction), direction, dim=-1)
    return torch.cat([moment, direction], dim=-1)


def latent_plucker_map(
    world2cam: torch.Tensor,
    intrinsics: torch.Tensor,
    image_size: Sequence[float],
    compression: int | tuple[int, int] = 8,
) -> torch.Tensor:
    """Return the camera condition at latent resolution, (N, 6, h, w) with [moment, direction] as channels.

    Args:
        world2cam: (N, 3|4, 4), usually normalized (`normalize_translations`) and relative (`relative_to_first`).
        intrinsics: (N, 3, 3), (3, 3), (N, 4) or (4,), as FRACTIONS of the resized image (fx / width, fy / height, ...).
        image_size: H padded, W padded, H resized, W resized in pixels (the batch's `image_size`).
        compression: pixels per latent cell, one number or (vertical, horizontal); h = H padded / compression.

    Raises:
        DataError: a padded size that `compression` does not divide, or intrinsics that are pixels.
    """
    padded_h, padded_w, resized_h, resized_w = (float(value) for value in image_size)
    rows, columns = (compression, compression) if isinstance(compression, int) else compression
    if padded_h % rows or padded_w % columns:
        raise DataError(f"padded size {padded_h:g}x{padded_w:g} (H x W) is not a multiple of {rows}x{columns}")
    if float(intrinsics.abs().max()) > 50:
        advice = "give fractions of the image: divide fx and cx by its width, fy and cy by its height"
        raise DataError(f"intrinsics up to {float(intrinsics.abs().max()):g} look like pixels; {advice}")
    grid = pixel_intrinsics(intrinsics, resized_w / columns, resized_h / rows)
    rays = plucker_rays(invert_pose(world2cam), grid, int(padded_h) // rows, int(padded_w) // columns)
    return rays.permute(0, 3, 1, 2)


def mask_to_grid(padding_mask: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Resize a padding mask (B, 1, H, W), 1 = padded, to `height` x `width` cells, nearest neighbour."""
    return F.interpolate(padding_mask.float(), size=(height, width), mode="nearest")


def mask_rays(plucker: torch.Tensor, grid_mask: torch.Tensor) -> torch.Tensor:
    """Zero the rays (N, 6, h, w) on padded cells of `grid_mask` (1 or N, 1, h, w), 1 = padded."""
    return plucker * (1 - grid_mask.to(plucker))


def fold_rays(rays: torch.Tensor, patch: int = 16) -> torch.Tensor:
    """Fold pixel ray maps (N, H, W, 6) to tokens (N, H/p, W/p, p*p*6), inner order (row, column, channel).

    The input of the per-block camera encoder; p = spatial compression x patch size = 16.
    """
    height, width = rays.shape[1:3]
    if height % patch or width % patch:
        raise DataError(f"a {height}x{width} ray map does not fold into patches of {patch}: both must be multiples")
    return rays.unflatten(2, (-1, patch)).unflatten(1, (-1, patch)).transpose(2, 3).flatten(3)
