"""Figures of several runs as tables."""

from statistics import median

MOST_CHANGED = 0.15  # of a figure, by what stands beside the jobs


def print_figures(results):
    """Print a line for each figure of each workload: ``results`` is {workload: [figures of a run, …]}."""
    rows = [("workload", "figure", "median", "range", "unit", "reference", "ratio", "goal", "")]
    for workload, runs in results.items():
        rows += [(workload, *_cells(figures)) for figures in zip(*runs, strict=True)]
    _print(rows)


def print_beside(results):
    """Print what blocked queues or done jobs change, where a workload was measured with and without them."""
    rows = [("workload", "figure", "alone", "beside", "unit", "change", "goal", "")]
    for name, runs in results.items():
        workload, _, beside = name.partition("-")
        if beside:
            pairs = zip(zip(*results[workload], strict=True), zip(*runs, strict=True), strict=True)
            rows += [(name, *_change(alone, crowded)) for alone, crowded in pairs]
    if len(rows) > 1:
        _print(rows)


def _cells(figures):
    """Return the cells of one figure, measured in several runs."""
    first = figures[0]
    value, references, ratios = _value(figures), [f.reference for f in figures], [f.ratio for f in figures]
    reference, ratio = (None, None) if None in references else (median(references), median(ratios))
    spread = f"{number(min(f.value for f in figures))} … {number(max(f.value for f in figures))}"
    goal = met = ""
    if first.goal is not None:
        reached = ratio if first.goal_of == "ratio" else value
        goal = f"{'≥' if first.more_is_better else '≤'} {first.goal:,g}{' ratio' if first.goal_of == 'ratio' else ''}"
        met = _met(reached >= first.goal if first.more_is_better else reached <= first.goal)
    return first.name, number(value), spread, first.unit, number(reference), _ratio(ratio), goal, met


def _change(alone, beside):
    first, change = alone[0], _value(beside) / _value(alone) - 1
    loss = -change if first.more_is_better else change
    goal, met = ("", "") if first.goal is None else (f"≤ {MOST_CHANGED:.0%} worse", _met(loss <= MOST_CHANGED))
    return first.name, number(_value(alone)), number(_value(beside)), first.unit, f"{change:+.0%}", goal, met


def _value(figures):
    return median(figure.value for figure in figures)


def _met(is_met):
    return "met" if is_met else "MISSED"


def number(value):
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _ratio(value):
    return "" if value is None else f"{value:.2f}"


def _print(rows):
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(flush=True)
