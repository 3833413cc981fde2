"""The paper's Fig. 1: gradient norm over a plane, of a small network trained on 2-D classes.

python benchmarks/landscape.py -o benchmarks/results/landscape.png
"""

import argparse
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from gradscore.scorer import GradNorm

CLASSES = 3
ANGLES = torch.arange(CLASSES) * 2 * math.pi / CLASSES + math.pi / 2
CENTRES = 4 * torch.stack([ANGLES.cos(), ANGLES.sin()], dim=1)
EXTENT = 8.0
SPREAD = 0.8


def drawn_points(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return ``count`` points around the classes' centres ``[count, 2]``, and their classes."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % CLASSES
    return CENTRES[labels] + SPREAD * torch.randn(count, 2, generator=rng), labels


def trained_score(steps: int) -> tuple[Callable[[Tensor], Tensor], float]:
    """Return the GradNorm score of a network trained for ``steps``, and its accuracy."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            *(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, CLASSES))
        )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    points, labels = drawn_points(600, seed=0)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(points), labels).backward()
        optimizer.step()
    model.eval()
    held_out, truth = drawn_points(300, seed=1)
    with torch.no_grad():
        accuracy = (model(held_out).argmax(1) == truth).float().mean().item()
    return GradNorm(model), accuracy


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, score a grid of the plane, and draw it."""
    from matplotlib.figure import Figure

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--side", type=int, default=121, help="points along each axis")
    parser.add_argument("-o", "--output", type=Path, default=Path("landscape.png"))
    options = parser.parse_args(arguments)
    if options.side < 2:
        parser.error(f"expected a side of 2 or more points, got {options.side}")
    if not options.output.parent.is_dir():
        parser.error(f"expected a folder, got {options.output.parent}")

    score, accuracy = trained_score(options.steps)
    axis = torch.linspace(-EXTENT, EXTENT, options.side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    with torch.no_grad():
        surface = score(torch.stack([x.flatten(), y.flatten()], dim=1)).view_as(x)
    points, labels = drawn_points(150, seed=2)

    figure = Figure(figsize=(11, 4.6), layout="constrained", dpi=150)
    plane = figure.add_subplot(1, 2, 1)
    shades = plane.contourf(x, y, surface, levels=20, cmap="Greys_r")
    for place, marker in enumerate("os^"):
        chosen = points[labels == place]
        plane.scatter(
            *chosen.T,
            marker=marker,
            s=16,
            facecolors="white",
            edgecolors="#c4551c",
            linewidths=0.8,
        )
    plane.set(xlabel="Input $x_1$", ylabel="Input $x_2$", aspect="equal")
    plane.set_title(f"ID points of {CLASSES} classes (accuracy {accuracy:.0%})", fontsize=10)
    label = "GradNorm score (nats per unit of weight), higher = ID"
    figure.colorbar(shades, ax=plane, label=label)

    relief = figure.add_subplot(1, 2, 2, projection="3d")
    relief.plot_surface(x.numpy(), y.numpy(), surface.numpy(), cmap="Greys_r", linewidth=0)
    relief.set(xlabel="Input $x_1$", ylabel="Input $x_2$", zlabel="Score, higher = ID")
    relief.view_init(elev=35, azim=-60)
    figure.savefig(options.output, metadata={"Software": None})
    print(f"{options.output}: accuracy {accuracy:.3f}, score {surface.min():.3f} to", end=" ")
    print(f"{surface.max():.3f}")


if __name__ == "__main__":
    main()
