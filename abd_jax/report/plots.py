"""Plots as inline SVG whose colors are the page's CSS variables, so that they fit light, dark and paper.

Matplotlib is given a stand-in for each color, which is then replaced by `var(--name)`; text stays text.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import matplotlib
import numpy as np
from jaxtyping import Float
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from abd_jax.report.artifacts import Inversion, Vaccine
from abd_jax.report.names import short_name
from abd_jax.report.reading import Student
from abd_jax.training.audit import Examination

_COLORS = ("ink", "muted", "grid", "none", "sv", "sr", "abd", "clean_kd", "extra", "tail", "bulk")
_STAND_INS = {name: f"#0{index:x}0{index:x}f{index:x}" for index, name in enumerate(_COLORS)}
_DASHES = {
    "none": "solid",
    "abd": "solid",
    "sv": (0, (5, 1.5)),
    "sr": (0, (1.2, 1.2)),
    "clean_kd": (0, (6, 1.5, 1, 1.5)),
}
_SIZE = (4.9, 3.1)
_SETTINGS: dict[Any, Any] = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 10.0,
    "axes.titlesize": 11.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.8,
    "axes.edgecolor": _STAND_INS["muted"],
    "axes.labelcolor": _STAND_INS["muted"],
    "axes.titlecolor": _STAND_INS["ink"],
    "text.color": _STAND_INS["ink"],
    "xtick.color": _STAND_INS["muted"],
    "ytick.color": _STAND_INS["muted"],
    "grid.color": _STAND_INS["grid"],
    "grid.linewidth": 0.8,
}
_NAME = 14  # characters of a class's name beside its bar
_SCALE = 1.25  # runs whose lengths differ by more are drawn over the share of their training


def color_variable(defense: str) -> str:
    """The CSS variable of a student's color, without its two dashes."""
    return defense if defense in _DASHES else "extra"


def spread(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved up, then down where they must, so that neighbors are `gap` apart inside [low, high]."""
    order = sorted(range(len(positions)), key=lambda index: positions[index])
    moved = [min(max(positions[index], low), high) for index in order]
    for index in range(1, len(moved)):
        moved[index] = max(moved[index], moved[index - 1] + gap)
    ceiling = high
    for index in reversed(range(len(moved))):
        moved[index] = min(moved[index], ceiling)
        ceiling = moved[index] - gap
    result = [0.0] * len(positions)
    for place, index in enumerate(order):
        result[index] = moved[place]
    return result


def curves(rate: str, students: Sequence[Student], teacher: float | None, where: str) -> Markup:
    """ACC or ASR over training: a thin line per seed, their mean bold if there are several, named at its end.

    Args:
        rate: `acc` or `asr`.
        students: of one trigger, each with at least one point.
        teacher: the teacher's rate, drawn as a level line.
        where: what distinguishes this plot from others like it; seeds the SVG's ids.
    """
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure()
        ends = []
        if teacher is not None:
            axes.axhline(100 * teacher, color=_STAND_INS["muted"], linewidth=1.0, linestyle=(0, (2, 2)), zorder=1)
            ends.append((100 * teacher, "teacher", "muted"))
        lengths = _lengths(students)
        for defense, group in _by_defense(students).items():
            lines = [(_positions(one, lengths), 100 * np.asarray(getattr(one.curve, rate))) for one in group]
            _draw(axes, defense, lines)
            end = float(np.mean([values[-1] for _, values in lines]))
            ends.append((end, short_name(defense), color_variable(defense)))
        axes.set_xlim(0, max(float(_positions(one, lengths)[-1]) for one in students) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.set_ylim(-2, 102)
        axes.set_yticks([0, 25, 50, 75, 100])
        axes.grid(axis="y")
        axes.set_axisbelow(True)
        axes.set_title(f"{rate.upper()} in percent", loc="left")
        axes.set_xlabel("percent of the run’s training steps" if lengths else "training step")
        _name_ends(axes, ends)
        figure.subplots_adjust(left=0.085, right=0.77, top=0.9, bottom=0.155)
        return _svg(figure, curves_text(rate, students, teacher), f"{where}/{rate}")


def curves_text(rate: str, students: Sequence[Student], teacher: float | None) -> str:
    """The plot in words: where each student ends."""
    parts = []
    for defense, group in _by_defense(students).items():
        end = 100 * float(np.mean([getattr(one.curve, rate)[-1] for one in group]))
        parts.append(f"{short_name(defense)} at {end:.1f} %" + (f" (mean of {len(group)} seeds)" if group[1:] else ""))
    level = "" if teacher is None else f" The teacher stands at {100 * teacher:.1f} %."
    return f"Line plot of {rate.upper()} over training. At its last measurement: {', '.join(parts)}.{level}"


def histogram(vaccine: Vaccine, where: str) -> Markup:
    """log10 KL(T ‖ T~) of the last trial's synthesized images, the tail below the threshold in the warning color."""
    values = vaccine.log_kl[-1]
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure()
        edges = _edges([values], vaccine.threshold, 36)
        counts, _ = np.histogram(values, edges)
        tail = edges[1:] <= vaccine.threshold + 1e-9
        width = edges[1] - edges[0]
        for part, color in ((~tail, "bulk"), (tail, "tail")):
            axes.bar(edges[:-1][part], counts[part], width=0.92 * width, align="edge", color=_STAND_INS[color])
        axes.set_ylim(0, 1.22 * max(int(counts.max()), 1))
        _threshold(axes, vaccine.threshold)
        left = f"tail {100 * vaccine.tail:.1f} %"
        axes.text(0.015, 0.97, left, transform=axes.transAxes, va="top", color=_STAND_INS["tail"], fontweight="bold")
        axes.set_title("Synthesized images, at the choice of T~", loc="left")
        axes.set_ylabel("images")
        axes.set_xlabel("log₁₀ KL(T ‖ T~)")
        figure.subplots_adjust(left=0.12, right=0.97, top=0.9, bottom=0.155)
        label = (
            f"Histogram of log10 KL of {values.size} synthesized images: mean {values.mean():.2f}, standard deviation "
            f"{values.std():.2f}, threshold {vaccine.threshold:.2f}, {100 * vaccine.tail:.1f} % of images below it."
        )
        return _svg(figure, label, f"{where}/histogram")


def diagnosis(vaccine: Vaccine, where: str) -> Markup | None:
    """log10 KL(T ‖ T~) of final synthesized, clean and triggered test images under each other; None if not measured."""
    groups = [
        (name, values, color)
        for name, values, color in (
            ("synthesized, at the end", vaccine.synthetic, "bulk"),
            ("clean test images", vaccine.clean, "clean_kd"),
            ("triggered test images", vaccine.triggered, "none"),
        )
        if values is not None
    ]
    if not groups:
        return None
    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=_SIZE)
        figure.text(0.03, 0.925, "Diagnosis, after the run", fontsize=_SETTINGS["axes.titlesize"])
        edges = _edges([values for _, values, _ in groups], vaccine.threshold, 44)
        panels = np.atleast_1d(figure.subplots(len(groups), 1, sharex=True))
        for axes, (name, values, color) in zip(panels, groups, strict=True):
            counts, _ = np.histogram(values, edges)
            axes.stairs(counts / values.size, edges, fill=True, color=_STAND_INS[color])
            axes.axvline(vaccine.threshold, color=_STAND_INS["ink"], linewidth=1.2, linestyle=(0, (4, 2)))
            axes.set_yticks([])
            axes.spines["left"].set_visible(False)
            below = 100 * float(np.mean(values < vaccine.threshold))
            axes.set_title(
                f"{name}: {below:.0f} % below the threshold", loc="left", fontsize=10, pad=2, color=_STAND_INS["muted"]
            )
        panels[-1].set_xlabel("log₁₀ KL(T ‖ T~)")
        figure.subplots_adjust(left=0.03, right=0.97, top=0.83, bottom=0.155, hspace=0.62)
        parts = [f"{name}: median {np.median(values):.2f}" for name, values, _ in groups]
        label = f"Histograms of log10 KL under each other. {'; '.join(parts)}. Threshold {vaccine.threshold:.2f}."
        return _svg(figure, label, f"{where}/diagnosis")


def sizes(inversion: Inversion | Examination, names: Mapping[int, str], where: str) -> Markup:
    """Pixels of each class's trigger, and behind the bar how often it flips; the smallest in the warning color.

    Args:
        inversion: what was found.
        names: the classes that are drawn, from top to bottom, and what they are called.
        where: what distinguishes this plot from others like it; seeds the SVG's ids.
    """
    drawn, median = inversion.sizes[list(names)], float(np.median(inversion.sizes))
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure()
        short = [name if len(name) <= _NAME else name[: _NAME - 1] + "…" for name in names.values()]
        colors = [_STAND_INS["tail" if index == inversion.suspect else "bulk"] for index in names]
        axes.barh(range(len(names)), drawn, height=0.75, color=colors)
        axes.set_yticks(range(len(names)), short)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(0, 1.05 * max(float(drawn.max()), median, 1.0))
        for place, index in enumerate(names):
            smallest = index == inversion.suspect
            axes.text(
                1.03,
                place,
                f"{100 * inversion.flips[index]:.0f} %",
                transform=axes.get_yaxis_transform(),
                color=_STAND_INS["tail" if smallest else "muted"],
                va="center",
                fontweight="bold" if smallest else "normal",
            )
        axes.axvline(median, color=_STAND_INS["ink"], linewidth=1.2, linestyle=(0, (4, 2)))
        axes.tick_params(axis="y", length=0)
        axes.set_title("Size of each class’s trigger", loc="left")
        axes.text(1.03, 1.03, "flips", transform=axes.transAxes, color=_STAND_INS["muted"])
        axes.set_xlabel("pixels")
        figure.subplots_adjust(left=0.04 + 0.018 * max(map(len, short)), right=0.87, top=0.9, bottom=0.155)
        parts = [
            f"{name}{' (smallest)' if index == inversion.suspect else ''}: {inversion.sizes[index]:.1f} pixels, "
            f"flips {100 * inversion.flips[index]:.0f} %"
            for index, name in names.items()
        ]
        label = f"Bar chart of trigger sizes. {'; '.join(parts)}. Median of all classes: {median:.1f} pixels."
        return _svg(figure, label, f"{where}/sizes")


def roc(points: Mapping[str, Sequence[tuple[float, float]]], areas: Mapping[str, float], where: str) -> Markup:
    """ROC curves of several signs: hits against false alarms, the area under each behind its name.

    Args:
        points: sign → (share of false alarms, share of hits), from (0, 0) to (1, 1).
        areas: sign → area under its curve.
        where: what distinguishes this plot from others like it; seeds the SVG's ids.
    """
    styles = list(
        zip(("none", "sv", "sr", "abd", "extra"), ("-", "--", ":", "-.", (0, (6, 1, 1, 1, 1, 1))), strict=True)
    )
    with matplotlib.rc_context(_SETTINGS):
        figure, axes = _figure()
        axes.plot([0, 100], [0, 100], color=_STAND_INS["muted"], linewidth=0.8)
        for (name, curve), (color, dashes) in zip(points.items(), styles, strict=False):
            x, y = 100 * np.asarray(curve).T
            label = f"{name} {areas[name]:.2f}"
            axes.plot(x, y, color=_STAND_INS[color], linestyle=dashes, linewidth=1.8, label=label)
        axes.set_xlim(-2, 102)
        axes.set_ylim(-2, 102)
        axes.grid()
        axes.set_axisbelow(True)
        axes.set_title("Hits against false alarms, percent", loc="left")
        axes.set_xlabel("clean teachers called suspicious")
        axes.legend(loc="lower right", frameon=False, title="area under it")
        figure.subplots_adjust(left=0.085, right=0.97, top=0.9, bottom=0.155)
        label = "ROC curves. Area under each: " + ", ".join(f"{name} {area:.2f}" for name, area in areas.items())
        return _svg(figure, f"{label}.", f"{where}/roc")


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=_SIZE)
    return figure, figure.subplots()


def _by_defense(students: Sequence[Student]) -> dict[str, list[Student]]:
    groups: dict[str, list[Student]] = {}
    for student in students:
        groups.setdefault(student.defense, []).append(student)
    return groups


def _draw(axes: Axes, defense: str, lines: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """One line, or thin ones and their bold mean over the steps that all of them have."""
    style: dict[str, Any] = {
        "color": _STAND_INS[color_variable(defense)],
        "linestyle": _DASHES.get(defense, (0, (3, 1, 1, 1, 1, 1))),
    }
    style |= {"linewidth": 0.9, "alpha": 0.55} if len(lines) > 1 else {"linewidth": 2.0}
    for positions, values in lines:
        axes.plot(positions, values, **style, marker="o" if len(positions) == 1 else None)
    if len(lines) > 1:
        columns = [dict(zip(positions.tolist(), values.tolist(), strict=True)) for positions, values in lines]
        common = sorted(set(columns[0]).intersection(*columns[1:]))
        means = [np.mean([column[position] for column in columns]) for position in common]
        axes.plot(common, means, **(style | {"linewidth": 2.2, "alpha": 1.0}))


def _name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Writes name and value at the right edge, at the height of the value or as near as the others let it."""
    heights = spread([value for value, _, _ in ends], 8.0, 0.0, 100.0)
    for (value, name, color), height in zip(ends, heights, strict=True):
        axes.text(
            1.03,
            height,
            f"{name} {value:.1f}",
            transform=axes.get_yaxis_transform(),
            color=_STAND_INS[color],
            va="center",
            fontweight="normal" if color == "muted" else "bold",
        )


def _threshold(axes: Axes, threshold: float) -> None:
    axes.axvline(threshold, color=_STAND_INS["ink"], linewidth=1.2, linestyle=(0, (4, 2)))
    low, high = axes.get_xlim()
    before = threshold > (low + high) / 2
    axes.annotate(
        f"threshold {threshold:.2f}".replace("-", "\N{MINUS SIGN}"),
        xy=(threshold, 0.97),
        xycoords=axes.get_xaxis_transform(),
        xytext=(-5 if before else 5, 0),
        textcoords="offset points",
        va="top",
        ha="right" if before else "left",
    )


def _edges(groups: Sequence[np.ndarray], threshold: float, bins: int) -> Float[np.ndarray, " edges"]:
    """Bin edges over all groups and the threshold, one of them exactly at the threshold."""
    values = np.concatenate([*groups, [threshold]])
    low, high = float(values.min()), float(values.max())
    width = max((high - low) / bins, 1e-3)
    before, after = int(np.ceil((threshold - low) / width)) + 1, int(np.ceil((high - threshold) / width)) + 1
    return threshold + width * np.arange(-before, after + 1)


def _lengths(students: Sequence[Student]) -> dict[str, int] | None:
    """How long each defense's runs are, if finished runs differ too much in length for one axis of steps."""
    lengths: dict[str, int] = {}
    for finished in (True, False):
        known = set() if finished else set(lengths)
        for student in students:
            if student.finished == finished and student.defense not in known:
                lengths[student.defense] = max(lengths.get(student.defense, 1), student.curve.last_step)
    complete = [lengths[student.defense] for student in students if student.finished]
    return lengths if complete and max(complete) > _SCALE * min(complete) else None


def _positions(student: Student, lengths: dict[str, int] | None) -> Float[np.ndarray, " points"]:
    """Where the student's points stand on the axis: steps, or percent of the run."""
    steps = np.asarray(student.curve.steps, float)
    return steps if lengths is None else 100 * steps / lengths[student.defense]


def _svg(figure: Figure, label: str, salt: str) -> Markup:
    """The figure as an `<svg>` to stand inside a page: no size, no foreign colors, no ids that nothing refers to."""
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": salt}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]*;? ?", "", text)  # the page's own
    for name, stand_in in _STAND_INS.items():
        text = text.replace(stand_in, f"var(--{name.replace('_', '-')})")
    used = set(re.findall(r"#([\w-]+)[\")]", text))
    text = re.sub(r' id="([^"]*)"', lambda match: match[0] if match[1] in used else "", text)
    view = re.search(r'viewBox="[^"]*"', text)
    assert view is not None
    body = text[text.index(">") + 1 :]
    return Markup(f'<svg {view[0]} xmlns="http://www.w3.org/2000/svg" role="img" aria-label="{escape(label)}">{body}')
