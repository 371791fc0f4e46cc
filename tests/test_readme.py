"""The README's examples run, and what it names is there."""

import doctest
import re
import shlex
from dataclasses import fields

import ablation
import pytest
from conftest import ROOT

import probe
import train
from minijepa.config import PRESETS, Config, parse_assignment
from minijepa.gradcheck.cases import CASES, cases_of

TEXT = (ROOT / "README.md").read_text()
PAGES = TEXT + "".join((ROOT / page).read_text() for page in ("docs/pictures.md", "docs/results.md"))
PAGES = PAGES.replace("\\\n", " ")  # a command may go on in the next line


def code_blocks():
    return re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


def test_the_session_prints_what_it_shows():
    (session,) = (block for block in code_blocks() if ">>>" in block)
    test = doctest.DocTestParser().get_doctest(session, {}, "README", "README.md", 0)
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    report = []
    runner.run(test, out=report.append)
    assert runner.tries > 3 and not report, "".join(report)


def test_the_operation_of_ones_own_passes_its_check(capsys):
    (example,) = (block for block in code_blocks() if "class Swish" in block)
    exec(example, {})
    assert 0 < float(capsys.readouterr().out) < 1e-6


def test_the_readme_states_the_number_of_gradient_checks():
    told = re.findall(r"(\d+)\W+finite-difference checks of all\s(\d+)", TEXT)
    assert told == [(str(sum(len(cases_of(op)) for op in CASES)), str(len(CASES)))] * 2


def test_the_training_step_is_quoted_from_the_source():
    """Every quoted line is in the source, except for names that the README shortens."""
    source = "\n".join(p.read_text() for p in (ROOT / "minijepa").rglob("*.py"))
    lines = [
        line for block in code_blocks() if "self.lanes" in block or "with tape:" in block for line in block.split("\n")
    ]
    assert len(lines) > 8
    for line in lines:
        assert line.strip() in source or line.startswith("update_ema("), line


def test_every_file_that_is_named_exists():
    for name in re.findall(r"\((docs/[^)]+)\)|src=\"(docs/[^\"]+)\"|`((?:minijepa|tests)/[\w/]+\.py)`", TEXT):
        assert (ROOT / "".join(name).split("#")[0]).exists(), name
    layout = TEXT[TEXT.index("    minijepa/\n") : TEXT.index("A file imports")]
    for name in re.findall(r"^      ?([\w./ ]+?)(?:   |$)", layout, re.MULTILINE):
        for file in name.split():
            assert (ROOT / "minijepa" / file).exists() or (ROOT / file).exists(), file


def test_every_picture_is_explained_and_small():
    """docs/pictures.md embeds what lies in docs/pictures; no other image is in the repository."""
    explained = set(re.findall(r"\]\((pictures/\w+\.png)\)", (ROOT / "docs/pictures.md").read_text()))
    files = {str(p.relative_to(ROOT / "docs")): p.stat().st_size for p in (ROOT / "docs").rglob("*.png")}
    assert explained == set(files) and len(files) == 12
    assert max(files.values()) < 100_000


def test_every_command_parses():
    parsers = {"train.py": train.parser(), "probe.py": probe.parser()}
    commands = re.findall(r"python (train|probe)\.py([^#\n`&]*)", PAGES)
    assert len(commands) >= 8
    for program, line in commands:
        if line.strip() == "--help":
            continue
        args = parsers[f"{program}.py"].parse_args(shlex.split(line))
        if program == "train":
            Config.preset(args.preset or "cifar10", **dict(map(parse_assignment, args.changes)))


def test_every_ablation_that_is_quoted_can_be_run_again():
    count, shared = 0, ""
    for line in (PAGES + ablation.__doc__).split("\n"):
        shared = line.split('"')[1] if line.startswith('    shared="') else shared
        if found := re.match(r"    python benchmarks/ablation\.py([^#]*)", line):
            assert ablation.configs(ablation.parser().parse_args(shlex.split(found[1].replace("$shared", shared))))
            count += 1
    assert count >= 3


SETTINGS = (ROOT / "docs/settings.md").read_text()


def test_every_setting_is_explained_once_and_what_is_said_of_presets_is_so():
    """Its tables have every setting, and the three presets' values."""
    header, *rows = re.findall(r"^\| (setting|`.*?`) \|.*\| (.*) \| (.*) \| (.*) \|$", SETTINGS, re.MULTILINE)
    rows.remove(header)  # the second table's
    presets = {name.strip("`"): Config.preset(name.strip("`")) for name in header[1:]}
    assert set(presets) == {"cifar10", "best", "laptop"}
    shown = [name for names, *_ in rows for name in re.findall(r"\w+", names)]
    assert sorted(shown) == sorted(field.name for field in fields(Config))
    words = {False: "no", True: "yes"}
    for names, *told in rows:
        for config, text in zip(presets.values(), told):
            values = [getattr(config, name) for name in re.findall(r"\w+", names)]
            wanted = [words[v] if type(v) is bool else v for v in values]
            found = parse_assignment(f"value={text}")[1]
            assert found == (tuple(wanted) if len(wanted) > 1 else wanted[0]), (names, text)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_explained(preset):
    assert f"`{preset}`" in TEXT or f"--preset {preset}" in TEXT
