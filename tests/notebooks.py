"""Runs a notebook's cells without Jupyter. ``python tests/notebooks.py NOTEBOOK`` stores their outputs."""

import ast
import base64
import contextlib
import io
import json
import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def read(path):
    return json.loads(Path(path).read_text(encoding="utf-8"))


def run(notebook):
    """The outputs of each code cell, in nbformat 4's words. The cells share one namespace, in the notebook's folder."""
    names, found = {}, []
    for cell in (cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        body = ast.parse("".join(cell["source"])).body
        last = ast.Expression(body.pop().value) if body and isinstance(body[-1], ast.Expr) else None
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(compile(ast.Module(body, []), "cell", "exec"), names)
            value = eval(compile(last, "cell", "eval"), names) if last else None
        outputs = []
        if printed.getvalue():
            outputs.append({"name": "stdout", "output_type": "stream", "text": lines(printed.getvalue())})
        if value is not None:
            outputs.append({
                "data": shown(value), "execution_count": len(found) + 1, "metadata": {}, "output_type": "execute_result"
            })  # fmt: skip
        found.append(outputs)
    return found


def shown(value):
    """What a notebook shows of the last value of a cell: its picture or HTML if it has them, and its text."""
    if hasattr(value, "_repr_png_"):
        return {
            "image/png": base64.b64encode(value._repr_png_()).decode(),
            "text/plain": f"<PIL.Image.Image image mode={value.mode} size={value.width}x{value.height}>",
        }
    html = {"text/html": lines(value._repr_html_())} if hasattr(value, "_repr_html_") else {}
    return {**html, "text/plain": lines(repr(value))}


def lines(text):
    return text.splitlines(keepends=True)


def main(path):
    os.chdir(Path(path).resolve().parent)
    path = Path(path).name
    notebook = read(path)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    for number, (cell, outputs) in enumerate(zip(cells, run(notebook)), start=1):
        cell["execution_count"], cell["outputs"] = number, outputs
    Path(path).write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])
