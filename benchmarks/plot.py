"""The plot of docs/benchmarks.md."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.concurrency import CURVE_CLIENTS, Summary
from benchmarks.report import PLOT

_COLORS = ("#1b6ca8", "#c0392b", "#7f8c8d")


def plot_curves(curves: Mapping[str, Mapping[int, Summary]]) -> None:
    """Draw p50 and p99 for each number of clients into docs/benchmarks.svg. The same numbers give the same bytes."""
    mpl.rcParams["svg.hashsalt"] = "runed"
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    for (name, points), color in zip(curves.items(), _COLORS, strict=False):
        p50, p99 = zip(*((point.p50 * 1000, point.p99 * 1000) for point in points.values()), strict=True)
        axes.plot(list(points), p50, color=color, marker="o", label=f"{name}: p50")
        axes.plot(list(points), p99, color=color, marker="o", ls="--", mfc="w", label=f"{name}: p99")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(CURVE_CLIENTS, [str(clients) for clients in CURVE_CLIENTS])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("clients, each with one short text after the other")
    axes.set_ylabel("milliseconds a text")
    axes.set_title("all-MiniLM-L6-v2, f16", fontsize="medium")
    axes.grid(which="both", alpha=0.25)
    axes.legend(fontsize="small")
    figure.savefig(PLOT, format="svg", metadata={"Date": None})
