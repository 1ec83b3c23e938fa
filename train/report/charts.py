"""Draw line charts as SVG text, for self-contained HTML pages."""

from collections.abc import Mapping, Sequence
from html import escape
from math import floor, isfinite, log10

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 56, 10, 26, 30
COLOURS = ("#1f6fb4", "#d9541e", "#2a9d5c", "#8a56b0")

Points = Sequence[tuple[float, float | None]]
"""(x, y) pairs; points whose y is None or not finite are left out."""


def chart(
    title: str,
    lines: Mapping[str, Points],
    *,
    marks: Mapping[float, str] | None = None,
) -> str:
    """Draw one chart over the epochs.

    ``lines`` has points by name, for at most four lines; ``marks`` are vertical lines, x to label.

    Returns:
        An ``<svg>`` element of 420 x 240 pixels.
    """
    finite = {
        name: [(x, y) for x, y in points if y is not None and isfinite(y)]
        for name, points in lines.items()
    }
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points]
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">',
        f'<text x="{LEFT}" y="16" class="title">{escape(title)}</text>',
    ]
    if not xs:
        return "".join([*parts, f'<text x="{LEFT}" y="60">no data</text></svg>'])
    low_x, high_x = min(xs), max(xs)
    ticks = _ticks(min(ys), max(ys))
    low_y, high_y = min(ticks[0], *ys), max(ticks[-1], *ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - low_x) / (high_x - low_x) if high_x > low_x else 0.5
        up = (y - low_y) / (high_y - low_y) if high_y > low_y else 0.5
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    for tick in ticks:
        _, y = place(low_x, tick)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" class="end">{tick:g}</text>')
    for x, label in (marks or {}).items():
        at, _ = place(x, low_y)
        parts.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}" ')
        parts.append(f'class="mark"/><text x="{at + 4:.1f}" y="{TOP + 10}">{escape(label)}</text>')
    for x in sorted({low_x, high_x}):
        at, _ = place(x, low_y)
        side = "end" if x == high_x > low_x else ""
        parts.append(f'<text x="{at:.1f}" y="{HEIGHT - 10}" class="{side}">epoch {x:g}</text>')
    for number, (name, points) in enumerate(finite.items()):
        colour = COLOURS[number % len(COLOURS)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in (place(x, y) for x, y in points))
        parts.append(f'<polyline points="{path}" stroke="{colour}"/>')
        for x, y in points:
            a, b = place(x, y)
            parts.append(
                f'<circle cx="{a:.1f}" cy="{b:.1f}" r="2.5" fill="{colour}">'
                f"<title>{escape(name)}, epoch {x:g}: {y:.5g}</title></circle>"
            )
        if len(finite) > 1:  # The title names a single line.
            at = WIDTH - RIGHT - 62 * (len(finite) - 1 - number)
            parts.append(
                f'<text x="{at}" y="16" class="end" style="fill: {colour}">{escape(name)}</text>'
            )
    return "".join([*parts, "</svg>"])


def _ticks(low: float, high: float) -> list[float]:
    """Return three to six round numbers that cover ``low`` to ``high``."""
    if high <= low:
        return [low]
    rough = (high - low) / 4
    size = 10 ** floor(log10(rough))
    step = next(size * factor for factor in (1, 2, 5, 10) if size * factor >= rough)
    first = floor(low / step)
    return [round((first + i) * step, 12) for i in range(int((high - first * step) / step) + 2)]
