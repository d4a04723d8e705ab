"""A run on one page: final numbers, curves, topology and layers.

    python -m experiments.report WORKDIR

The page opens without a network: its figures are in it. It is written from the record
alone (`metrics.jsonl`, `speed.jsonl`, `config.json`, `environment.json`,
`layers.json`), of which any part may still be missing.
"""

import argparse
import base64
import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogFormatter, MaxNLocator, PercentFormatter

from experiments.colors import BLUE, GREEN, RED
from experiments.files import write_atomically
from experiments.record import Kind, read_metrics, read_speed

Line = Mapping[str, Any]
Layer = Mapping[str, Any]

# Figures.

_GRAY, _EMPTY, _PURPLE = "#5F6B76", "#D9DDE1", "#7A4988"
_KINDS: dict[Kind, dict[str, Any]] = {
    "train": {"color": BLUE, "linewidth": 1.0},
    "validation": {"color": RED, "marker": "o", "markersize": 3.5},
    "test": {"color": GREEN, "marker": "s", "markersize": 3.5, "linestyle": "--"},
    "topology": {"color": _PURPLE, "marker": "^", "markersize": 3.5},
}
# What has a figure of its own: title, metrics, and of it "best" (validation is marked),
# "percent", "log" and "zero" (where the axis starts).
_FIGURES = (
    ("Loss", ["loss"], "best"),
    ("Accuracy", ["accuracy"], "best percent"),
    ("Accuracy, top 5", ["top5_accuracy"], "percent"),
    ("Mask churn at each topology update", ["churn"], "percent zero"),
    ("Weights dropped and grown", ["dropped", "grown"], "zero"),
    ("Active at least once: ITOP's rate R_s", ["itop_rate"], "percent zero"),
    ("Gradient flow (squared norm, active weights)", ["gradient_flow"], "log"),
    ("Units without active weights", ["dead_units", "dead_inputs"], "percent zero"),
    ("Learning rate", ["learning_rate"], ""),
    ("Examples per second", ["examples_per_second"], "zero"),
    ("Time spent waiting for data", ["data_wait"], "percent zero"),
)
_LAYER_FIGURES = {
    "density": "Density by layer (logarithmic; gray where no weight is active)",
    "gradient_flow": "Gradient flow by layer (logarithmic; gray where there is none)",
    "dead_units": "Share of output units without incoming weights",
    "dead_inputs": "Share of input units without weights into the layer",
}
_UNDRAWN = {"step", "kind", "sparsity", "active", "updates", "skipped", "empty_layers"}
_UNDRAWN |= {"stray", "empty", *(name for _, names, _ in _FIGURES for name in names)}
_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": _GRAY,
    "axes.grid": True,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "font.size": 9,
    "grid.color": "#E6E9EC",
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    # Names are text, whatever dollar signs they hold, and equal runs give equal pages.
    "text.parse_math": False,
    "svg.hashsalt": "sparsejax",
}


def points(
    lines: Sequence[Line], name: str, kind: Kind | None = None
) -> tuple[list[int], list[float]]:
    """Returns the steps and values of a metric, in lines of a kind or in all."""
    found = [
        (line["step"], float(line[name]))
        for line in lines
        if name in line and kind in (None, line["kind"])
    ]
    return [step for step, _ in found], [value for _, value in found]


def best_validation(lines: Sequence[Line]) -> tuple[int, float] | None:
    """Finds the first step with the highest validation accuracy, and that."""
    pairs = zip(*points(lines, "accuracy", "validation"))
    sound = [(step, value) for step, value in pairs if math.isfinite(value)]
    return max(sound, key=lambda pair: pair[1]) if sound else None


def in_natural_order(path: str) -> list[tuple[int, int | str]]:
    """Returns a key to sort by that puts Conv_2 before Conv_10."""
    parts = re.split(r"(\d+)", path)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


def _axes(title: str) -> tuple[Figure, Axes]:
    margins = {"left": 0.13, "right": 0.97, "bottom": 0.15, "top": 0.9}
    figure = Figure(figsize=(5.4, 3.1))
    axes = figure.subplots(gridspec_kw=margins)
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    return figure, axes


def _curves(
    lines: Sequence[Line], title: str, names: Sequence[str], options: str
) -> Figure | None:
    """Draws a metric by kind, or several; None where there is nothing."""
    figure, axes = _axes(title)
    for name, color in zip(names, (RED, GREEN)):
        for kind, style in _KINDS.items():
            steps, values = points(lines, name, kind)
            if steps and len(names) > 1:
                axes.plot(steps, values, ".-", label=name, color=color)
            elif steps:
                axes.plot(steps, values, label=kind, **style)
    if not axes.lines:
        return None
    best = best_validation(lines) if "best" in options else None
    if best is not None:
        axes.axvline(best[0], label="best validation", color=_GRAY, linestyle=":")
    if len(axes.lines) > 1:
        axes.legend()
    if "percent" in options:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    if "zero" in options:
        axes.set_ylim(bottom=0)
    is_positive = any(np.any(np.asarray(line.get_ydata()) > 0) for line in axes.lines)
    if "log" in options and is_positive:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    return figure


def _density(lines: Sequence[Line], target: float | None) -> Figure | None:
    steps, sparsities = points(lines, "sparsity")
    if not steps:
        return None
    figure, axes = _axes("Density of the prunable weights")
    # Masks stay as they are until the next update, and until now after the last.
    steps, sparsities = [*steps, lines[-1]["step"]], [*sparsities, sparsities[-1]]
    density = 1 - np.asarray(sparsities)
    axes.plot(steps, density, color=BLUE, drawstyle="steps-post")
    axes.fill_between(steps, density, step="post", color=BLUE, alpha=0.12)
    if target is not None:
        text = f"target {1 - target:.4g}"
        axes.axhline(1 - target, label=text, color=_GRAY, linestyle=":")
        axes.legend()
    axes.set_ylim(0, 1.03)
    return figure


def _layers(
    lines: Sequence[Line], name: str, title: str, highest: float | None = None
) -> Figure | None:
    """Draws layers as rows, on a logarithmic scale; curves would be too many."""
    columns: dict[int, dict[str, float]] = {}
    for line in lines:
        found = {
            each.removeprefix(f"{name}/"): float(value)
            for each, value in line.items()
            if each.startswith(f"{name}/")
        }
        if found:
            columns[line["step"]] = found
    paths = sorted(set().union(*columns.values()), key=in_natural_order)
    steps = sorted(columns)
    each = [[columns[step].get(path, math.nan) for step in steps] for path in paths]
    # Zero has no logarithm, and is worth a color of its own.
    values = np.ma.masked_less_equal(np.ma.masked_invalid(np.array(each)), 0.0)
    if not columns or (name.startswith("dead") and not values.count()):
        return None
    lowest = values.min() if values.count() else 0.5
    highest = highest or (values.max() if values.count() else 1.0)
    figure = Figure(figsize=(11, 1.3 + 0.19 * len(paths)), layout="constrained")
    axes = figure.subplots()
    axes.set_title(title)
    axes.grid(False)
    axes.set_facecolor(_EMPTY)
    image = axes.pcolormesh(
        [*steps, max(lines[-1]["step"], steps[-1] + 1)],
        np.arange(len(paths) + 1),
        values,
        norm=LogNorm(min(float(lowest), highest / 2), highest),
        cmap="viridis",
        rasterized=True,
    )
    axes.set_yticks(np.arange(len(paths)) + 0.5, paths, fontsize=8)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlabel("step")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    bar = figure.colorbar(image, ax=axes, pad=0.01, aspect=40, format="%.3g")
    bar.ax.minorticks_off()
    return figure


def draw_figures(
    lines: Sequence[Line], target: float | None, speed: Sequence[Line] = ()
) -> Iterator[str]:
    """Yields HTML of a figure for all that the record holds something for."""
    others = {name for line in lines for name in line if "/" not in name} - _UNDRAWN
    everything = [*lines, *speed]
    with matplotlib.rc_context(_SETTINGS):
        figures = [_density(lines, target)]
        figures += [_curves(everything, *row) for row in _FIGURES]
        figures += [_curves(lines, name, [name], "") for name in sorted(others)]
        wide = [
            _layers(lines, name, title, None if name == "gradient_flow" else 1.0)
            for name, title in _LAYER_FIGURES.items()
        ]
        for place, group in (("", figures), ("wide", wide)):
            for figure in filter(None, group):
                yield f'<figure class="{place}">{_image(figure)}</figure>'


def _image(figure: Figure) -> str:
    buffer = io.BytesIO()
    # As text in the page, SVGs would share their ids with each other; as an image, each
    # keeps to itself.
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    title = escape(figure.axes[0].get_title(loc="left"))
    return f'<img alt="{title}" src="data:image/svg+xml;base64,{data}">'


# The page.


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _prunable(layers: Sequence[Layer]) -> tuple[int, int]:
    """Counts the weights that have a mask and those of them that are active."""
    masked = [layer for layer in layers if layer["active"] is not None]
    weights, active = (
        sum(layer[name] for layer in masked) for name in ("weights", "active")
    )
    return weights, active


def _tiles(
    lines: Sequence[Line], layers: Sequence[Layer], config: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """Yields the numbers to see first as (label, value, note)."""
    steps, values = points(lines, "accuracy", "test")
    test_at = dict(zip(steps, values))
    if steps:
        at = f"step {steps[-1]:,}"
        yield "Test accuracy, last step", _percent(values[-1]), at
    best = best_validation(lines)
    if best is not None:
        step, accuracy = best
        at = f"step {step:,}"
        note = at if step in test_at else f"{at}, where the test set was not evaluated"
        yield "Test accuracy, best validation", _percent(test_at.get(step)), note
        yield "Best validation accuracy", _percent(accuracy), at
    # Masks that never change leave no line of their own.
    weights, active = _prunable(layers)
    final = [1 - active / weights] if weights else []
    sparsities = points(lines, "sparsity")[1] or final
    if sparsities:
        target = config.get("sparsity")
        note = "" if target is None else f"target {_percent(target)}"
        yield "Sparsity, realized", _percent(sparsities[-1]), note
    if lines:
        last, total = lines[-1]["step"], config.get("total_steps")
        note = "" if total is None else f"of {total:,.0f}"
        if total is not None and last < total:
            note += ", unfinished"
        yield "Last recorded step", f"{last:,}", note
    for name, label, note in (
        ("empty_layers", "Layers without an active weight", "nothing passes them"),
        ("skipped", "Topology updates skipped", "gradients or weights not finite"),
        ("stray", "Weights not 0 outside the masks", "denser than its masks"),
    ):
        found = points(lines, name, "topology")[1]
        if found and found[-1] > 0:
            yield label, f"{found[-1]:,.0f}", note


def _layer_table(layers: Sequence[Layer]) -> str:
    """Draws up the layers; one that was left dense has no "active" (None)."""
    prunable, kept = _prunable(layers)
    every = sum(layer["weights"] for layer in layers)
    total = {"path": "prunable", "shape": None, "weights": prunable, "active": kept}
    rows = [*sorted(layers, key=lambda layer: in_natural_order(layer["path"])), total]
    if prunable < every:
        kept += every - prunable
        rows.append({**total, "path": "all", "weights": every, "active": kept})
    body = []
    for row in rows:
        weights, active = row["weights"], row["active"]
        density = 1.0 if active is None else active / max(weights, 1)
        shape = row["shape"]
        cells = (
            escape(row["path"]),
            "" if shape is None else "x".join(map(str, shape)) or "scalar",
            f"{weights:,}",
            f"{weights if active is None else active:,}",
            "-" if active is None else f"{1 - density:.4f}",
            f'<span class=bar style="width:{140 * density:.1f}px"></span>',
        )
        body.append(f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>")
    names = ("path", "shape", "weights", "active", "sparsity", "density")
    head = "".join(f"<th>{name}</th>" for name in names)
    return f"<table><tr>{head}</tr>{''.join(body)}</table>"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0 auto; max-width: 1120px; padding: 24px 16px; background: #F6F7F9;
  color: #1F2933; font: 15px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
p, .tiles span {{ color: #52606D; margin: 4px 0; display: block; font-size: 13px; }}
.tiles, .figures {{ display: grid; gap: 12px; margin: 16px 0;
  grid-template-columns: repeat(auto-fit, minmax(165px, 1fr)); }}
.figures {{ grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); }}
.tiles div, figure, table, details {{ background: #FFF; border: 1px solid #E1E5E9;
  border-radius: 8px; margin: 0; padding: 8px 14px; }}
.tiles b {{ font-size: 22px; }}
.wide {{ grid-column: 1 / -1; }}
img {{ display: block; width: 100%; }}
table {{ width: 100%; font-size: 13px; }}
th, td {{ text-align: left; padding: 4px 10px 4px 0; }}
.bar {{ display: block; height: 8px; background: #0072B2; }}
pre {{ overflow-x: auto; }}
</style>
</head>
<body>
{body}
</body>
</html>
"""


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_report(workdir: str | Path) -> Path:
    """Writes `report.html` of a run, finished or not."""
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise ValueError(f"workdir must be the directory of a run; got {workdir}.")
    lines = read_metrics(workdir)
    config, environment = (
        _read_json(workdir / f"{name}.json") or {} for name in ("config", "environment")
    )
    layers = _read_json(workdir / "layers.json") or []
    target = config.get("sparsity")
    parts = [config.get(name) for name in ("method", "model", "dataset")]
    parts.append(None if target is None else f"{100 * target:.4g} % sparse")
    title = escape(" · ".join(map(str, filter(None, parts))) or "A run")
    body = [f"<h1>{title}</h1>"]
    if environment:
        body.append(
            f"<p>{environment.get('device_count')} x "
            f"{escape(str(environment.get('device_kind')))}, started "
            f"{escape(str(environment.get('start_time')))}</p>"
        )
    if not lines:
        body.append("<p>No metrics are recorded yet.</p>")
    tiles = [
        f"<div><span>{escape(label)}</span><b>{escape(value)}</b>"
        f"<span>{escape(note)}</span></div>"
        for label, value, note in _tiles(lines, layers, config)
    ]
    body.append(f'<div class="tiles">{"".join(tiles)}</div>')
    figures = "".join(draw_figures(lines, target, read_speed(workdir)))
    if figures:
        body.append(f'<h2>Course of the run</h2><div class="figures">{figures}</div>')
    if layers:
        body.append(f"<h2>Layers</h2>{_layer_table(layers)}")
        body.append(
            "<p>Masks simulate sparsity: an inactive weight is a stored zero, and "
            "takes as much memory and time as any other.</p>"
        )
    for name, content in (("Configuration", config), ("Environment", environment)):
        if content:
            text = escape(json.dumps(content, indent=2))
            summary = f"<summary>{name}</summary>"
            body.append(f"<details>{summary}<pre>{text}</pre></details>")
    path = workdir / "report.html"
    write_atomically(path, _PAGE.format(title=title, body="\n".join(body)))
    return path


def main(args: Sequence[str] | None = None) -> None:
    """Writes the report of a run and prints its path."""
    parser = argparse.ArgumentParser(description="Writes the report of a run.")
    parser.add_argument("workdir", type=Path, help="the run's directory")
    try:
        print(write_report(parser.parse_args(args).workdir))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
