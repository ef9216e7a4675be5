"""Camera geometry: exact identities of poses and rays. The published numbers are golden cases."""

from __future__ import annotations

import pytest
import torch

from cosmos_predict.conditions import plucker
from cosmos_predict.errors import DataError


def poses(count: int = 4) -> torch.Tensor:
    """Random rigid poses (N, 3, 4), float64."""
    generator = torch.Generator().manual_seed(0)
    rotation, _ = torch.linalg.qr(torch.randn(count, 3, 3, generator=generator, dtype=torch.float64))
    rotation = rotation * torch.linalg.det(rotation)[:, None, None]
    return plucker.pose_matrix(rotation, torch.randn(count, 3, generator=generator, dtype=torch.float64))


INTRINSICS = torch.tensor([20.0, 22.0, 12.0, 8.0], dtype=torch.float64)


def test_pose_algebra() -> None:
    pose = poses()
    identity = torch.eye(4, dtype=torch.float64)[:3].expand_as(pose)
    torch.testing.assert_close(plucker.compose_poses(pose, plucker.invert_pose(pose)), identity)
    square = plucker.to_homogeneous(pose)
    torch.testing.assert_close(plucker.to_homogeneous(plucker.invert_pose(square)), torch.linalg.inv(square))
    relative = plucker.relative_to_first(pose)
    torch.testing.assert_close(relative[0], identity[0])
    torch.testing.assert_close(plucker.to_homogeneous(relative), square @ torch.linalg.inv(square[:1]))


def test_rays_pass_through_the_points_that_the_camera_sees() -> None:
    cam2world = poses()
    rays = plucker.plucker_rays(cam2world, INTRINSICS, 16, 24)
    moment, direction = rays.split(3, dim=-1)
    torch.testing.assert_close(direction.norm(dim=-1), torch.ones(4, 16, 24, dtype=torch.float64))
    # A point 3 m deep behind the centre of pixel (row 5, column 9) lies on that pixel's ray: p x d = moment.
    fx, fy, cx, cy = INTRINSICS
    point = torch.stack([(9.5 - cx) / fx, (5.5 - cy) / fy, torch.ones((), dtype=torch.float64)]) * 3
    world = cam2world[:, :, :3] @ point + cam2world[:, :, 3]
    torch.testing.assert_close(torch.linalg.cross(world, direction[:, 5, 9]), moment[:, 5, 9])


def test_intrinsics_as_rows_matrices_or_one_for_all() -> None:
    matrix = torch.tensor([[20.0, 0.0, 12.0], [0.0, 22.0, 8.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    rays = plucker.plucker_rays(poses(), INTRINSICS, 16, 24)
    for other in (matrix, matrix.expand(4, 3, 3), INTRINSICS.expand(4, 4)):
        torch.testing.assert_close(plucker.plucker_rays(poses(), other, 16, 24), rays)


def test_latent_map_is_the_pixel_map_at_latent_resolution() -> None:
    """Both published variants are one geometry: fractions of the resized image are pixels of its grid of cells."""
    world2cam = poses()
    fractions = torch.tensor([0.6, 1.05, 0.5, 0.45], dtype=torch.float64)
    latent = plucker.latent_plucker_map(world2cam, fractions, [64, 96, 64, 80], 8)
    assert latent.shape == (4, 6, 8, 12)
    pixels = fractions * torch.tensor([10.0, 8.0, 10.0, 8.0], dtype=torch.float64)
    rays = plucker.plucker_rays(plucker.invert_pose(world2cam), pixels, 8, 12)
    torch.testing.assert_close(latent.permute(0, 2, 3, 1), rays)


def test_folding_keeps_row_column_channel_order() -> None:
    rays = torch.arange(2 * 8 * 12 * 6).reshape(2, 8, 12, 6)
    folded = plucker.fold_rays(rays, 4)
    assert folded.shape == (2, 2, 3, 96)
    for row, column, channel in [(0, 0, 0), (1, 2, 5), (3, 3, 1)]:
        assert folded[1, 1, 2, (row * 4 + column) * 6 + channel] == rays[1, 4 + row, 8 + column, channel]


def test_static_camera_is_not_divided_by_zero() -> None:
    still = torch.ones(5, 3)
    assert torch.equal(plucker.normalize_translations(still), still)
    shaking = torch.randn(5, 3) * 1e-8  # rounding of poses: not a movement to enlarge
    assert torch.equal(plucker.normalize_translations(shaking), shaking)
    moving = plucker.normalize_translations(torch.randn(5, 3, generator=torch.Generator().manual_seed(0)) + 100)
    assert float(torch.cdist(moving, moving).max()) == pytest.approx(1, abs=1e-3)


def test_low_precision_inputs_are_computed_in_float32() -> None:
    rays = plucker.plucker_rays(poses().bfloat16(), torch.tensor([300.0, 300.0, 320.0, 256.0]), 1, 640)
    assert rays.dtype == torch.float32
    assert len(torch.unique(rays[0, 0, :, 3:], dim=0)) == 640


def test_masking() -> None:
    mask = torch.zeros(1, 1, 16, 24)
    mask[..., 16:] = 1
    grid = plucker.mask_to_grid(mask, 2, 3)
    assert grid[0, 0].tolist() == [[0, 0, 1], [0, 0, 1]]
    masked = plucker.mask_rays(torch.ones(4, 6, 2, 3), grid)
    assert masked[..., 2].abs().sum() == 0 and masked[..., :2].min() == 1


def test_bad_input() -> None:
    with pytest.raises(DataError, match=r"a camera pose must be \(..., 3, 4\) or \(..., 4, 4\), got \(4, 3, 3\)"):
        plucker.invert_pose(torch.zeros(4, 3, 3))
    with pytest.raises(DataError, match="intrinsics must be rows fx, fy, cx, cy"):
        plucker.plucker_rays(poses(), torch.ones(4, 5), 4, 4)
    with pytest.raises(DataError, match="3 intrinsics for 4 poses"):
        plucker.plucker_rays(poses(), torch.ones(3, 4), 4, 4)
    with pytest.raises(DataError, match="focal length is 0"):
        plucker.plucker_rays(poses(), torch.zeros(4), 4, 4)
    with pytest.raises(DataError, match="look like pixels.*divide fx and cx by its width"):
        plucker.latent_plucker_map(poses(), torch.tensor([900.0, 900.0, 640.0, 352.0]), [64, 96, 64, 96])
    with pytest.raises(DataError, match="60x96.*is not a multiple of 8x8"):
        plucker.latent_plucker_map(poses(), torch.ones(4), [60, 96, 60, 96])
    with pytest.raises(DataError, match="8x12 ray map does not fold into patches of 8"):
        plucker.fold_rays(torch.zeros(1, 8, 12, 6), 8)
