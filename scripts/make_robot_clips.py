"""Draw the sample clips that ship in `assets/robot_arm`: a two-link robot arm pushes, lifts, places and stacks blocks.

    python scripts/make_robot_clips.py [--output_dir assets/robot_arm]

Writes `videos/NAME.mp4` (192x128, 16 fps), `metas/NAME.txt` (caption) and `first_frame.png`. No randomness: the same
frames every time.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

WIDTH, HEIGHT, FPS = 192, 128, 16
TABLE = 106.0  # y of the table's surface; y points down, all lengths are pixels
UPPER, LOWER, TOOL = 50.0, 46.0, 17.0  # arm links, and the gripper that always points down from the wrist
BLOCK = 7.0  # half a block's side
COLORS = {
    "red": (200, 50, 45),
    "blue": (45, 90, 200),
    "green": (50, 150, 70),
    "yellow": (225, 185, 45),
    "orange": (230, 120, 35),
    "purple": (130, 70, 165),
}
Pixels = np.ndarray
ROWS, COLUMNS = np.mgrid[0:HEIGHT, 0:WIDTH] + 0.5


@dataclass(frozen=True)
class Scene:
    """A clip: where the arm stands, its colours, the blocks' x, and the way of the gripper.

    way: (frame, x, y, opening 0..1) of the finger tips; in between they move smoothly, from rest to rest.
    """

    name: str
    caption: str
    frames: int
    shoulder_x: float
    arm: tuple[int, int, int]
    wall: tuple[int, int, int]
    table: tuple[int, int, int]
    blocks: dict[str, float]
    way: tuple[tuple[int, float, float, float], ...]


GRIP = 0.6  # opening at which the fingers touch a block
LOW, HIGH = TABLE - 4, TABLE - 46
ORANGE_ARM, GREY_ARM, TEAL_ARM = (235, 130, 40), (120, 130, 145), (30, 150, 150)
LIGHT, CREAM, BLUISH = (222, 226, 230), (236, 228, 210), (200, 214, 228)
WOOD, GREY, DARK = (170, 130, 90), (150, 152, 158), (92, 96, 108)

SCENES = (
    Scene(
        "push_red_right",
        "An orange robot arm lowers its gripper behind a red block and pushes it to the right across a wooden table.",
        49, 50, ORANGE_ARM, LIGHT, WOOD, {"red": 102},
        ((0, 84, HIGH, 0), (14, 84, LOW, 0), (20, 86, LOW, 0), (42, 126, LOW, 0), (48, 126, LOW, 0)),
    ),
    Scene(
        "push_blue_left",
        "A grey robot arm lowers its gripper beside a blue block and pushes it to the left across a grey table.",
        49, 142, GREY_ARM, CREAM, GREY, {"blue": 92},
        ((0, 110, HIGH, 0), (14, 110, LOW, 0), (20, 107, LOW, 0), (42, 66, LOW, 0), (48, 66, LOW, 0)),
    ),
    Scene(
        "place_green_right",
        "A teal robot arm grasps a green block, lifts it, carries it to the right and puts it down on a wooden table.",
        65, 46, TEAL_ARM, LIGHT, WOOD, {"green": 86},
        (
            (0, 92, HIGH, 1), (4, 86, HIGH, 1), (14, 86, LOW, 1), (19, 86, LOW, GRIP), (30, 86, HIGH, GRIP),
            (44, 126, HIGH, GRIP), (54, 126, LOW, GRIP), (58, 126, LOW, 1), (64, 126, LOW - 20, 1),
        ),
    ),
    Scene(
        "lift_yellow",
        "An orange robot arm reaches down to a yellow block on a dark table, closes its gripper and lifts the block.",
        33, 138, ORANGE_ARM, BLUISH, DARK, {"yellow": 84},
        ((0, 90, HIGH, 1), (12, 84, LOW, 1), (17, 84, LOW, GRIP), (28, 88, HIGH, GRIP), (32, 88, HIGH, GRIP)),
    ),
    Scene(
        "stack_orange_on_purple",
        "A grey robot arm picks up an orange block and stacks it on top of a purple block on a grey table.",
        65, 46, GREY_ARM, LIGHT, GREY, {"orange": 88, "purple": 126},
        (
            (0, 88, HIGH, 1), (12, 88, LOW, 1), (17, 88, LOW, GRIP), (29, 88, HIGH, GRIP), (42, 126, HIGH, GRIP),
            (52, 126, LOW - 2 * BLOCK, GRIP), (56, 126, LOW - 2 * BLOCK, 1), (64, 126, HIGH, 1),
        ),
    ),
    Scene(
        "wave_over_red",
        "A teal robot arm sweeps its open gripper from side to side above a red block without touching it.",
        49, 142, TEAL_ARM, CREAM, WOOD, {"red": 84},
        ((0, 84, HIGH + 6, 1), (10, 104, HIGH, 1), (24, 62, HIGH, 1), (38, 104, HIGH, 1), (48, 84, HIGH + 6, 1)),
    ),
    Scene(
        "place_blue_left",
        "An orange robot arm grasps a blue block, carries it over to the left and sets it down on a dark table.",
        57, 146, ORANGE_ARM, BLUISH, DARK, {"blue": 106},
        (
            (0, 106, HIGH, 1), (11, 106, LOW, 1), (15, 106, LOW, GRIP), (25, 104, HIGH, GRIP), (37, 70, HIGH, GRIP),
            (46, 68, LOW, GRIP), (50, 68, LOW, 1), (56, 68, LOW - 20, 1),
        ),
    ),
    Scene(
        "push_green_and_return",
        "A grey robot arm pushes a green block to the right on a wooden table, then raises its gripper and moves back.",
        61, 44, GREY_ARM, BLUISH, WOOD, {"green": 98},
        (
            (0, 80, HIGH, 0), (12, 80, LOW, 0), (17, 82, LOW, 0), (36, 118, LOW, 0), (40, 116, LOW, 0),
            (49, 112, HIGH, 0), (60, 84, HIGH, 0),
        ),
    ),
)  # fmt: skip


def capsule(x0: float, y0: float, x1: float, y1: float, radius: float) -> Pixels:
    """Signed distance (H, W) of all pixels to a thick line with round ends."""
    dx, dy = x1 - x0, y1 - y0
    along = np.clip(((COLUMNS - x0) * dx + (ROWS - y0) * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
    return np.hypot(COLUMNS - x0 - along * dx, ROWS - y0 - along * dy) - radius


def box(x: float, y: float, half_w: float, half_h: float) -> Pixels:
    """Signed distance (H, W) of all pixels to an upright box around (x, y)."""
    across, down = np.abs(COLUMNS - x) - half_w, np.abs(ROWS - y) - half_h
    return np.hypot(np.maximum(across, 0), np.maximum(down, 0)) + np.minimum(np.maximum(across, down), 0)


def paint(image: Pixels, distance: Pixels, color: tuple[float, ...]) -> None:
    """Draw a shape with smooth edges: a pixel's coverage is half a pixel minus its distance."""
    coverage = np.clip(0.5 - distance, 0, 1)[..., None]
    image += coverage * (np.asarray(color, dtype=float) - image)


def shade(color: tuple[int, ...], factor: float) -> tuple[float, ...]:
    return tuple(factor * value for value in color)


def gripper_at(scene: Scene, frame: int) -> tuple[float, float, float]:
    """x, y and opening of the finger tips: minimum-jerk moves between the points of the way."""
    for (start, *a), (end, *b) in zip(scene.way, scene.way[1:], strict=False):
        if frame <= end:
            s = (frame - start) / (end - start)
            blend = s**3 * (10 - 15 * s + 6 * s * s)
            x, y, opening = (p + blend * (q - p) for p, q in zip(a, b, strict=True))
            return x, y, opening
    return scene.way[-1][1:]


def move_blocks(
    scene: Scene, blocks: dict[str, list[float]], held: str | None, tip: tuple[float, float, float]
) -> str | None:
    """Advance the blocks' centres by one frame; return the block that the gripper now holds."""
    x, y, opening = tip
    if held is not None and opening > 0.8:
        # Let go: the block rests on the table or on the block below it.
        beneath = any(name != held and abs(other[0] - blocks[held][0]) < BLOCK for name, other in blocks.items())
        blocks[held][1] = TABLE - BLOCK - (2 * BLOCK if beneath else 0)
        return None
    for name, center in blocks.items():
        inside = abs(center[0] - x) < BLOCK and abs(center[1] - y) < BLOCK
        if held is None and inside and 0.5 < opening < 0.7:
            held = name
        elif held is None and opening < 0.1 and y > center[1] - BLOCK and abs(center[0] - x) < BLOCK + 4:
            center[0] = x + (BLOCK + 4) * (1 if center[0] > x else -1)
    if held is not None:
        blocks[held][:] = [x, y - 3]
    return held


def draw(scene: Scene, blocks: dict[str, list[float]], tip: tuple[float, float, float]) -> Pixels:
    """Return one frame (H, W, 3) uint8."""
    x, y, opening = tip
    image = np.empty((HEIGHT, WIDTH, 3))
    image[:] = np.asarray(scene.wall) * np.linspace(1.04, 0.94, HEIGHT)[:, None, None]
    paint(image, TABLE - ROWS, scene.table)
    paint(image, np.abs(ROWS - TABLE - 1.5) - 1.5, shade(scene.table, 1.15))
    for center_x, _ in blocks.values():
        paint(image, capsule(center_x - BLOCK, TABLE + 2, center_x + BLOCK, TABLE + 2, 1.5), shade(scene.table, 0.75))
    for name, (center_x, center_y) in blocks.items():
        paint(image, box(center_x, center_y, BLOCK, BLOCK), shade(COLORS[name], 0.8))
        paint(image, box(center_x - 0.8, center_y - 0.8, BLOCK - 1.8, BLOCK - 1.8), COLORS[name])
    shoulder_x, shoulder_y = scene.shoulder_x, TABLE - 24
    wrist_x, wrist_y = x, y - TOOL
    # Elbow by the law of cosines, on the upper side.
    dx, dy = wrist_x - shoulder_x, wrist_y - shoulder_y
    reach = min(np.hypot(dx, dy), UPPER + LOWER - 1e-6)
    bend = np.arccos((UPPER**2 + reach**2 - LOWER**2) / (2 * UPPER * reach))
    angle = np.arctan2(dy, dx) + (-bend if dx > 0 else bend)
    elbow_x, elbow_y = shoulder_x + UPPER * np.cos(angle), shoulder_y + UPPER * np.sin(angle)
    dark = shade(scene.arm, 0.55)
    paint(image, box(shoulder_x, TABLE - 4, 15, 4), (70, 74, 82))
    paint(image, box(shoulder_x, TABLE - 14, 8, 12), (92, 97, 106))
    spread = 3 + 10 * opening
    for side in (-1, 1):
        finger = x + side * spread
        paint(image, capsule(x, wrist_y + 6, finger, wrist_y + 8, 2.0), (60, 63, 70))
        paint(image, capsule(finger, wrist_y + 8, finger, y, 2.0), (60, 63, 70))
    paint(image, capsule(elbow_x, elbow_y, wrist_x, wrist_y, 5.5), shade(scene.arm, 0.88))
    paint(image, capsule(shoulder_x, shoulder_y, elbow_x, elbow_y, 7.0), scene.arm)
    paint(image, capsule(wrist_x, wrist_y, wrist_x, wrist_y + 5, 4.0), (92, 97, 106))
    for joint_x, joint_y, radius in ((shoulder_x, shoulder_y, 5.0), (elbow_x, elbow_y, 4.0), (wrist_x, wrist_y, 3.0)):
        paint(image, np.hypot(COLUMNS - joint_x, ROWS - joint_y) - radius, dark)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def render(scene: Scene) -> Pixels:
    """Return the clip's frames (T, H, W, 3) uint8."""
    blocks = {name: [x, TABLE - BLOCK] for name, x in scene.blocks.items()}
    held: str | None = None
    frames = []
    for frame in range(scene.frames):
        tip = gripper_at(scene, frame)
        held = move_blocks(scene, blocks, held, tip)
        frames.append(draw(scene, blocks, tip))
    return np.stack(frames)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--output_dir", type=Path, default=Path("assets/robot_arm"), help="folder for videos and metas")
    output = parser.parse_args().output_dir
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
    from PIL import Image

    from cosmos_predict.data.video_reader import write_video
    from cosmos_predict.io.atomic import atomic_path, atomic_write_text

    for number, scene in enumerate(SCENES):
        frames = render(scene)
        write_video(output / "videos" / f"{scene.name}.mp4", frames, FPS, quality=6)
        atomic_write_text(output / "metas" / f"{scene.name}.txt", scene.caption + "\n")
        if number == 0:
            with atomic_path(output / "first_frame.png") as temporary:
                Image.fromarray(frames[0]).save(temporary, optimize=True)
        print(f"{scene.name}: {len(frames)} frames")


if __name__ == "__main__":
    main()
