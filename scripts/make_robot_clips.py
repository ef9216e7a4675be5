"""Simulate and draw the clips that ship in `assets/`: a robot arm moves, touches, pushes and lifts a block.

    python scripts/make_robot_clips.py [--output_dir assets] [FOLDER ...]

A kinematic arm (base yaw, shoulder, elbow, a gripper that points down) follows minimum-jerk paths; its fingers push the
block, or carry it. Every frame is ray-cast: thick limbs, one block, plain colours, one
light, its shadow on the table. A clip is a function of its folder and number alone, so the same files come out every time.

    FOLDER/videos/NAME.mp4             128x96, 8 fps, 17 frames, the front camera
    FOLDER/metas/NAME.txt              caption
    FOLDER/annotation/SPLIT/NAME.json  7-D states and actions of the gripper (Bridge's layout)

`robot_arm_base` has four tasks, `robot_arm` a fifth (the arm lifts the block), each with clips of its own in `*_heldout`.

`robot_arm_views` has a folder per camera in place of `videos/*` and `metas/*` (`videos/front/NAME.mp4`, ...), and
`cameras/CAMERA/NAME.json`: intrinsics in pixels and a camera-to-world matrix per frame, OpenCV axes.

World: metres; x towards the front camera, y to its right, z up; the table is z = 0.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

WIDTH, HEIGHT, FPS, FRAMES = 128, 96, 8, 17
SAMPLES = 2  # rays across and down a pixel
Array = np.ndarray

BASE_Y = -0.36
SHOULDER_Z, UPPER, LOWER, TOOL = 0.20, 0.34, 0.32, 0.19  # TOOL: from the wrist down to the finger tips
BLOCK = 0.055  # half a block's side
FINGER = 0.020
GRIP = 0.6  # opening at which the fingers touch a block
PUSH_GAP = BLOCK + 0.038  # from the block's centre to the closed fingers that push it
TIP_LOW = 0.03
LIGHT = np.array([0.35, -0.25, 0.90]) / np.linalg.norm([0.35, -0.25, 0.90])
WALL_X = -0.42

COLORS = {
    "red": (205, 45, 40),
    "blue": (40, 85, 205),
    "green": (45, 150, 65),
    "yellow": (230, 190, 40),
    "purple": (130, 65, 170),
    "orange": (238, 130, 35),
    "teal": (25, 150, 150),
    "white": (225, 228, 232),
    "black": (60, 64, 72),
}
ARMS = ("orange", "teal", "white", "purple")
BLOCKS = ("red", "blue", "green", "yellow")
WALLS = ((222, 226, 230), (236, 226, 205), (196, 212, 228))
TABLES = ((172, 132, 92), (150, 152, 158), (96, 100, 112))

FOLDERS: dict[str, tuple[int, str, tuple[str, ...]]] = {  # clips, split, tasks
    "robot_arm_base": (320, "train", ("push_right", "push_left", "touch", "leave")),
    "robot_arm_base_heldout": (32, "val", ("push_right", "push_left", "touch", "leave")),
    "robot_arm": (48, "train", ("lift",)),
    "robot_arm_heldout": (24, "val", ("lift",)),
    "robot_arm_views": (24, "train", ("push_right", "push_left", "lift")),
}
CAPTIONS = {
    "push_right": "pushes the {} block to the right",
    "push_left": "pushes the {} block to the left",
    "touch": "touches the {} block",
    "leave": "moves away from the {} block",
    "lift": "lifts the {} block",
}


@dataclass(frozen=True)
class Scene:
    """A clip. start: x, y, z, opening 0..1 of the finger tips; moves: (first frame, last frame, changes of the four).

    Every move goes smoothly from rest to rest (minimum jerk); moves that overlap add up.
    """

    name: str
    task: str
    arm: str
    block: str
    wall: tuple[int, int, int]
    table: tuple[int, int, int]
    block_xy: tuple[float, float]
    start: tuple[float, ...]
    moves: tuple[tuple[float, ...], ...]

    @property
    def caption(self) -> str:
        article = "An" if self.arm[0] in "aeiou" else "A"
        return f"{article} {self.arm} robot arm {CAPTIONS[self.task].format(self.block)}."


def make_scene(folder: str, number: int) -> Scene:
    """Return clip `number` of a folder: its colours, where block and gripper start, and the way of its task."""
    from cosmos_predict.randomness import numpy_generator

    tasks = FOLDERS[folder][2]
    task = tasks[number % len(tasks)]
    draw = numpy_generator(0, number, folder)
    arm, block = str(draw.choice(ARMS)), str(draw.choice(BLOCKS))
    wall, table = WALLS[draw.integers(len(WALLS))], TABLES[draw.integers(len(TABLES))]
    reach = {"push_right": (0.02, 0.11), "push_left": (0.10, 0.19)}.get(task, (0.0, 0.19))
    x, y = float(draw.uniform(-0.07, 0.07)), float(draw.uniform(*reach))
    start = (x + draw.uniform(-0.02, 0.02), y + draw.uniform(-0.03, 0.03), 0.21 + draw.uniform(-0.02, 0.02))
    to_block = np.subtract((x, y), start[:2])
    if task in ("push_right", "push_left"):
        side = 1 if task == "push_right" else -1
        behind = to_block[1] - side * (PUSH_GAP + 0.005)
        moves = (
            (0, 7, to_block[0], behind, 0, 0),
            (2, 8, 0, 0, TIP_LOW - start[2], 0),
            (8, 16, 0, side * 0.12, 0, 0),
        )
    elif task == "touch":
        moves = ((0, 10, *to_block, 2 * BLOCK + 0.005 - start[2], 0),)
    elif task == "leave":
        moves = ((0, 14, -0.02 - start[0], -0.08 - start[1], 0.31 - start[2], 0),)
    else:
        moves = ((0, 6.5, *to_block, TIP_LOW + 0.02 - start[2], 0), (6, 8, 0, 0, 0, GRIP - 1), (8, 16, 0, 0, 0.17, 0))
    opening = 1.0 if task == "lift" else 0.0
    return Scene(f"{task}_{number:03d}", task, arm, block, wall, table, (x, y), (*start, opening), moves)


@dataclass
class Episode:
    """What the simulation yields: tips (T, 4) = x, y, z, opening; yaw (T,) of the arm; blocks (T, 3) centres."""

    tips: Array
    yaw: Array
    blocks: Array


def tip_at(scene: Scene, frame: float) -> Array:
    """Return x, y, z and opening of the finger tips."""
    tip = np.array(scene.start)
    for first, last, *change in scene.moves:
        s = np.clip((frame - first) / (last - first), 0, 1)
        tip = tip + s**3 * (10 - 15 * s + 6 * s * s) * np.array(change)
    return tip


def simulate(scene: Scene) -> Episode:
    """Move the gripper along its way, in steps of a quarter frame, and the block with it."""
    steps = 4
    block = np.array([*scene.block_xy, BLOCK])
    held: Array | None = None  # from the tips to the block's centre
    tips, blocks = [], []
    for step in range((FRAMES - 1) * steps + 1):
        tip = tip_at(scene, step / steps)
        over = abs(tip[0] - block[0]) < BLOCK and abs(tip[1] - block[1]) < PUSH_GAP
        if held is None and over and tip[2] < BLOCK and abs(tip[3] - GRIP) < 1e-6:
            held = block - tip[:3]
        elif held is None and over and tip[2] < 2 * BLOCK and tip[3] == 0 and scene.task.startswith("push"):
            block = np.array([block[0], tip[1] + PUSH_GAP * (1 if block[1] > tip[1] else -1), BLOCK])
        if held is not None:
            block = tip[:3] + held
        if step % steps == 0:
            tips.append(tip)
            blocks.append(block.copy())
    path = np.array(tips)
    return Episode(path, np.arctan2(path[:, 1] - BASE_Y, path[:, 0]), np.array(blocks))


# ---- what the gripper did, as robot data ---------------------------------------------------------------------------


def annotation(scene: Scene, episode: Episode, video: str) -> dict[str, object]:
    """Return the episode in Bridge's layout: state (T, 7) x, y, z, roll, pitch, yaw, open; action (T - 1, 7) relative."""
    from cosmos_predict.data.robot_actions import relative_actions

    closed = 1 - episode.tips[:, 3]
    open_flag = (closed < 0.3).astype(float)
    zeros = np.zeros((FRAMES, 2))  # the gripper points straight down: its frame only turns about z
    state = np.hstack([episode.tips[:, :3], zeros, episode.yaw[:, None], open_flag[:, None]])
    action = relative_actions(state, open_flag[1:], range(FRAMES))
    return {
        "task": "robot_trajectory_prediction",
        "texts": [scene.caption],
        "videos": [{"video_path": video}],
        "state": np.round(state, 5).tolist(),
        "action": np.round(action, 5).tolist(),
        "continuous_gripper_state": np.round(closed, 3).tolist(),
        "episode_id": scene.name,
    }


# ---- cameras -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Camera:
    """A pinhole camera at `eye` that looks at `target`; focal length in pixels. Pixel centres are at half integers."""

    eye: tuple[float, float, float]
    target: tuple[float, float, float]
    focal: float

    def intrinsics(self) -> list[float]:
        return [self.focal, self.focal, WIDTH / 2, HEIGHT / 2]

    def cam2world(self) -> Array:
        """Return (3, 4): columns are the camera's right, down and forward axes, and its centre, in the world."""
        forward = np.subtract(self.target, self.eye)
        forward = forward / np.linalg.norm(forward)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        return np.stack([right, np.cross(forward, right), forward, np.array(self.eye)], axis=1)


FRONT = Camera((1.45, -0.06, 0.52), (0.0, -0.06, 0.225), 190.0)
SIDE = Camera((0.85, 0.80, 0.70), (-0.02, -0.08, 0.16), 165.0)


def camera_at(name: str, episode: Episode, frame: int) -> Camera:
    """Return a camera of a frame: `front` and `side` stand still, `wrist` is carried by the gripper."""
    if name != "wrist":
        return {"front": FRONT, "side": SIDE}[name]
    x, y, z, _ = episode.tips[frame]
    ahead = np.array([np.cos(episode.yaw[frame]), np.sin(episode.yaw[frame])])
    eye = np.array([x, y]) + 0.20 * ahead  # on the far side of the arm, looking back and down
    return Camera((*eye, z + TOOL + 0.02), (x, y, z), 90.0)  # type: ignore[arg-type]


# ---- drawing -------------------------------------------------------------------------------------------------------


@dataclass
class Solids:
    """What a frame shows: capsules (from, to, radius, colour) and upright boxes (centre, half sides, colour)."""

    capsules: list[tuple[Array, Array, float, tuple[int, ...]]] = field(default_factory=list)
    boxes: list[tuple[Array, Array, tuple[int, ...]]] = field(default_factory=list)


def solids(scene: Scene, episode: Episode, frame: int) -> Solids:
    """Solve the arm's joints for the gripper's place and return its limbs, fingers and the block."""
    tip, yaw = episode.tips[frame], episode.yaw[frame]
    ahead, up = np.array([np.cos(yaw), np.sin(yaw), 0.0]), np.array([0.0, 0.0, 1.0])
    shoulder = np.array([0.0, BASE_Y, SHOULDER_Z])
    wrist = tip[:3] + TOOL * up
    reach, rise = (wrist - shoulder) @ ahead, (wrist - shoulder)[2]
    distance = np.hypot(reach, rise)
    if distance > UPPER + LOWER:
        raise ValueError(f"{scene.name}: the arm cannot reach {tip[:3]} ({distance:.2f} m from its shoulder)")
    lift = np.arctan2(rise, reach) + np.arccos((UPPER**2 + distance**2 - LOWER**2) / (2 * UPPER * distance))
    elbow = shoulder + UPPER * (np.cos(lift) * ahead + np.sin(lift) * up)
    color, dark = COLORS[scene.arm], COLORS["black"]
    shapes = Solids()
    shapes.boxes.append((np.array([0, BASE_Y, 0.05]), np.array([0.10, 0.10, 0.05]), dark))
    shapes.boxes.append((episode.blocks[frame], np.full(3, BLOCK), COLORS[scene.block]))
    palm = tip[:3] + 0.10 * up
    limbs = [
        (np.array([0, BASE_Y, 0.08]), shoulder, 0.075, color),
        (shoulder, elbow, 0.055, color),
        (elbow, wrist, 0.046, color),
        (wrist, palm + 0.02 * up, 0.036, dark),
    ]
    spread = (FINGER + 0.075 * tip[3]) * ahead
    for side in (-1, 1):
        end = tip[:3] + side * spread + FINGER * up
        limbs += [(palm, palm + side * spread, FINGER, dark), (palm + side * spread, end, FINGER, dark)]
    shapes.capsules = limbs
    return shapes


def hit_sphere(origin: Array, ray: Array, center: Array, radius: float) -> Array:
    """Return distances (N,) along unit rays (N, 3) to a sphere, inf where they miss."""
    to = center - origin
    along = (to * ray).sum(-1)
    inside = radius**2 - ((to * to).sum(-1) - along**2)
    distance = along - np.sqrt(np.maximum(inside, 0))
    return np.where((inside >= 0) & (distance > 1e-4), distance, np.inf)


def hit_capsule(origin: Array, ray: Array, a: Array, b: Array, radius: float) -> Array:
    """Return distances (N,) along unit rays to a segment's neighbourhood: a tube without ends, and two spheres."""
    best = np.minimum(hit_sphere(origin, ray, a, radius), hit_sphere(origin, ray, b, radius))
    axis = (b - a) / np.linalg.norm(b - a)
    start = origin - a
    flat_ray, flat_start = ray - (ray @ axis)[:, None] * axis, start - (start @ axis)[..., None] * axis
    p2 = np.maximum((flat_ray**2).sum(-1), 1e-12)
    p1 = (flat_ray * flat_start).sum(-1)
    root = p1**2 - p2 * ((flat_start**2).sum(-1) - radius**2)
    distance = (-p1 - np.sqrt(np.maximum(root, 0))) / p2
    along = (start + distance[:, None] * ray) @ axis
    tube = (root >= 0) & (distance > 1e-4) & (along > 0) & (along < np.linalg.norm(b - a))
    return np.minimum(best, np.where(tube, distance, np.inf))


def hit_box(origin: Array, ray: Array, center: Array, half: Array) -> tuple[Array, Array]:
    """Return distances (N,) to an upright box, inf where rays miss, and the axis (N,) of the face that they enter by."""
    safe = np.where(np.abs(ray) < 1e-9, 1e-9, ray)
    near = (center - origin - np.sign(safe) * half) / safe
    far = (center - origin + np.sign(safe) * half) / safe
    enter, leave = near.max(-1), far.min(-1)
    return np.where((enter < leave) & (enter > 1e-4), enter, np.inf), near.argmax(-1)


def near_rays(origin: Array, ray: Array, center: Array, radius: float) -> Array:
    """Return the indices of rays that may meet a ball."""
    to = np.broadcast_to(center - origin, ray.shape)
    along = (to * ray).sum(-1)
    return np.nonzero((to**2).sum(-1) - along**2 < radius**2)[0]


def rays(camera: Camera) -> Array:
    """Return unit directions (H * W * SAMPLES^2, 3) in the world, the samples of a pixel together."""
    across = (np.arange(WIDTH * SAMPLES) + 0.5) / SAMPLES - WIDTH / 2
    down = (np.arange(HEIGHT * SAMPLES) + 0.5) / SAMPLES - HEIGHT / 2
    grid = np.stack(np.broadcast_arrays(across[None], down[:, None], camera.focal), axis=-1)
    grid = grid.reshape(HEIGHT, SAMPLES, WIDTH, SAMPLES, 3).swapaxes(1, 2).reshape(-1, 3)
    directions = grid @ camera.cam2world()[:, :3].T
    return directions / np.linalg.norm(directions, axis=-1, keepdims=True)


def draw(scene: Scene, shapes: Solids, camera: Camera) -> Array:
    """Return one frame (H, W, 3) uint8."""
    origin, ray = np.array(camera.eye), rays(camera)
    with np.errstate(divide="ignore"):
        to_table = np.where(ray[:, 2] < 0, -origin[2] / ray[:, 2], np.inf)
        to_wall = np.where(ray[:, 0] < 0, (WALL_X - origin[0]) / ray[:, 0], np.inf)
    nearest = np.minimum(to_table, to_wall)
    nearest[~np.isfinite(nearest)] = 1e3
    on_table = to_table < to_wall
    color = np.where(on_table[:, None], np.array(scene.table, float), np.array(scene.wall, float))
    color[on_table] *= shadow(origin + nearest[on_table, None] * ray[on_table], shapes)[:, None]
    for a, b, radius, paint in shapes.capsules:
        rows = near_rays(origin, ray, (a + b) / 2, float(np.linalg.norm(b - a)) / 2 + radius)
        distance = hit_capsule(origin, ray[rows], a, b, radius)
        front = distance < nearest[rows]
        rows, distance = rows[front], distance[front]
        point = origin + distance[:, None] * ray[rows]
        length = max(float((b - a) @ (b - a)), 1e-12)
        foot = a + np.clip((point - a) @ (b - a) / length, 0, 1)[:, None] * (b - a)
        nearest[rows], color[rows] = distance, lit((point - foot) / radius)[:, None] * np.array(paint, float)
    for center, half, paint in shapes.boxes:
        rows = near_rays(origin, ray, center, float(np.linalg.norm(half)))
        distance, face = hit_box(origin, ray[rows], center, half)
        front = distance < nearest[rows]
        rows, distance, face = rows[front], distance[front], face[front]
        normal = np.zeros((len(rows), 3))
        normal[np.arange(len(rows)), face] = -np.sign(ray[rows, face])
        nearest[rows], color[rows] = distance, lit(normal)[:, None] * np.array(paint, float)
    image = color.reshape(HEIGHT, WIDTH, SAMPLES**2, 3).mean(2)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def lit(normal: Array) -> Array:
    """Return the brightness of surfaces with unit normals (N, 3)."""
    return 0.62 + 0.42 * np.maximum(normal @ LIGHT, 0)


def shadow(points: Array, shapes: Solids) -> Array:
    """Return the brightness (N,) of points on the table: darker where a solid stands between them and the light."""
    ray = np.broadcast_to(LIGHT, points.shape)
    dark = np.zeros(len(points), bool)
    for a, b, radius, _ in shapes.capsules:
        rows = near_rays(points, ray, (a + b) / 2, float(np.linalg.norm(b - a)) / 2 + radius)
        dark[rows] |= np.isfinite(hit_capsule(points[rows], ray[rows], a, b, radius))
    for center, half, _ in shapes.boxes:
        rows = near_rays(points, ray, center, float(np.linalg.norm(half)))
        dark[rows] |= np.isfinite(hit_box(points[rows], ray[rows], center, half)[0])
    return np.where(dark, 0.72, 1.0)


def render(scene: Scene, episode: Episode, camera: str = "front") -> Array:
    """Return the clip's frames (T, H, W, 3) uint8 from a camera: `front`, `side` or `wrist`."""
    return np.stack(
        [draw(scene, solids(scene, episode, t), camera_at(camera, episode, t)) for t in range(len(episode.tips))]
    )


# ---- files ---------------------------------------------------------------------------------------------------------


def write_clip(root: Path, folder: str, number: int) -> str:
    """Write the files of one clip and return its name."""
    from cosmos_predict.data.video_reader import write_video
    from cosmos_predict.io.atomic import atomic_write_text

    def dump(path: Path, content: object) -> None:
        atomic_write_text(path, json.dumps(content, separators=(",", ":")) + "\n")

    scene = make_scene(folder, number)
    episode = simulate(scene)
    output, split = root / folder, FOLDERS[folder][1]
    views = {"front": "front/", "side": "side/", "wrist": "wrist/"} if folder.endswith("_views") else {"front": ""}
    for camera, under in views.items():
        write_video(output / "videos" / f"{under}{scene.name}.mp4", render(scene, episode, camera), FPS, quality=5)
        atomic_write_text(output / "metas" / f"{under}{scene.name}.txt", scene.caption + "\n")
        if under:
            cameras = [camera_at(camera, episode, frame) for frame in range(FRAMES)]
            poses = [np.round(each.cam2world(), 5).tolist() for each in cameras]
            about = {"width": WIDTH, "height": HEIGHT, "intrinsics": cameras[0].intrinsics(), "cam2world": poses}
            dump(output / "cameras" / camera / f"{scene.name}.json", about)
    video = f"videos/{views['front']}{scene.name}.mp4"
    dump(output / "annotation" / split / f"{scene.name}.json", annotation(scene, episode, video))
    return scene.name


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="*", metavar="FOLDER", help=f"which of {', '.join(FOLDERS)} (default: all)")
    parser.add_argument("--output_dir", type=Path, default=Path("assets"), help="where the folders go")
    args = parser.parse_args()
    if unknown := set(args.folders) - FOLDERS.keys():
        parser.error(f"no folder {', '.join(sorted(unknown))}; known: {', '.join(FOLDERS)}")
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs from a checkout that is not installed, too
    from PIL import Image

    from cosmos_predict.io.atomic import atomic_path

    for folder in args.folders or FOLDERS:
        for number in range(FOLDERS[folder][0]):
            write_clip(args.output_dir, folder, number)
        print(f"{args.output_dir / folder}: {FOLDERS[folder][0]} clips")
        if folder == "robot_arm":
            scene = make_scene(folder, 0)
            with atomic_path(args.output_dir / folder / "first_frame.png") as temporary:
                Image.fromarray(render(scene, simulate(scene))[0]).save(temporary, format="PNG", optimize=True)


if __name__ == "__main__":
    main()
