"""The pages under docs/ are held to the code: what they quote is the source, what they print is what it prints.

Each fenced block of Python stands behind a comment that says what it is:

    <!-- source: minijepa/ops/softmax.py Softmax.backward -->   that function, whole
    <!-- run -->                                                run, in the page's order; ``>>>`` is a doctest

A block of text that begins with ``$ python -m minijepa...`` shows what that command prints; ``...`` on a line of its
own stands for lines left out. Behind ``<!-- mistake: FILE NAME -->`` and a diff of the function NAME, up to the next
heading, the command is run on the changed function, and must fail.
"""

import contextlib
import doctest
import importlib
import inspect
import io
import re
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DERIVATIONS = sorted(set((ROOT / "docs/backward").glob("*.md")) - {ROOT / "docs/backward/README.md"})
PAGES = [*DERIVATIONS, ROOT / "docs/backward/README.md", ROOT / "docs/own_op.md"]
HEADINGS = ["What it computes", "The derivation", "The code", "What is saved", "The gradient check"]
HEADINGS += ["A mistake to try", "Exercise"]
BLOCK = re.compile(r"(?:<!-- (\w+)(?:: ([^\n]*))? -->\n)?^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
each_derivation = pytest.mark.parametrize("page", DERIVATIONS, ids=lambda page: page.stem)


def blocks(page):
    """(kind, argument, language, text, section) of each fenced block; the section is the number of ## before it."""
    text = page.read_text()
    for match in BLOCK.finditer(text):
        yield *match.groups(), text.count("\n## ", 0, match.start())


def function_at(place):
    """``"minijepa/ops/softmax.py Softmax.backward"`` -> the function."""
    file, name = place.split()
    found = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        found = getattr(found, part)
    return found


def changed(function, diff):
    """The code of ``function`` after a diff, whose old lines must stand in it once."""
    old, new = (
        "".join(f"{line[1:]}\n" for line in diff.splitlines() if line[:1] in (" ", sign)) for sign in ("-", "+")
    )
    source = inspect.getsource(function)
    assert source.count(old) == 1, f"the diff's old lines stand {source.count(old)} times in the source:\n{old}"
    namespace = {}
    exec(compile(textwrap.dedent(source.replace(old, new)), "<mistake>", "exec"), function.__globals__, namespace)
    return inspect.unwrap(namespace[function.__name__]).__code__


def run_command(line):
    """(exit status, output) of ``$ python -m minijepa.module ARGUMENTS``, in this process."""
    module, *arguments = line.removeprefix("$ python -m ").split()
    module = f"{module}.__main__" if module == "minijepa.gradcheck" else module
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        status = importlib.import_module(module).main(arguments)
    return status, out.getvalue()


def same_line(shown, real):
    """Equal up to rounding: the text to the letter, numbers to a thousandth, and what is below 1e-6 is as good as 0."""
    if NUMBER.sub("#", shown.rstrip()).split() != NUMBER.sub("#", real.rstrip()).split():
        return False
    pairs = zip(*([float(n.replace(",", "")) for n in NUMBER.findall(line)] for line in (shown, real)))
    return all(abs(a - b) <= 1e-3 * abs(b) or max(abs(a), abs(b)) < 1e-6 for a, b in pairs)


def assert_shows(shown, output):
    """Every shown line is printed, in this order, with nothing between but where ``...`` stands."""
    shown, output = (re.sub(r"in \d+\.\d s", "in 0.0 s", text.strip("\n")) for text in (shown, output))
    lines, gap = iter(output.splitlines()), False
    for line in shown.splitlines():
        if line == "...":
            gap = True
            continue
        real = next((r for r in lines if not gap or same_line(line, r)), None)
        assert real is not None and same_line(line, real), f"{line!r}, not {real!r}"
        gap = False
    assert gap or next(lines, None) is None, "the command prints more than is shown"


@each_derivation
def test_the_headings_and_their_order(page):
    text = page.read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS
    assert re.search(r"^## Exercise.*<details>\n<summary>Solution</summary>\n\n.*\n</details>", text, re.M | re.S)
    kinds = {kind for kind, *_ in blocks(page)}
    assert "source" in kinds and "mistake" in kinds and "run" in kinds


@each_page
def test_code_is_the_source_or_runs(page):
    report, names = [], {}
    for number, (kind, argument, language, text, _) in enumerate(blocks(page)):
        kinds = {"python": ("source", "run"), "diff": ("mistake",)}
        assert language not in kinds or kind in kinds[language], f"what is this block?\n{text}"
        if kind == "source":
            assert text == textwrap.dedent(inspect.getsource(function_at(argument))), f"{argument} reads otherwise"
        elif kind == "run" and ">>>" in text:
            test = doctest.DocTestParser().get_doctest(text, names, f"{page.name}, block {number}", None, 0)
            runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
            runner.run(test, out=report.append, clear_globs=False)
            names.update(test.globs)
        elif kind == "run":
            exec(compile(text, page.name, "exec"), names)
    assert not report, "".join(report)


@each_derivation
def test_commands_print_what_is_shown_and_mistakes_are_caught(page, monkeypatch):
    mistake, shown, caught = None, 0, []
    for kind, argument, _, text, section in blocks(page):
        if mistake and mistake[0] != section:
            mistake = monkeypatch.undo()
        if kind == "mistake":
            monkeypatch.undo()
            function, mistake = function_at(argument), (section, argument)
            monkeypatch.setattr(inspect.unwrap(function), "__code__", changed(function, text))
            caught.append(0)
        elif text.startswith("$ "):
            command, _, output = text.partition("\n")
            status, printed = run_command(command)
            assert status == (1 if mistake else 0), f"{command} gives {status}:\n{printed}"
            assert_shows(output, printed)
            shown += 1
            if mistake:
                caught[-1] += 1
    assert all(caught), "a mistake without a command that catches it"
    assert shown > sum(caught), "a page without the check of what is right"


@pytest.mark.parametrize(
    "page", [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"], ids=lambda page: str(page.relative_to(ROOT))
)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = page.parent / file if file else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else []
        assert not anchor or anchor in [re.sub(r"[^\w\- ]", "", h).lower().replace(" ", "-") for h in headings], link
