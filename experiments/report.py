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
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogFormatter, MaxNLocator, PercentFormatter

from experiments.files import write_atomically
from experiments.record import Kind, read_metrics, read_speed

Line = Mapping[str, Any]

# Okabe and Ito's colours, told apart by colour-blind readers; marks differ as well.
_STYLES: dict[Kind, dict[str, Any]] = {
    "train": {"color": "#0072B2", "linewidth": 1.0},
    "validation": {"color": "#D55E00", "marker": "o", "markersize": 3.5},
    "test": {"color": "#009E73", "marker": "s", "markersize": 3.5, "linestyle": "--"},
    "topology": {"color": "#7A4988", "marker": "^", "markersize": 3.5},
}
_BY_LAYER = ("density/", "gradient_flow/", "dead_units/", "dead_inputs/")
_GREY = "#5F6B76"
_EMPTY = "#D9DDE1"

_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": _GREY,
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
    """Finds where a metric was recorded."""
    found = [
        (line["step"], float(line[name]))
        for line in lines
        if name in line and kind in (None, line["kind"])
    ]
    return [step for step, _ in found], [value for _, value in found]


def best_validation(lines: Sequence[Line]) -> tuple[int, float] | None:
    """Finds the first step with the highest validation accuracy."""
    pairs = zip(*points(lines, "accuracy", "validation"))
    sound = [(step, value) for step, value in pairs if math.isfinite(value)]
    return max(sound, key=lambda pair: pair[1]) if sound else None


def in_natural_order(path: str) -> list[tuple[int, int | str]]:
    """Gives a key to sort by that puts Conv_2 before Conv_10."""
    parts = re.split(r"(\d+)", path)
    return [(0, int(part)) if part.isdecimal() else (1, part) for part in parts]


# Each function below returns a figure, or None where nothing was recorded to draw.


_MARGINS = {"left": 0.13, "right": 0.97, "bottom": 0.15, "top": 0.9}


def _axes(title: str, label: str = "") -> tuple[Figure, Axes]:
    figure = Figure(figsize=(5.4, 3.1))  # a layout engine takes twice the time
    axes = figure.subplots(gridspec_kw=_MARGINS)
    axes.set_title(title)
    axes.set_xlabel("step")
    axes.set_ylabel(label)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True))
    return figure, axes


def _curves(
    lines: Sequence[Line], name: str, title: str, best: tuple[int, float] | None = None
) -> Figure | None:
    figure, axes = _axes(title)
    for kind, style in _STYLES.items():
        steps, values = points(lines, name, kind)
        if steps:
            axes.plot(steps, values, label=kind, **style)
    if not axes.lines:
        return None
    if best is not None:
        axes.axvline(
            best[0], color=_GREY, linewidth=1, linestyle=":", label="best validation"
        )
    if len(axes.lines) > 1:
        axes.legend()
    return figure


def _loss(lines: Sequence[Line]) -> Figure | None:
    return _curves(lines, "loss", "Loss", best_validation(lines))


def _accuracy(lines: Sequence[Line]) -> Figure | None:
    figure = _curves(lines, "accuracy", "Accuracy", best_validation(lines))
    if figure is not None:
        figure.axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def _throughput(lines: Sequence[Line]) -> Figure | None:
    figure = _curves(lines, "examples_per_second", "Examples per second")
    if figure is not None:
        figure.axes[0].set_ylim(bottom=0)
    return figure


def _data_wait(lines: Sequence[Line]) -> Figure | None:
    figure = _curves(lines, "data_wait", "Share of the time spent waiting for data")
    if figure is not None:
        figure.axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    return figure


def _density(lines: Sequence[Line], target: float | None) -> Figure | None:
    steps, sparsities = points(lines, "sparsity")
    if not steps:
        return None
    figure, axes = _axes("Density of the prunable weights")
    # Masks stay as they are until the next update, and until now after the last.
    steps, sparsities = [*steps, lines[-1]["step"]], [*sparsities, sparsities[-1]]
    density = 1 - np.asarray(sparsities)
    axes.plot(steps, density, color="#0072B2", drawstyle="steps-post")
    axes.fill_between(steps, density, step="post", color="#0072B2", alpha=0.12)
    if target is not None:
        axes.axhline(1 - target, color=_GREY, linewidth=1, linestyle=":")
        axes.annotate(
            f"target {1 - target:.4g}",
            (1, 1 - target),
            xycoords=("axes fraction", "data"),
            xytext=(0, 3),
            textcoords="offset points",
            ha="right",
            color=_GREY,
        )
    axes.set_ylim(0, 1.03)
    return figure


def _churn(lines: Sequence[Line]) -> Figure | None:
    steps, churn = points(lines, "churn", "topology")
    if not steps:
        return None
    figure, axes = _axes("Mask churn at each topology update", "of the active weights")
    axes.vlines(steps, 0, churn, color="#7A4988", linewidth=0.8, alpha=0.5)
    axes.plot(steps, churn, "o", color="#7A4988", markersize=3.5)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(bottom=0)
    return figure


def _exchange(lines: Sequence[Line]) -> Figure | None:
    figure, axes = _axes("Weights dropped and grown at each topology update")
    marks = {"dropped": ("v", "#D55E00"), "grown": ("^", "#009E73")}
    for name, (mark, color) in marks.items():
        steps, counts = points(lines, name, "topology")
        if steps:
            axes.plot(
                steps, counts, mark, color=color, markersize=4, alpha=0.8, label=name
            )
    if not axes.lines:
        return None
    axes.yaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def _dead_units(lines: Sequence[Line]) -> Figure | None:
    figure, axes = _axes("Units that the masks have cut off", "of all units")
    drawn = {
        "dead_units": ("outputs without incoming weights", "v", "#D55E00"),
        "dead_inputs": ("inputs without weights into the layer", "^", "#0072B2"),
    }
    for name, (label, mark, color) in drawn.items():
        steps, shares = points(lines, name, "topology")
        if steps:
            axes.plot(
                steps, shares, marker=mark, markersize=3.5, color=color, label=label
            )
    if not axes.lines:
        return None
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    axes.set_ylim(bottom=0)
    axes.legend()
    return figure


def _itop_rate(lines: Sequence[Line]) -> Figure | None:
    title = "Weights active at least once: ITOP's rate R_s"
    figure = _curves(lines, "itop_rate", title)
    if figure is not None:
        figure.axes[0].yaxis.set_major_formatter(PercentFormatter(1.0))
        figure.axes[0].set_ylim(0, 1.03)
    return figure


def _gradient_flow(lines: Sequence[Line]) -> Figure | None:
    title = "Gradient flow (squared norm, active weights)"
    figure = _curves(lines, "gradient_flow", title)
    if figure is not None and np.any(np.array(points(lines, "gradient_flow")[1]) > 0):
        axis = figure.axes[0].yaxis
        figure.axes[0].set_yscale("log")
        axis.set_major_formatter(LogFormatter())
        axis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))
    return figure


def _by_layer(
    lines: Sequence[Line], name: str
) -> tuple[list[str], list[int], np.ma.MaskedArray] | None:
    """Gathers a figure of layers as rows and records of them as columns."""
    columns: dict[int, dict[str, float]] = {}
    for line in lines:
        found = {
            each.removeprefix(f"{name}/"): float(line[each])
            for each in line
            if each.startswith(f"{name}/")
        }
        if found:
            columns[line["step"]] = found
    if not columns:
        return None
    paths = sorted(set().union(*columns.values()), key=in_natural_order)
    steps = sorted(columns)
    values = [[columns[step].get(path, math.nan) for step in steps] for path in paths]
    return paths, steps, np.ma.masked_invalid(np.array(values))


def _layers(
    lines: Sequence[Line], name: str, title: str, highest: float | None = None
) -> Figure | None:
    """Draws layers as rows, on a logarithmic scale; curves would be too many."""
    gathered = _by_layer(lines, name)
    if gathered is None:
        return None
    paths, steps, values = gathered
    # Zero has no logarithm, and is worth a colour of its own.
    values = np.ma.masked_less_equal(values, 0.0)
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


def _cut_off_by_layer(lines: Sequence[Line], name: str, title: str) -> Figure | None:
    """Draws nothing for a run in which no unit was ever cut off."""
    gathered = _by_layer(lines, name)
    if gathered is None or not np.any(gathered[2].filled(0) > 0):
        return None
    return _layers(lines, name, f"{title} (logarithmic; grey for none)", highest=1.0)


# What has a figure or a place of its own.
_DRAWN = {"step", "kind", "loss", "accuracy", "sparsity", "churn", "dropped", "grown"}
_DRAWN |= {"learning_rate", "examples_per_second", "active", "updates", "skipped"}
_DRAWN |= {"itop_rate", "gradient_flow", "dead_units", "dead_inputs", "empty_layers"}
_DRAWN |= {"stray", "empty"}


def draw_figures(
    lines: Sequence[Line], target: float | None, speed: Sequence[Line] = ()
) -> list[tuple[str, str]]:
    """Draws all that the record holds something for."""
    names = {name for line in lines for name in line} - _DRAWN
    others = sorted(name for name in names if not name.startswith(_BY_LAYER))
    density = "Density by layer (logarithmic; grey where no weight is active)"
    flow = "Gradient flow by layer (logarithmic; grey where there is none)"
    outputs = "Share of output units without incoming weights"
    inputs = "Share of input units without weights into the layer"
    with matplotlib.rc_context(_SETTINGS):
        figures = [
            ("", _loss(lines)),
            ("", _accuracy(lines)),
            ("", _density(lines, target)),
            ("", _churn(lines)),
            ("", _exchange(lines)),
            ("", _itop_rate(lines)),
            ("", _gradient_flow(lines)),
            ("", _dead_units(lines)),
            ("wide", _layers(lines, "density", density, highest=1.0)),
            ("wide", _layers(lines, "gradient_flow", flow)),
            ("wide", _cut_off_by_layer(lines, "dead_units", outputs)),
            ("wide", _cut_off_by_layer(lines, "dead_inputs", inputs)),
            ("", _curves(lines, "learning_rate", "Learning rate")),
            ("", _throughput(speed)),
            ("", _data_wait(speed)),
            *(("", _curves(lines, name, name)) for name in others),
        ]
        return [(place, _image(figure)) for place, figure in figures if figure]


def _image(figure: Figure) -> str:
    buffer = io.BytesIO()
    # As text in the page, SVGs would share their ids with each other; as an image, each
    # keeps to itself.
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    data = base64.b64encode(buffer.getvalue()).decode()
    title = escape(figure.axes[0].get_title(loc="left"))
    return f'<img alt="{title}" src="data:image/svg+xml;base64,{data}">'


# The page.

Layer = Mapping[str, Any]


def _find(config: Any, *names: str) -> Any:
    """Looks a setting up by its name, outer fields first; a group gives its "name"."""
    level = [config]
    while level := [group for group in level if isinstance(group, Mapping)]:
        for name in names:
            for group in level:
                value = group.get(name)
                if isinstance(value, Mapping):
                    value = value.get("name")
                if value is not None:
                    return value
        level = [inner for group in level for inner in group.values()]
    return None


def _find_number(config: Any, *names: str) -> float | None:
    value = _find(config, *names)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number else None


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f} %"


def _prunable(layers: Sequence[Layer]) -> tuple[int, int]:
    """Counts the weights that have a mask and those of them that are active."""
    masked = [layer for layer in layers if layer["active"] is not None]
    weights, active = (
        sum(layer[name] for layer in masked) for name in ("weights", "active")
    )
    return weights, active


def _final_sparsity(layers: Sequence[Layer] | None) -> list[float]:
    weights, active = _prunable(layers or [])
    return [1 - active / weights] if weights else []


def _tiles(
    lines: Sequence[Line],
    layers: Sequence[Layer] | None,
    config: Any,
    target: float | None,
) -> list[tuple[str, str, str]]:
    """Gives the numbers to see first as (label, value, note)."""
    tiles = []
    steps, values = points(lines, "accuracy", "test")
    test_at = dict(zip(steps, values))
    if steps:
        at = f"step {steps[-1]:,}"
        tiles.append(("Test accuracy, last step", _percent(values[-1]), at))
    best = best_validation(lines)
    if best is not None:
        step, accuracy = best
        note = f"step {step:,}"
        if step not in test_at:
            note += ", where the test set was not evaluated"
        tiles += [
            ("Test accuracy, best validation", _percent(test_at.get(step)), note),
            ("Best validation accuracy", _percent(accuracy), f"step {step:,}"),
        ]
    # Masks that never change leave no line of their own.
    sparsities = points(lines, "sparsity")[1] or _final_sparsity(layers)
    if sparsities:
        note = "" if target is None else f"target {_percent(target)}"
        tiles.append(("Sparsity, realised", _percent(sparsities[-1]), note))
    if lines:
        total = _find_number(config, "total_steps")
        note = "" if total is None else f"of {total:,.0f}"
        if total is not None and lines[-1]["step"] < total:
            note += ", unfinished"
        tiles.append(("Last recorded step", f"{lines[-1]['step']:,}", note))
    empty = points(lines, "empty_layers", "topology")[1]
    if empty and empty[-1] > 0:
        note = "nothing passes through them"
        tiles.append(("Layers without an active weight", f"{empty[-1]:,.0f}", note))
    skipped = points(lines, "skipped", "topology")[1]
    if skipped and skipped[-1] > 0:
        note = "gradients or weights were not finite"
        tiles.append(("Topology updates skipped", f"{skipped[-1]:,.0f}", note))
    stray = points(lines, "stray", "topology")[1]
    if stray and stray[-1] > 0:
        note = "the network is denser than its masks"
        tiles.append(("Weights not 0 outside the masks", f"{stray[-1]:,.0f}", note))
    return tiles


def _layer_table(layers: Sequence[Layer]) -> str:
    """Draws up the layers; one that was left dense has no "active" (None)."""
    rows = []

    def add(
        path: str, shape: str, weights: int, active: int | None, style: str
    ) -> None:
        density = None if active is None else active / max(weights, 1)
        share = "-" if density is None else f"{1 - density:.4f}"
        width = 100.0 if density is None else 100 * density
        rows.append(
            f'<tr class="{style}"><td>{escape(path)}</td><td>{escape(shape)}</td>'
            f"<td class=n>{weights:,}</td>"
            f"<td class=n>{weights if active is None else active:,}</td>"
            f"<td class=n>{share}</td>"
            f'<td><span class=bar><span style="width:{width:.2f}%"></span></span></td>'
            "</tr>"
        )

    for layer in sorted(layers, key=lambda layer: in_natural_order(layer["path"])):
        active = layer["active"]
        shape = "x".join(map(str, layer["shape"])) or "scalar"
        style = "dense" if active is None else ""
        add(layer["path"], shape, layer["weights"], active, style)
    prunable, kept = _prunable(layers)
    every = sum(layer["weights"] for layer in layers)
    add("prunable", "", prunable, kept, "total")
    if prunable < every:
        add("all", "", every, every - prunable + kept, "total")
    head = "".join(
        f"<th{' class=n' if number else ''}>{name}</th>"
        for name, number in (
            ("path", False),
            ("shape", False),
            ("weights", True),
            ("active", True),
            ("sparsity", True),
            ("density", False),
        )
    )
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
    )


def _details(title: str, content: Any) -> str:
    text = escape(json.dumps(content, indent=2))
    return f"<details><summary>{title}</summary><pre>{text}</pre></details>"


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ margin: 0; background: #F6F7F9; color: #1F2933;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }}
main {{ max-width: 1120px; margin: 0 auto; padding: 24px 16px 48px; }}
h1 {{ font-size: 26px; line-height: 1.25; margin: 0; overflow-wrap: anywhere; }}
h2 {{ font-size: 18px; margin: 32px 0 12px; }}
p {{ margin: 4px 0 0; color: #52606D; }}
.tiles {{ display: grid; gap: 12px; margin: 20px 0;
  grid-template-columns: repeat(auto-fill, minmax(165px, 1fr)); }}
.tiles div, figure, .card, details {{ background: #FFF; border: 1px solid #E1E5E9;
  border-radius: 8px; }}
.tiles div {{ padding: 12px 14px; }}
.tiles span {{ display: block; font-size: 13px; color: #52606D; }}
.tiles span:first-child {{ min-height: 3em; }}
.tiles b {{ display: block; font-size: 22px; line-height: 1.35;
  font-variant-numeric: tabular-nums; }}
.figures {{ display: grid; gap: 12px; grid-template-columns: repeat(2, 1fr); }}
figure {{ margin: 0; padding: 8px; min-width: 0; }}
figure.wide {{ grid-column: 1 / -1; }}
img {{ display: block; width: 100%; height: auto; }}
.card {{ padding: 4px 14px 10px; overflow-x: auto; }}
table {{ border-collapse: collapse; width: 100%; font-size: 13px;
  font-variant-numeric: tabular-nums; }}
th, td {{ text-align: left; padding: 4px 10px 4px 0; white-space: nowrap;
  border-bottom: 1px solid #EEF0F2; }}
th {{ color: #52606D; font-weight: 600; }}
.n {{ text-align: right; padding-right: 18px; }}
.dense {{ color: #7B8794; }}
.total td {{ font-weight: 600; border-bottom: 0; border-top: 1px solid #CBD2D9; }}
.bar {{ display: block; width: 140px; height: 8px; background: #E6E9EC;
  border-radius: 4px; overflow: hidden; }}
.bar span {{ display: block; height: 100%; background: #0072B2; }}
.dense .bar span {{ background: #B8C2CC; }}
details {{ margin-top: 12px; padding: 10px 14px; }}
summary {{ cursor: pointer; font-weight: 600; }}
pre {{ margin: 10px 0 0; overflow-x: auto; font-size: 13px; }}
@media (max-width: 760px) {{ .figures {{ grid-template-columns: 1fr; }} }}
@media print {{ body {{ background: #FFF; }} figure, tr {{ break-inside: avoid; }} }}
</style>
</head>
<body>
<main>
{body}
</main>
</body>
</html>
"""


def _title(config: Any, target: float | None) -> str:
    parts = [
        _find(config, "method"),
        _find(config, "model"),
        _find(config, "dataset", "data"),
        None if target is None else f"{100 * target:.4g} % sparse",
    ]
    return " · ".join(str(part) for part in parts if part is not None) or "A run"


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_report(workdir: str | Path) -> Path:
    """Writes `report.html`, one page that opens without a network."""
    workdir = Path(workdir)
    if not workdir.is_dir():
        raise ValueError(f"workdir must be the directory of a run; got {workdir}.")
    lines = read_metrics(workdir)
    config, environment, layers = (
        _read_json(workdir / f"{name}.json")
        for name in ("config", "environment", "layers")
    )
    target = _find_number(config, "sparsity", "final_sparsity")
    title = escape(_title(config, target))
    body = [f"<h1>{title}</h1>"]
    if environment:
        about = (
            f"{environment.get('device_count')} x {environment.get('device_kind')}, "
            f"started {environment.get('start_time')}"
        )
        body.append(f"<p>{escape(about)}</p>")
    if not lines:
        body.append("<p>No metrics are recorded yet.</p>")
    tiles = "".join(
        f"<div><span>{escape(label)}</span><b>{escape(value)}</b>"
        f"<span>{escape(note)}</span></div>"
        for label, value, note in _tiles(lines, layers, config, target)
    )
    if tiles:
        body.append(f'<div class="tiles">{tiles}</div>')
    figures = "".join(
        f'<figure class="{place}">{image}</figure>'
        for place, image in draw_figures(lines, target, read_speed(workdir))
    )
    if figures:
        body.append(f'<h2>Course of the run</h2><div class="figures">{figures}</div>')
    if layers:
        body.append(f'<h2>Layers</h2><div class="card">{_layer_table(layers)}</div>')
        body.append(
            "<p>Masks simulate sparsity: an inactive weight is a stored zero, and "
            "takes as much memory and time as any other.</p>"
        )
    if config or environment:
        body.append("<h2>How it was made</h2>")
    if config:
        body.append(_details("Configuration", config))
    if environment:
        body.append(_details("Environment", environment))
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
