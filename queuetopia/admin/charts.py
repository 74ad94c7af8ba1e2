"""Time charts as SVG that the server draws: no script, no style in the page, no library.

A template makes the picture of what is returned here. All numbers are also in a table beside it, for whoever does not
see pictures.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ..times import local_minute

WIDTH, HEIGHT = 320, 64


@dataclass
class Line:
    """One line of a chart: its name, and the number of each moment; None where there is none."""

    name: Any
    values: list[float | None]
    kind: str = "first"  # a class of the style sheet, which gives the line its colour and its dashes


def chart(title: Any, moments: list[datetime], lines: list[Line], unit: Any = "") -> dict[str, Any]:
    """Return what the template draws: a path for each line, scaled to the highest number of all."""
    highest = max((value for line in lines for value in line.values if value is not None), default=0)
    return {
        "title": title,
        "unit": unit,
        "width": WIDTH,
        "height": HEIGHT,
        "highest": number(highest),
        "lines": [
            {"name": line.name, "kind": line.kind, "path": _path(line.values, highest), "last": _last(line.values)}
            for line in lines
        ],
        "rows": [
            (
                local_minute(moment),
                ["-" if line.values[place] is None else number(line.values[place]) for line in lines],
            )
            for place, moment in enumerate(moments)
        ],
        "begins": local_minute(moments[0]) if moments else "",
        "ends": local_minute(moments[-1]) if moments else "",
    }


def number(value) -> str:
    """Return a number as text."""
    if value >= 10 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.2g}"


def _last(values):
    known = [value for value in values if value is not None]
    return number(known[-1]) if known else "-"


def _path(values, highest):
    """Return the ``d`` of an SVG path; where numbers are missing, the line is interrupted."""
    step = WIDTH / max(1, len(values) - 1)
    parts, is_drawn = [], False
    for place, value in enumerate(values):
        if value is None:
            is_drawn = False
            continue
        y = HEIGHT - 1 - (HEIGHT - 2) * (value / highest if highest else 0)
        parts.append(f"{'L' if is_drawn else 'M'}{place * step:.1f} {y:.1f}")
        if not is_drawn:
            parts.append("h.1")  # a lone number is a dot
        is_drawn = True
    return "".join(parts)
