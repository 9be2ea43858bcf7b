"""README, docs and CONTRIBUTING say what the code does and what the recorded run showed."""

import re
import shlex
import subprocess
import sys

import nbformat
import pytest
import yaml

from fgtune.core.project import project_root
from fgtune_helpers.params import PARAMETERS

sys.path.insert(0, str(project_root() / "tests"))
import readme
from readme import replace_block

ROOT = project_root()
PAGES = {
    path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
    for path in [
        readme.README,
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").glob("*.md")),
        *(ROOT / folder / "README.md" for folder in ("examples", "web")),
    ]
}
README = PAGES["README.md"]
#: Flags of commands that are not this project's.
FOREIGN = {"--extra-index-url"}
#: What our own scripts say that they take.
SCRIPTS = {
    name: (ROOT / name).read_text(encoding="utf-8")
    for name in (
        "fgtune_helpers/__main__.py",
        "tests/record.py",
        "tests/readme.py",
        "tests/teacher_server.py",
        *(f"benchmarks/{path.name}" for path in (ROOT / "benchmarks").glob("*.py")),
    )
}
#: Files that the file tree names because a module writes or reads them, and folders that git ignores.
WRITTEN = {"site.json", "tokenizer.json", "transformers.js"}
BUILT = {"node_modules", "runs", "dist", "build", "fgtune_workbook.egg-info"}
COMMAND = re.compile(r"python (?:-m (fgtune_helpers)|((?:benchmarks|tests)/\w+\.py))([^\n#`]*)")

each = pytest.mark.parametrize("page", PAGES)


def own(text):
    """A page without the first column of its tables where that speaks of the original project's commands."""
    before, there, after = text.partition("| original project | here |")
    return before + re.sub(r"^\|[^|]*\|", "|", there + after, flags=re.M)


@pytest.mark.parametrize("name", ["stages", "parameters"])
def test_generated_blocks_are_current(name):
    text = readme.PAGES.get(name, readme.README).read_text(encoding="utf-8")
    assert replace_block(text, name, readme.code_blocks()[name]) == text, "run: python tests/readme.py"


def test_results_are_those_of_the_recorded_notebooks():
    block = README.split("<!-- results -->")[1].split("<!-- /results -->")[0]
    if not readme.recorded_scores():
        assert block.strip() == readme.NOT_RECORDED
        return
    shown = {m[1].strip(): m[2] for m in re.finditer(r"^\| ([^|]+) \| (\d+/\d+) = ", block, re.M)}
    assert shown == readme.recorded_scores() and len(shown) >= 8


def test_operator_counts_are_those_of_the_recorded_export():
    cells = nbformat.read(ROOT / "notebooks" / "06_export_onnx.ipynb", 4).cells
    printed = "".join(out.get("text", "") for cell in cells for out in cell.get("outputs", []))
    recorded = {name: int(count) for count, name in re.findall(r"^ +(\d+)  ([A-Z]\w+)$", printed, re.M)}
    rows = re.findall(r"^\| (\w+) \| (\d+) \|", PAGES["docs/onnx.md"], re.M)
    shown = {name: int(count) for name, count in rows}
    total = shown.pop("together")
    assert total == sum(shown.values())
    if recorded:
        assert shown == recorded


def anchor(heading):
    """The fragment by which GitHub links to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


@each
def test_every_local_link_leads_somewhere(page):
    folder = (ROOT / page).parent
    for target, fragment in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", PAGES[page]):
        path = (folder / target).resolve() if target else ROOT / page
        assert path.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
            assert fragment in map(anchor, headings), f"{target}#{fragment}"


@each
def test_commands_and_flags_exist(page):
    text = own(PAGES[page])
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"(?:`|^|\n)make ([a-z]+)\b", text):
        assert re.search(rf"^{target}:", makefile, re.M), target
    for package, script, rest in COMMAND.findall(text):
        source = SCRIPTS["fgtune_helpers/__main__.py" if package else script]
        for flag in re.findall(r"(--[a-z][a-z-]+)", rest):
            assert f'"{flag}"' in source, f"{package or script} has no {flag}"
        command = re.match(r" ([a-z]+)\b", rest) if package else None
        if command:
            assert re.search(rf'"{command[1]}"', source), command[1]
    known = FOREIGN | {flag for source in SCRIPTS.values() for flag in re.findall(r'"(--[a-z-]+)"', source)}
    assert set(re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", text)) <= known


@each
def test_parameters_that_are_named_exist(page):
    for name in re.findall(r"-p ([a-z_]+) ", own(PAGES[page])):
        assert name in PARAMETERS, name


@each
def test_files_that_are_named_exist(page):
    for name in re.findall(
        r"`((?:fgtune|fgtune_helpers|web|docs|tests|benchmarks|params|notebooks)/[\w./-]*)`", PAGES[page]
    ):
        assert (ROOT / name).exists(), name


@each
def test_nothing_is_said_of_the_machine_it_was_written_on(page):
    assert not re.search(r"/(work|root|home|tmp)/", PAGES[page])


def test_readme_is_short():
    assert len(README.splitlines()) <= 160


def tree(text):
    """`{folder: text beside it}` of the README's file tree; a room stands as `fgtune/room`."""
    block = text.split("```text\n")[1].split("```")[0]
    found, top = {}, ""
    for line in block.splitlines():
        if match := re.match(r"( *)([a-z_]+)/ +(.*)", line):
            nested = match[1] and match[2] in {path.name for path in (ROOT / top).iterdir()}
            assert not match[1] or nested, f"{top} has no room {match[2]}"
            name = f"{top}/{match[2]}" if match[1] else match[2]
            top = top if match[1] else match[2]
            found[name] = match[3]
        else:
            found[name] += " " + line.strip()
    return found


def test_the_file_tree_names_every_room_and_only_modules_that_exist():
    found = tree(README)
    assert len(found) >= 15
    for folder, text in found.items():
        assert (ROOT / folder).is_dir(), folder
        for module in re.findall(r"\b[\w.]+\.(?:py|js|jinja|html|yaml|json)\b", text):
            if module not in WRITTEN:
                assert (ROOT / folder / module).exists(), f"{folder}/{module}"
        for inner in re.findall(r"(?<![\w/])([a-z]+)/ ", text):
            assert (ROOT / folder / inner).is_dir(), f"{folder}/{inner}"
    rooms = {path.parent.name for path in (ROOT / "fgtune").glob("*/__init__.py")}
    assert {name.split("/")[1] for name in found if "/" in name} == rooms
    tops = {path.name for path in ROOT.iterdir() if path.is_dir() and not path.name.startswith(".")}
    assert {name for name in found if "/" not in name} >= tops - BUILT


def test_rooms_stand_in_the_same_order_in_the_readme_and_in_contributing():
    listed = PAGES["CONTRIBUTING.md"].split("```text\n")[1].split("```")[0].split()
    assert listed == [name.split("/")[1] for name in tree(README) if "/" in name]


def test_hooks_are_local_and_leave_committed_notebooks_as_they_are():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    hooks = {hook["id"]: hook for repo in config["repos"] for hook in repo["hooks"]}
    assert all(hook["language"] == "system" for hook in hooks.values())
    command = [sys.executable, *shlex.split(hooks["nbstripout"]["entry"])[1:], "--verify"]
    notebooks = [
        str(path) for folder in ("notebooks", "tests/golden") for path in sorted((ROOT / folder).glob("*.ipynb"))
    ]
    done = subprocess.run([*command, *notebooks], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
