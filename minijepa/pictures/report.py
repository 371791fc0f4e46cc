"""A report as one self-contained HTML page: text, tables, curves that show values under the pointer, pictures."""

import base64
import html
import json
import math
from importlib import resources

from minijepa.pictures.curves import envelope, tick_texts, ticks

WIDTH, HEIGHT = 340, 190  # of a panel, in its own units
LEFT, TOP, RIGHT, BOTTOM = 46, 10, 332, 166


def report_page(title, sections):
    """The page of ``sections``, pieces of HTML from the functions below."""
    template = (resources.files("minijepa.pictures") / "report.html").read_text(encoding="utf-8")
    return template.replace("{TITLE}", html.escape(title).replace("{", "&#123;")).replace("{BODY}", "\n".join(sections))


def escaped(value):
    return html.escape(str(value))


def header(title, chips, figure, verdict, tone):
    """The name, facts in a row, and a large figure next to a sentence. ``tone``: "good", "bad" or ""."""
    items = "".join(f"<li>{escaped(chip)}</li>" for chip in chips)
    return (
        f'<h1>{escaped(title)}</h1><ul class="chips">{items}</ul>'
        f'<section class="card verdict {tone}"><p class="number">{escaped(figure)}</p>'
        f"<p>{escaped(verdict)}</p></section>"
    )


def figures_table(rows, note):
    """``rows``: [(name, linear probe, kNN)], numbers from 0 to 1, our own first."""
    body = "".join(
        f"<tr{' class=own' if i == 0 else ''}><td>{escaped(name)}</td>{_bar(linear)}{_bar(knn)}</tr>"
        for i, (name, linear, knn) in enumerate(rows)
    )
    return (
        '<section class="card scroll"><table class="figures"><tr><th></th><th>linear probe</th>'
        f'<th>kNN (k = 20)</th></tr>{body}</table><p class="small muted">{escaped(note)}</p></section>'
    )


def _bar(share):
    return f'<td><div class="bar"><span>{100 * share:.2f}%</span><i style="width:{100 * share:.1f}%"></i></div></td>'


def curves_grid(curves, explained):
    """A panel for each column of a Curves; ``explained``: {panel: a line about it}."""
    panels = (_panel(curves, name, explained.get(name, "")) for name in curves.columns)
    return f'<section class="grid">{"".join(panels)}</section>'


def _panel(curves, name, about):
    x, y, fine_x, fine_y = curves.of(name)
    if not len(y):
        return f'<div class="card panel"><header><h3>{escaped(name)}</h3><output>not measured</output></header></div>'
    levels = curves.levels.get(name, {})
    known = [*y, *fine_y, *levels.values()]
    marks = ticks(min(known), max(known), 4)
    ends = [*x, *fine_x[:1], *fine_x[-1:]]
    first, last = float(min(ends)), float(max(ends) if max(ends) > min(ends) else min(ends) + 1)

    def scale(epoch, value):
        """The place in the panel."""
        across, up = (epoch - first) / (last - first), (value - marks[0]) / (marks[-1] - marks[0])
        return round(float(LEFT + (RIGHT - LEFT) * across), 1), round(float(BOTTOM - (BOTTOM - TOP) * up), 1)

    fine = envelope([scale(*p) for p in zip(fine_x, fine_y)])
    parts = ['<g class="rules">']
    for tick, text in zip(marks, tick_texts(marks)):
        height = scale(first, tick)[1]
        parts.append(f'<line x1="{LEFT}" x2="{RIGHT}" y1="{height}" y2="{height}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{height + 4}" text-anchor="end">{text}</text>')
    parts.append("</g>")
    for epoch in sorted({math.ceil(first), *x[:: max(1, math.ceil(len(x) / 6))]}):
        parts.append(f'<text x="{scale(epoch, 0)[0]}" y="{BOTTOM + 16}" text-anchor="middle">{epoch:g}</text>')
    names = []
    for label, value in levels.items():
        height = scale(first, value)[1]
        parts.append(f'<line class="level" x1="{LEFT}" x2="{RIGHT}" y1="{height}" y2="{height}"/>')
        curve = scale(first, y[-1])[1]
        below = height < TOP + 14 or (height - 18 < curve <= height and height < BOTTOM - 14)
        text = f"{escaped(label)} {value:.3g}"
        names.append(
            f'<text class="name" x="{RIGHT - 3}" y="{height + (13 if below else -4)}" text-anchor="end">{text}</text>'
        )
    if fine:
        parts.append(f'<polyline class="fine" points="{_points(fine)}"/>')
    spots = [scale(*p) for p in zip(x, y)]
    parts.append(f'<polyline class="coarse" points="{_points(spots)}"/>')
    for spot in spots if len(spots) <= 30 else spots[-1:]:
        parts.append(f'<circle class="dot" cx="{spot[0]}" cy="{spot[1]}" r="2.6"/>')
    parts += names
    parts.append(f'<line class="at" y1="{TOP}" y2="{BOTTOM}"/><circle class="mark" r="4.5"/>')
    read = [[float(a), float(b), *spot, f"epoch {a:g}: {b:.4g}"] for a, b, spot in zip(x, y, spots)]
    data = {"points": read, "scale": [LEFT, RIGHT, first, last]}
    return (
        f'<div class="card panel"><header><h3>{escaped(name)}</h3><output>{y[-1]:.4g}</output></header>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(name)} by epoch" tabindex="0" '
        f'data-points="{html.escape(json.dumps(data, allow_nan=False))}">{"".join(parts)}</svg>'
        f'<p class="small muted">{escaped(about)}</p></div>'
    )


def _points(spots):
    return " ".join(f"{x:g},{y:g}" for x, y in spots)


def numbers_table(columns, rows, summary):
    """All numbers, folded away under ``summary``."""
    head = "".join(f"<th>{escaped(name)}</th>" for name in columns)
    body = "".join(f"<tr>{''.join(f'<td>{escaped(row[name])}</td>' for name in columns)}</tr>" for row in rows)
    return (
        f'<details><summary>{escaped(summary)}</summary><div class="card scroll">'
        f"<table><tr>{head}</tr>{body}</table></div></details>"
    )


def pictures_grid(pictures):
    """``pictures``: [(name, bytes of a PNG, caption)]"""
    figures = (
        f'<figure class="card"><button aria-label="enlarge {escaped(name)}"><img alt="{escaped(name)}" '
        f'src="data:image/png;base64,{base64.b64encode(png).decode()}"></button>'
        f"<figcaption><b>{escaped(name)}</b> {escaped(caption)}</figcaption></figure>"
        for name, png, caption in pictures
    )
    return f'<section class="pictures">{"".join(figures)}</section>'


def heading(text):
    return f"<h2>{escaped(text)}</h2>"


def settings_list(settings, changed):
    """``settings`` {name: value}; the names in ``changed`` stand out."""
    items = (
        f"<div{' class=set' if name in changed else ''}><dt><code>{escaped(name)}</code></dt>"
        f"<dd>{escaped(value)}</dd></div>"
        for name, value in settings.items()
    )
    return f'<section class="card"><dl class="settings">{"".join(items)}</dl></section>'


def facts_list(facts):
    """``facts``: [(name, value)]"""
    items = "".join(f"<dt>{escaped(name)}</dt><dd><code>{escaped(value)}</code></dd>" for name, value in facts)
    return f'<section class="card"><dl class="facts">{items}</dl></section>'


def commands_list(commands):
    """``commands``: [(what it is for, the command)]"""
    items = (
        f"<div><p class=small>{escaped(text)}</p><code>{escaped(command)}</code></div>" for text, command in commands
    )
    return f'<section class="card commands">{"".join(items)}</section>'


def footer(text):
    return f'<footer class="small muted">{escaped(text)}</footer>'
