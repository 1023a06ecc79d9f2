"""A small renderer: textured boxes, hills and trees by depth, seen by a pinhole camera."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from coa_compress.tasks.dehazing.noise import fractal_noise

_EPSILON = 1e-6
_TEXTURE_SIDE = 192


@dataclass(frozen=True, slots=True, eq=False)
class Material:
    """A surface: cells of one color in joints of another, with noise.

    Args:
        color: RGB of the joints, or of all of it, shape ``(3,)``.
        inner: RGB of the cells, shape ``(3,)``.
        cell: Width and height of a cell in scene units.
        margin: Part of a cell on each side that shows the joint color, in ``[0, 0.5]``.
        jitter: How much the brightness differs from cell to cell.
        noise: Amplitude of the noise.
        noise_scale: Size of the coarsest noise in scene units.
    """

    color: Tensor
    inner: Tensor
    cell: tuple[float, float] = (1.0, 1.0)
    margin: float = 0.5
    jitter: float = 0.0
    noise: float = 0.15
    noise_scale: float = 4.0


class Canvas:
    """An image and its depth while a scene is painted; what is nearer covers what is farther.

    Args:
        size: Height and width in pixels.
        focal: Focal length in pixels.
        horizon: Row of the horizon in pixels.
        eye: Height of the camera above the ground in scene units.
        generator: Source of the textures.
    """

    def __init__(
        self,
        size: tuple[int, int],
        *,
        focal: float,
        horizon: float,
        eye: float,
        generator: torch.Generator,
    ) -> None:
        height, width = size
        rows = (horizon - torch.arange(height) - 0.5) / focal
        columns = (torch.arange(width) + 0.5 - width / 2) / focal
        self.focal = focal
        self.horizon = horizon
        self.eye = eye
        self.generator = generator
        self.color = torch.zeros(3, height, width)
        self.depth = torch.full(size, torch.inf)
        self.rays = torch.stack(
            [columns.expand(height, width), rows[:, None].expand(height, width), torch.ones(size)]
        )
        self.rays = torch.where(self.rays.abs() < _EPSILON, _EPSILON, self.rays)
        side = (_TEXTURE_SIDE, _TEXTURE_SIDE)
        self._texture = fractal_noise(side, generator, cells=6, octaves=6, persistence=0.7)
        self._jitter = torch.randn(side, generator=generator)

    def paint_box(
        self,
        low: tuple[float, float, float],
        high: tuple[float, float, float],
        material: Material,
        *,
        shades: tuple[float, float, float] = (0.8, 1.0, 0.9),
        inside: bool = False,
    ) -> None:
        """Paint an axis-aligned box; x is right, y is up from the ground, z is forward.

        Args:
            low: Its least corner.
            high: Its greatest corner.
            material: Its surface.
            shades: Brightness of the faces across x, y and z.
            inside: The camera is in the box and sees its inner faces: a room.
        """
        origin = torch.tensor([0.0, self.eye, 0.0])[:, None, None]
        first = (torch.tensor(low)[:, None, None] - origin) / self.rays
        second = (torch.tensor(high)[:, None, None] - origin) / self.rays
        enter, enter_axis = torch.minimum(first, second).max(dim=0)
        leave, leave_axis = torch.maximum(first, second).min(dim=0)
        distance, axis = (leave, leave_axis) if inside else (enter, enter_axis)
        seen = (leave >= enter) & (distance > 0) & (distance < self.depth)
        if not bool(seen.any()):
            return
        found = distance[seen]
        point = origin[:, 0] + self.rays[:, seen] * found
        across = axis[seen]
        u = torch.where(across == 0, point[2], point[0])
        v = torch.where(across == 1, point[2], point[1])
        shade = torch.tensor(shades)[across]
        self.color[:, seen] = self._surface(u, v, found, material) * shade
        self.depth[seen] = found

    def paint_hill(self, outline: Tensor, distance: float, material: Material) -> None:
        """Paint a ridge at one distance.

        Args:
            outline: Its slope (height over distance) at each column, shape ``(width,)``.
            distance: In scene units.
            material: Its surface.
        """
        seen = (self.rays[1] < outline) & (self.rays[1] > -self.eye / distance)
        seen &= self.depth > distance
        u, v = self.rays[0][seen] * distance, self.rays[1][seen] * distance
        self.color[:, seen] = self._surface(u, v, torch.full_like(u, distance), material)
        self.depth[seen] = distance

    def paint_tree(
        self, foot: tuple[float, float], size: tuple[float, float], leaf: Tensor
    ) -> None:
        """Paint a crown of leaves with a ragged edge on a trunk.

        Args:
            foot: Position on the ground, x and z in scene units.
            size: Width and height in scene units.
            leaf: RGB of the leaves, shape ``(3,)``.
        """
        height, width = self.depth.shape
        scale = self.focal / foot[1]
        base = self.horizon + self.eye * scale
        center = width / 2 + foot[0] * scale
        half, tall = max(1.0, size[0] * scale / 2), max(2.0, size[1] * scale)
        top, bottom = max(0, int(base - tall)), min(height, int(base))
        left, right = max(0, int(center - half)), min(width, int(center + half) + 1)
        if bottom - top < 2 or right - left < 2:
            return
        area = (slice(top, bottom), slice(left, right))
        y = (base - torch.arange(top, bottom)[:, None]) / tall
        x = (torch.arange(left, right)[None] - center) / half
        rough = fractal_noise(
            (bottom - top, right - left), self.generator, octaves=5, persistence=0.8
        )
        crown = (x**2 + ((y - 0.62) / 0.38) ** 2) + 0.25 * rough < 0.9
        trunk = (x.abs() < 0.08) & (y < 0.5)
        light = (0.55 + 0.5 * y - 0.15 * x + 0.22 * rough).clamp(0.12, 1.3)
        bark = torch.tensor([0.28, 0.21, 0.15])[:, None, None] * (0.8 + 0.2 * rough)
        painted = torch.where(crown, leaf[:, None, None] * light, bark)
        seen = (crown | trunk) & (self.depth[area] > foot[1])
        self.color[:, *area] = torch.where(seen, painted, self.color[:, *area])
        self.depth[area] = torch.where(seen, foot[1], self.depth[area])

    def _surface(self, u: Tensor, v: Tensor, distance: Tensor, material: Material) -> Tensor:
        cell_u, cell_v = u / material.cell[0], v / material.cell[1]
        inner = (self._edge(cell_u) > material.margin) & (self._edge(cell_v) > material.margin)
        jitter = self._jitter[cell_u.long() % _TEXTURE_SIDE, cell_v.long() % _TEXTURE_SIDE]
        # cells below two pixels would alias: they fade out with distance
        sharp = (1.5 - 3 * distance / (self.focal * min(material.cell))).clamp(0, 1)
        share = (1 - 2 * material.margin) ** 2
        cover = torch.where(inner, 1.0, 0.0) * sharp + share * (1 - sharp)
        base = material.color[:, None] * (1 - cover) + material.inner[:, None] * cover
        grain = self._lookup(u, v, material.noise_scale)
        light = 1 + material.noise * grain + material.jitter * jitter * cover * sharp
        return (base * light).clamp(0.0, 1.0)

    def _edge(self, position: Tensor) -> Tensor:
        part = position - position.floor()
        return torch.minimum(part, 1 - part)

    def _lookup(self, u: Tensor, v: Tensor, scale: float) -> Tensor:
        grid = torch.stack([u, v], dim=-1)[None, None] / (6 * scale) * 2
        found = functional.grid_sample(
            self._texture[None, None],
            grid,
            mode="bilinear",
            padding_mode="reflection",
            align_corners=False,
        )
        return found[0, 0, 0]
