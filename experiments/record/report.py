"""A run on one page: final numbers, curves, topology and layers.

    python -m experiments.record.report WORKDIR

The page opens without a network: its figures are in it. It is written from the record
alone (`metrics.jsonl`, `config.json`, `environment.json`, `layers.json`), of which any
part may still be missing.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from experiments.record.figures import (
    Line,
    best_validation,
    draw_figures,
    in_natural_order,
    points,
)
from experiments.record.files import write_atomically
from experiments.record.metrics import read_metrics

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
    """Writes `report.html`, one page that opens without a network.

    Args:
        workdir: The run's directory, finished or not.

    Returns:
        The page's path.

    Raises:
        ValueError: If `workdir` is no directory or a line of its record is damaged.
    """
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
        for place, image in draw_figures(lines, target)
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
    """Writes the report of a run and prints its path.

    Args:
        args: The command line's arguments; those of this process by default.
    """
    parser = argparse.ArgumentParser(description="Writes the report of a run.")
    parser.add_argument("workdir", type=Path, help="the run's directory")
    try:
        print(write_report(parser.parse_args(args).workdir))
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
