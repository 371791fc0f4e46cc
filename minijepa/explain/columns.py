"""Fit the tutor's output to the terminal: sources are up to 120 columns wide, terminals often 80."""

import ast
import contextlib
import inspect
import re
import shutil
import textwrap

NARROW = 80


def terminal_columns():
    """The terminal's width, at least 73, which the tables need; 80 if the output goes to a file or a pipe."""
    return max(73, shutil.get_terminal_size((NARROW, 24)).columns)


def fit_text(text, width):
    """A docstring in ``width`` columns: prose is refilled; a formula keeps its lines, broken only if too long.

    A formula is indented or has gaps of three or more spaces. A paragraph that fits is left alone.
    """
    paragraphs = []
    for paragraph in text.split("\n\n"):
        if max(map(len, paragraph.split("\n"))) <= width:
            paragraphs.append(paragraph)
        elif re.search(r"^ |\S {3,}\S", paragraph, re.MULTILINE):
            paragraphs.append("\n".join(_fit_line(line, width) for line in paragraph.split("\n")))
        else:
            paragraphs.append(_wrapped(" ".join(paragraph.split("\n")), width))
    return "\n\n".join(paragraphs)


def fit_code(code, width):
    """Code in ``width`` columns: docstrings are refilled; the comment of a line that is too long goes above it.

    A line is broken only where Python allows that, so the result may be run; others stay too long.
    """
    if max(map(len, code.split("\n"))) <= width:
        return code
    code = re.sub(r'^( *)"""(.*?)"""', lambda found: _fit_docstring(*found.groups(), width), code, flags=re.S | re.M)
    lines = []
    for line in code.split("\n"):
        margin = " " * (len(line) - len(line.lstrip()))
        if len(line) > width and (found := re.fullmatch(r"( *\S.*?)  # (.*)", line)):
            line, comment = found.groups()
            lines.append(textwrap.fill(comment, width, initial_indent=f"{margin}# ", subsequent_indent=f"{margin}# "))
        lines.append(line)
    for i in range(len(lines)):
        broken, line = [*lines], lines[i]
        broken[i] = _wrapped(line, width, " " * (len(line) - len(line.lstrip()) + 8))
        if broken != lines and (_is_code(broken) or not _is_code(lines)):
            lines = broken
    return "\n".join(lines)


def _is_code(lines):
    with contextlib.suppress(SyntaxError):
        ast.parse(textwrap.dedent("\n".join(lines)))
        return True
    return False


def _fit_docstring(margin, text, width):
    fitted = fit_text(inspect.cleandoc(text), width - len(margin) - 3)
    return textwrap.indent(f'"""{fitted}' + ('\n"""' if text.rstrip(" ").endswith("\n") else '"""'), margin)


def _fit_line(line, width):
    """One line of a formula: gaps shrink first, and text at the far right moves to the left."""
    while len(line) > width and (gaps := re.findall(r"(?<=\S) {3,}(?=\S)", line)):
        line = line.replace(max(gaps, key=len), " " * (len(max(gaps, key=len)) - 1), 1)
    words = line.lstrip()
    margin = min(len(line) - len(words), max(4, width - len(words)))
    return _wrapped(" " * (margin if line != words else 0) + words, width, " " * (margin + 4))


def _wrapped(line, width, indent=""):
    return textwrap.fill(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False, replace_whitespace=False
    )
