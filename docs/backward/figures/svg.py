"""Shapes, text, arrows and matrices as SVG: on a light card, so that they read on a light page and on a dark one."""

from xml.sax.saxutils import escape, quoteattr

import numpy as np

INK, MUTED, EDGE = "#24292f", "#57606a", "#d0d7de"
VALUE, GRADIENT, MOVED = "#0969da", "#bc4c00", "#1a7f37"  # what forward computes, what backward does, what is averaged
FONT = "Helvetica, Arial, 'DejaVu Sans', sans-serif"
SIZE = 14


class Drawing:
    """A card of ``width`` × ``height``; ``texts`` are (x, y, anchor, size, text), for a test of overlaps."""

    def __init__(self, width, height, title):
        self.width, self.height, self.texts = width, height, []
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" role="img" aria-label={quoteattr(title)} font-family="{FONT}">',
            f"<title>{escape(title)}</title>",
        ]
        self.rect(0.5, 0.5, width - 1, height - 1, fill="#ffffff", stroke=EDGE, rx=8)

    def __str__(self):
        return "\n".join([*self.parts, "</svg>", ""])

    def add(self, tag, **attributes):
        words = " ".join(
            f'{key.replace("_", "-")}="{f"{value:.1f}" if isinstance(value, float) else value}"'
            for key, value in attributes.items()
            if value is not None
        )
        self.parts.append(f"<{tag} {words}/>")

    def rect(self, x, y, width, height, fill="none", stroke=INK, rx=None, dash=None, line=1):
        self.add("rect", x=float(x), y=float(y), width=float(width), height=float(height), fill=fill, stroke=stroke,
                 stroke_width=line, rx=rx, stroke_dasharray=dash)  # fmt: skip

    def text(self, x, y, text, color=INK, size=SIZE, anchor="middle", bold=False):
        """Text whose middle line is at y."""
        self.texts.append((x, y, anchor, size, text))
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y + 0.35 * size:.1f}" fill="{color}" font-size="{size}" '
            f'text-anchor="{anchor}"{weight}>{escape(text)}</text>'
        )

    def line(self, *points, color=INK, width=1.5, dash=None):
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.add("polyline", points=path, fill="none", stroke=color, stroke_width=width, stroke_dasharray=dash)

    def arrow(self, *points, color=INK, width=1.5, dash=None):
        """A line through the points, with a head at the last one."""
        (x0, y0), (x1, y1) = points[-2:]
        along = np.array([x1 - x0, y1 - y0]) / np.hypot(x1 - x0, y1 - y0)
        across, tip = np.array([-along[1], along[0]]), np.array([x1, y1])
        back = tip - 9 * along
        self.line(*points[:-1], tuple(back), color=color, width=width, dash=dash)
        head = " ".join(f"{x:.1f},{y:.1f}" for x, y in (tip, back + 4.5 * across, back - 4.5 * across))
        self.add("polygon", points=head, fill=color)

    def box(self, x, y, width, height, *lines, color=INK, fill="#ffffff", dash=None):
        """A rounded box around centred lines of text, the first of them bold."""
        self.rect(x, y, width, height, fill=fill, stroke=color, rx=6, dash=dash, line=1.5)
        for i, text in enumerate(lines):
            size = SIZE if i == 0 else SIZE - 2
            self.text(x + width / 2, y + height / 2 + 18 * (i - (len(lines) - 1) / 2), text, color, size, bold=i == 0)

    def matrix(self, x, y, array, label="", color=VALUE, cell=(44, 24), digits=2, marked=(), ghost=()):
        """An array as shaded cells with their numbers, x and y its upper left corner; (right, bottom) edges.

        ``label`` stands above. ``marked``: cells to frame; ``ghost``: rows that are copies, drawn with broken lines.
        """
        array = np.atleast_2d(array)
        rows, columns = array.shape
        size = 12 if cell[0] > 40 else 11
        (width, height), largest = cell, np.abs(array).max() or 1.0
        for (i, j), number in np.ndenumerate(array):
            left, top = x + j * width, y + i * height
            fill = shade(color, abs(number) / largest)
            self.rect(left, top, width, height, fill=fill, stroke="#ffffff")
            self.text(left + width / 2, top + height / 2, plain(number, digits), MUTED if i in ghost else INK, size)
        for i in range(rows):
            if i in ghost:
                self.rect(x, y + i * height, columns * width, height, stroke=color, dash="3 3")
        solid = [i for i in range(rows) if i not in ghost]
        self.rect(x, y + solid[0] * height, columns * width, len(solid) * height, stroke=color, line=1.5)
        for i, j in marked:
            self.rect(x + j * width + 1, y + i * height + 1, width - 2, height - 2, stroke=INK, line=2)
        if label:
            self.text(x + columns * width / 2, y - 12, label, color, bold=True)
        return x + columns * width, y + rows * height


def shade(color, strength):
    """A tint of a colour: white for 0, and half of it for 1."""
    rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - 0.5 * strength * (255 - c)):02x}" for c in rgb)


def plain(number, digits=2):
    """A number as text, with a true minus sign, and no "−0.00"."""
    text = f"{float(number):.{digits}f}"
    return f"{0:.{digits}f}" if float(text) == 0 else text.replace("-", "−")
