"""Geometry of the pages' charts: stacked bars and curves in a box of 1000 x 260 that the page stretches.

Labels are text beside the box, placed in percent of it, so that they stay readable where the box gets small.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH, HEIGHT = 1000.0, 260.0
MOST_BARS = 128
"""With more stacks than that a bar is the mean of several neighbours."""
MOST_POINTS = 400
"""Of a curve; with more, a point is the mean of several neighbours."""
_MOST_TICKS = 6


@dataclass(frozen=True)
class Curve:
    """One curve of a chart.

    Attributes:
        name: for the legend.
        colour: number of its colour in the pages' style, 0 to 7.
        points: (x, y) in order of x; those that are not finite are left out.
        dashed: whether it is drawn dashed.
    """

    name: str
    colour: int
    points: Sequence[tuple[float, float]]
    dashed: bool = False


def bars(
    stacks: Sequence[Mapping[str, float]],
    labels: Sequence[str],
    colours: Mapping[str, str],
    unit: str,
    cap: float | None = None,
) -> dict[str, Any]:
    """A stacked bar for each of `stacks` (amounts by name), or for each few neighbours.

    Args:
        stacks: what each bar is made of.
        labels: the bars' names.
        colours: CSS colours by name, in the order in which they are stacked.
        unit: of the amounts.
        cap: an amount to mark; more than three times the highest bar, it stays above the picture.
    """
    each = -(-len(stacks) // MOST_BARS)
    groups = [range(first, min(first + each, len(stacks))) for first in range(0, len(stacks), each)]
    means = [
        {name: sum(stacks[place].get(name, 0.0) for place in group) / len(group) for name in colours}
        for group in groups
    ]
    highest = max((sum(stack.values()) for stack in means), default=0.0)
    top = (cap if cap and highest < cap <= 3 * highest else highest) or 1.0
    step = WIDTH / max(1, len(groups))
    rectangles: list[dict[str, Any]] = []
    for number, (group, stack) in enumerate(zip(groups, means, strict=True)):
        label = labels[group[0]] if len(group) == 1 else f"{labels[group[0]]} to {labels[group[-1]]}"
        y = HEIGHT
        for name, value in stack.items():
            if value > 0:
                tall = value / top * HEIGHT
                y -= tall
                rectangles.append(
                    {
                        "x": round(number * step + 0.05 * step, 2),
                        "y": round(y, 2),
                        "width": round(0.9 * step, 2),
                        "height": round(tall, 2),
                        "colour": colours[name],
                        "title": f"{label}: {name}, {value:.3f} {unit}",
                    }
                )
    return {
        "rectangles": rectangles,
        "colours": dict(colours),
        "unit": unit,
        "ys": _axis(0.0, top),
        "xs": _ends(labels),
        "cap_y": None if not cap or cap > top else round(HEIGHT - cap / top * HEIGHT, 2),
        "cap": None if not cap else f"{cap:,.1f} {unit}",
        "a_bar": each,
    }


def curves(drawn: Sequence[Curve], unit: str = "", x_unit: str = "step") -> dict[str, Any] | None:
    """Curves on common axes; None where no curve has a point. Points far off the others are drawn at the edge."""
    finite = {
        id(curve): _thinned([point for point in curve.points if all(map(math.isfinite, point))]) for curve in drawn
    }
    points = [point for each in finite.values() for point in each]
    if not points:
        return None
    x_low, x_high = _range([x for x, _ in points])
    y_low, y_high = _range(_inliers([y for _, y in points]))
    margin = 0.04 * (y_high - y_low)
    beyond = sum(not y_low <= y <= y_high for _, y in points)
    y_low, y_high = y_low - margin, y_high + margin

    def place(point: tuple[float, float]) -> tuple[float, float]:
        x, y = point[0], min(max(point[1], y_low), y_high)
        across = (x - x_low) / (x_high - x_low) * WIDTH
        return round(across, 1), round(HEIGHT - (y - y_low) / (y_high - y_low) * HEIGHT, 1)

    return {
        "curves": [
            {
                "name": curve.name,
                "colour": curve.colour % 8,
                "dashed": curve.dashed,
                "d": "M" + " L".join(f"{x} {y}" for x, y in map(place, finite[id(curve)])),
                "dots": [(*place((x, y)), f"{curve.name}, {x_unit} {x:,.0f}: {y:.5g}") for x, y in finite[id(curve)]],
                "last": finite[id(curve)][-1][1],
            }
            for curve in drawn
            if finite[id(curve)]
        ],
        "unit": unit,
        "x_unit": x_unit,
        "beyond": beyond,
        "xs": _axis(x_low, x_high),
        "ys": _axis(y_low, y_high),
    }


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most MOST_POINTS: means of neighbours."""
    each = -(-len(points) // MOST_POINTS)
    if each <= 1:
        return points
    groups = [points[first : first + each] for first in range(0, len(points), each)]
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def _inliers(values: Sequence[float]) -> list[float]:
    """Without what would flatten all else, such as the first loss: what is farther off than most are wide spread."""
    ordered = sorted(values)
    low, high = ordered[len(ordered) // 20], ordered[-1 - len(ordered) // 20]
    return [value for value in values if low - (high - low) <= value <= high + (high - low)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    """From the least to the greatest, and some way round a single value."""
    low, high = min(values), max(values)
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    around = abs(low) / 2 or 1.0
    return low - around, high + around


def _axis(low: float, high: float) -> list[tuple[float, str]]:
    """Round values between the ends: place in percent, text."""
    least = (high - low) / _MOST_TICKS
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
    numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
    return [(round((n * step - low) / (high - low) * 100, 2), _text(n * step, step)) for n in numbers]


def _text(value: float, step: float) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if step >= size or abs(value) >= 10 * size:
            value, step = value / size, step / size
            return f"{value:.{_digits(step)}f}{letter}" if value else "0"
    return f"{value:.{_digits(step)}f}" if step >= 1e-4 else f"{value:.2g}"


def _digits(step: float) -> int:
    """Decimals that tell multiples of a step apart."""
    return max(0, -math.floor(math.log10(step) + 1e-9))


def _ends(labels: Sequence[str]) -> list[tuple[float, str]]:
    """The first label and the last."""
    if len(labels) < 2:
        return [(50.0, label) for label in labels]
    return [(0.0, labels[0]), (100.0, labels[-1])]
