"""Images of two parts from three production lines, intact or with a defect.

A part is a height field with an albedo, built from signed distances to simple shapes (negative
inside) in the part's own coordinates, and lit from the direction of its line. The unit of length
is half of the image's shorter side.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

Array = np.ndarray
Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """The camera station of one production line."""

    light: tuple[float, float, float]  # direction towards the lamp: right, down, out of the image
    tint: tuple[float, float, float]
    grain: float  # grain size of the texture, in pixels
    noise: float  # standard deviation of the camera noise, relative to full scale


@dataclass(frozen=True)
class Viewport:
    """The position of every pixel in the part's own coordinates."""

    u: Array  # [H, W] to the right
    v: Array  # [H, W] down
    pixel: float  # side length of a pixel

    def cover(self, distance: Array) -> Array:
        """Return the fraction of each pixel inside a shape, for antialiased edges."""
        return np.clip(0.5 - distance / self.pixel, 0, 1)


@dataclass
class Surface:
    """A part under the camera."""

    albedo: Array  # [H, W, 3]
    height: Array  # [H, W]
    body: Array  # [H, W] signed distance to the area for scratches and stains
    fittings: list[Array]  # [H, W] signed distances to the holes or pins, also missing ones


LINES = {
    "line-a": Line((-0.55, -0.35, 0.76), (1.00, 0.97, 0.92), 0.7, 0.008),
    "line-b": Line((0.10, -0.70, 0.71), (0.80, 0.90, 1.00), 1.6, 0.016),
    "line-c": Line((0.60, 0.40, 0.69), (0.93, 0.88, 0.72), 1.0, 0.012),
}

Part = Callable[[Viewport, Line, set[int], np.random.Generator], Surface]


def draw_part(
    name: str, line: Line, defect: str, size: tuple[int, int], rng: np.random.Generator
) -> tuple[Array, list[Array]]:  # [H, W, 3] uint8, and one [H, W] bool mask per defect
    """Render a part at `size` (H, W) in pixels, with a defect of this kind or "good" for none."""
    part, count = PARTS[name]
    view = _random_view(size, rng)
    missing: set[int] = set()
    if defect.startswith("missing"):
        missing = set(rng.choice(count, size=rng.integers(1, 3), replace=False).tolist())
    surface = part(view, line, missing, rng)
    masks = [surface.fittings[index] < 0 for index in sorted(missing)]
    if defect == "scratch":
        masks = [_scratch(view, surface, rng)]
    if defect == "stain":
        masks = [_stain(view, surface, rng) for _ in range(rng.integers(1, 3))]
    return _render(view, surface, line, rng), [mask for mask in masks if mask.any()]


def _random_view(size: tuple[int, int], rng: np.random.Generator) -> Viewport:
    height, width = size
    pixel = 2 / min(size)
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    x, y = (columns - (width - 1) / 2) * pixel, (rows - (height - 1) / 2) * pixel
    x, y = x - rng.uniform(-0.05, 0.05), y - rng.uniform(-0.05, 0.05)
    angle = rng.uniform(-0.05, 0.05)
    scale = rng.uniform(0.98, 1.02)
    u, v = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    return Viewport(u / scale, v / scale, pixel)


def _bracket(view: Viewport, line: Line, missing: set[int], rng: np.random.Generator) -> Surface:
    """A plate of brushed metal with four holes and a slot."""
    plate = _box(view, (0, 0), (0.80, 0.56), 0.10)
    holes = [_disc(view, (x, y), 0.105) for y in (-0.31, 0.31) for x in (-0.55, 0.55)]
    slot = _box(view, (0, 0), (0.26, 0.07), 0.07)
    drilled = [hole for index, hole in enumerate(holes) if index not in missing]
    openings = np.minimum.reduce([slot, *drilled])
    solid = np.maximum(plate, -openings)
    brushed = _texture(plate.shape, (0.5, 9 * line.grain), rng)
    metal = (0.60 + 0.035 * brushed)[..., None] * np.array([1.0, 1.0, 1.02])
    albedo = _blend(_conveyor_belt(plate.shape, line, rng), metal, view.cover(solid))
    rims = np.minimum.reduce([slot, *holes])  # missing holes too: other defects avoid them
    return Surface(albedo, _bevel(solid, 0.045), np.maximum(plate, 0.03 - rims), holes)


def _connector(view: Viewport, line: Line, missing: set[int], rng: np.random.Generator) -> Surface:
    """A moulded housing with a recess and two rows of four pins."""
    housing = np.minimum(
        _box(view, (0, 0), (0.76, 0.62), 0.14), _box(view, (0, -0.62), (0.20, 0.12), 0.04)
    )
    recess = _box(view, (0, 0.04), (0.60, 0.40), 0.06)
    places = [(x, y) for y in (-0.13, 0.21) for x in (-0.42, -0.14, 0.14, 0.42)]
    sockets = np.minimum.reduce([_disc(view, place, 0.045) for place in places])
    pins = [_box(view, place, (0.065, 0.10), 0.03) for place in places]
    fitted = np.minimum.reduce([pin for index, pin in enumerate(pins) if index not in missing])
    moulded = 0.36 + 0.025 * _texture(housing.shape, (line.grain, line.grain), rng)
    plastic = moulded[..., None] * np.array([0.85, 0.95, 1.15])
    albedo = _blend(_conveyor_belt(housing.shape, line, rng), plastic, view.cover(housing))
    albedo = _blend(albedo, 0.8 * plastic, view.cover(recess))
    albedo = _blend(albedo, 0.5 * plastic, view.cover(sockets))
    brass = (0.58 + 0.03 * _texture(housing.shape, (3, 0.6), rng))[..., None]
    albedo = _blend(albedo, brass * np.array([1.05, 0.95, 0.70]), view.cover(fitted))
    height = _bevel(housing, 0.05) - 0.6 * _bevel(recess, 0.05) + 0.8 * _bevel(fitted, 0.03)
    rims = np.minimum.reduce([np.abs(recess), *pins])
    return Surface(albedo, height, np.maximum(housing, 0.03 - rims), pins)


PARTS: dict[str, tuple[Part, int]] = {"bracket": (_bracket, 4), "connector": (_connector, 8)}
DEFECTS = {
    "bracket": ("scratch", "stain", "missing_hole"),
    "connector": ("scratch", "stain", "missing_pin"),
}


def _scratch(view: Viewport, surface: Surface, rng: np.random.Generator) -> Array:
    """Cut the largest of four random grooves into the surface; return its mask."""
    grooves = [_groove(view, rng, _random_point(view, surface, rng)) for _ in range(4)]
    covers = [groove * view.cover(surface.body) for groove in grooves]
    groove = max(covers, key=np.sum)
    surface.height -= 0.02 * groove
    surface.albedo += rng.choice([-0.12, 0.14]) * groove[..., None]
    return groove > 0.5


def _groove(view: Viewport, rng: np.random.Generator, start: Point) -> Array:
    length, width = rng.uniform(0.2, 0.4), rng.uniform(0.014, 0.024)
    steps = np.linspace(-length, length, 24)
    turn = rng.uniform(0, np.pi) + rng.uniform(-1.2, 1.2) * steps
    path = zip(start[0] + steps * np.cos(turn), start[1] + steps * np.sin(turn), strict=True)
    return view.cover(np.minimum.reduce([_disc(view, point, width) for point in path]))


def _stain(view: Viewport, surface: Surface, rng: np.random.Generator) -> Array:
    """Put a grease stain on the surface; return its mask."""
    roughness = 0.035 * _texture(surface.height.shape, (5, 5), rng)
    stain = _disc(view, _random_point(view, surface, rng), rng.uniform(0.09, 0.15)) + roughness
    soft = np.clip(0.5 - stain / 0.05, 0, 1) * view.cover(surface.body)
    grease = np.broadcast_to([0.40, 0.34, 0.24], surface.albedo.shape)
    surface.albedo = _blend(surface.albedo, grease, rng.uniform(0.35, 0.60) * soft)
    return soft > 0.5


def _random_point(view: Viewport, surface: Surface, rng: np.random.Generator) -> Point:
    index = rng.choice(np.flatnonzero(surface.body < -0.05))  # away from the edges
    return view.u.flat[index], view.v.flat[index]


def _render(view: Viewport, surface: Surface, line: Line, rng: np.random.Generator) -> Array:
    right, down, out = line.light
    slope_down, slope_right = np.gradient(ndimage.gaussian_filter(surface.height, 0.7), view.pixel)
    facing = (out - 0.12 * (right * slope_right + down * slope_down)) / np.sqrt(
        1 + (0.12 * slope_right) ** 2 + (0.12 * slope_down) ** 2
    )
    falloff = 1 + (0.16 + rng.uniform(-0.04, 0.04)) * (right * view.u + down * view.v)
    light = rng.uniform(0.93, 1.07) * falloff * (0.35 + 0.9 * facing)
    image = surface.albedo * light[..., None] * np.array(line.tint)
    image = ndimage.gaussian_filter(image, (0.6, 0.6, 0))
    image += line.noise * rng.standard_normal(image.shape)
    return np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)


def _conveyor_belt(shape: tuple[int, ...], line: Line, rng: np.random.Generator) -> Array:
    rubber = 0.20 + 0.025 * _texture(shape, (2 * line.grain, 2 * line.grain), rng)
    return rubber[..., None]


def _texture(shape: tuple[int, ...], grain: tuple[float, float], rng: np.random.Generator) -> Array:
    smooth = ndimage.gaussian_filter(rng.standard_normal(shape), grain, mode="wrap")
    return smooth / smooth.std()


def _blend(below: Array, above: Array, cover: Array) -> Array:
    return below + cover[..., None] * (above - below)


def _bevel(distance: Array, width: float) -> Array:
    return np.clip(-distance / width, 0, 1)


def _disc(view: Viewport, centre: Point, radius: float) -> Array:
    return np.hypot(view.u - centre[0], view.v - centre[1]) - radius


def _box(view: Viewport, centre: Point, half: Point, corner: float) -> Array:
    across = np.abs(view.u - centre[0]) - half[0] + corner
    along = np.abs(view.v - centre[1]) - half[1] + corner
    outside = np.hypot(np.maximum(across, 0), np.maximum(along, 0))
    return outside + np.minimum(np.maximum(across, along), 0) - corner
