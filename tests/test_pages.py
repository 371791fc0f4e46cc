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
import pkgutil
import re
import textwrap

import pytest
from conftest import ROOT

from minijepa.exercise.lessons import LESSONS

START = ROOT / "docs/backward/start.md"
DERIVATIONS = sorted(set((ROOT / "docs/backward").glob("*.md")) - {ROOT / "docs/backward/README.md", START})
PAGES = [START, *DERIVATIONS, ROOT / "docs/backward/README.md", ROOT / "docs/own_op.md"]
HEADINGS = "What it computes, The derivation, The code, What is saved, The gradient check, A mistake to try, Exercise"
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
    return pkgutil.resolve_name(f"{file.removesuffix('.py').replace('/', '.')}:{name}")


def changed(function, diff):
    """The code of ``function`` after a diff, whose old lines must occur in it once."""
    lines = diff.splitlines()
    old, new = ("".join(f"{line[1:]}\n" for line in lines if line[:1] in (" ", sign)) for sign in "-+")
    source = inspect.getsource(function)
    assert source.count(old) == 1, f"the diff's old lines stand {source.count(old)} times in the source:\n{old}"
    namespace = {}
    exec(compile(textwrap.dedent(source.replace(old, new)), "<mistake>", "exec"), function.__globals__, namespace)
    return inspect.unwrap(namespace[function.__name__]).__code__


def run_command(line):
    """(exit status, output) of ``$ python -m minijepa.module ARGUMENTS``, in this process."""
    module, *arguments = line.removeprefix("$ python -m ").split()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        return importlib.import_module(f"{module}.__main__").main(arguments), out.getvalue()


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
        if line != "...":
            real = next((r for r in lines if not gap or same_line(line, r)), None)
            assert real is not None and same_line(line, real), f"{line!r}, not {real!r}"
        gap = line == "..."
    assert gap or next(lines, None) is None, "the command prints more than is shown"


@each_derivation
def test_the_headings_and_their_order(page):
    text = page.read_text()
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == HEADINGS.split(", ")
    assert re.search(r"^## Exercise\n.*^### Solution\n", text, re.M | re.S)
    assert {kind for kind, *_ in blocks(page)} >= {"source", "mistake", "run"}


def test_each_step_of_the_start_page_runs():
    """Numbered from 1, and each has an example, but for the one that is done on paper."""
    headings = re.findall(r"^## (.*)$", START.read_text(), re.MULTILINE)
    assert [heading.split(". ")[0] for heading in headings] == [*map(str, range(1, len(headings))), "Exercise"]
    assert {section for kind, *_, section in blocks(START) if kind == "run"} == {*range(1, len(headings) + 1)} - {4}


@pytest.mark.parametrize("name", LESSONS)
def test_each_exercise_is_named_on_its_page(name):
    assert f"`python -m minijepa.exercise {name}`" in (ROOT / LESSONS[name].page).read_text()


@each_page
def test_formulas_are_whole(page):
    """And render where code is hosted: none is folded away, and no name of several letters looks like a product."""
    assert "<details>" not in page.read_text()
    for text in (text for _, _, language, text, _ in blocks(page) if language == "math"):
        letters = re.sub(r"\\(?:text|mathrm|begin|end)\{[^}]*\}|\\[a-zA-Z]+", " ", text)
        assert not re.search(r"[a-zA-Z]{3}", letters), f"\\mathrm, for what is no product of letters:\n{text}"
        assert text.isascii() and text.count("{") == text.count("}"), text
        assert re.findall(r"\\begin(\S+)", text) == re.findall(r"\\end(\S+)", text), text


@each_page
def test_code_is_the_source_or_runs(page):
    report, names = [], {}
    for number, (kind, argument, language, text, _) in enumerate(blocks(page)):
        assert kind in {"python": ("source", "run"), "diff": ("mistake",)}.get(language, (None,)), f"what is {text}?"
        if kind == "source":
            assert text == textwrap.dedent(inspect.getsource(function_at(argument))), f"{argument} reads otherwise"
        elif kind == "run" and ">>>" in text:
            test = doctest.DocTestParser().get_doctest(text, {}, f"{page.name}, block {number}", None, 0)
            test.globs = names  # and not a copy: one session from the page's beginning to its end
            runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
            runner.run(test, out=report.append, clear_globs=False)
        elif kind == "run":
            exec(compile(text, page.name, "exec"), names)
    assert not report, "".join(report)


@each_derivation
def test_commands_print_what_is_shown_and_mistakes_are_caught(page, monkeypatch):
    changed_in, right, caught = None, 0, []
    for kind, argument, _, text, section in blocks(page):
        if kind == "mistake" or section != changed_in:
            changed_in = monkeypatch.undo()
        if kind == "mistake":
            changed_in, function = section, function_at(argument)
            monkeypatch.setattr(inspect.unwrap(function), "__code__", changed(function, text))
            caught.append(0)
        elif text.startswith("$ "):
            command, _, output = text.partition("\n")
            status, printed = run_command(command)
            assert status == (changed_in is not None), f"{command} gives {status}:\n{printed}"
            assert_shows(output, printed)
            right += changed_in is None
            if changed_in is not None:
                caught[-1] += 1
    assert right and caught and all(caught), "both the check of what is right and that of each mistake must be shown"


@pytest.mark.parametrize("page", [*(ROOT / "docs").rglob("*.md"), ROOT / "README.md"], ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\((?!https?://)([^)\s]+)\)", text):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if anchor else [""]
        assert anchor in [re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings], link
