"""How the figures change with what is there: throughput over blocked queues, over jobs waiting and over nodes, each
beside the reference of ``drain``, and what a new job waits over the load that others make.
"""

from dataclasses import replace

from .figures import FULL
from .processes import run
from .tables import number

CURVES = {
    "blocked queues": ("drain", [{"blocked": count} for count in (0, 1_000, 10_000, 100_000, 1_000_000)]),
    "jobs waiting": ("drain", [{"waiting": count} for count in (0, 10_000, 100_000, 1_000_000)]),
    "nodes": ("drain", [{"nodes": count} for count in (1, 2, 4)]),
    "jobs/s of others": ("crowded", [{"rate": rate} for rate in (0, 500, 1_000, 2_000, 4_000)]),
}


def measure(environment, picture=None):
    """Measure and print the curves, each point once; draw them into this SVG file (dependency group ``benchmarks``)."""
    curves = {name: list(points(name, environment)) for name in CURVES}
    if picture:
        draw(curves, picture)


def points(name, environment):
    """Measure and print one curve: pairs of x and the figures there."""
    workload, settings = CURVES[name]
    for values in settings:
        (x,) = values.values()
        figures = run(workload, replace(FULL, **values), environment)
        texts = [
            f"{figure.name} {number(figure.value)} {figure.unit}" for figure in figures if figure.goal_of != "ratio"
        ]
        reference = figures[0].reference
        texts.append(f"reference {number(reference)}" if reference else "")
        print(f"{x:>9,} {name}: {'; '.join(filter(None, texts))}", flush=True)
        yield x, figures


def draw(curves, path):
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    picture, places = pyplot.subplots(2, 2, figsize=(10, 7), layout="constrained")
    for place, (name, found) in zip(places.flat, curves.items(), strict=True):
        positions = range(len(found))
        for label, values in lines(found).items():
            place.plot(positions, values, marker="o", label=label)
        place.set_xticks(positions, [f"{x:,}" for x, _ in found])
        place.set(xlabel=name, ylabel=found[0][1][0].unit, ylim=(0, None))
        place.legend()
    picture.savefig(path, metadata={"Date": None})


def lines(found):
    """Return {label: values along the curve}."""
    first = found[0][1]
    if first[0].reference is None:
        return {figure.name: [figures[n].value for _, figures in found] for n, figure in enumerate(first)}
    return {
        "through worker processes": [figures[0].value for _, figures in found],
        "reference: SQL in one process": [figures[0].reference for _, figures in found],
    }
