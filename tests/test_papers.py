"""docs/papers.md names places in the code: they must exist, and say what was decided where it says so."""

import ast
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs/papers.md").read_text("utf-8")
PLACE = re.compile(r"`([\w./-]+\.(?:py|toml|sql))(?:::(\w+))?`")
PLACES = sorted(set(PLACE.findall(TEXT)))
STATUSES = ("built", "differs", "needs the paper's data", "not built")
#: Section, what it says, where, status.
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and line.count("|") == 5 and not line.startswith("| section")
]


def test_nothing_is_left_out_of_these_tests():
    assert len(PLACES) > 100
    assert len(ROWS) > 100
    assert {len(row) for row in ROWS} == {4}


@pytest.mark.parametrize(("file", "name"), PLACES, ids=lambda part: part or "-")
def test_every_place_exists(file, name):
    path = ROOT / file
    assert path.is_file(), f"docs/papers.md names {file}, which does not exist"
    if name:
        tree = ast.parse(path.read_text("utf-8"))
        defined = {node.name for node in tree.body if hasattr(node, "name")}
        for node in tree.body:
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            defined |= {target.id for target in targets if isinstance(target, ast.Name)}
        assert name in defined, f"docs/papers.md names {name} in {file}, which has no such name"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}: {row[1][:40]}")
def test_every_row_has_a_status_that_its_places_bear_out(row):
    _, _, where, status = row
    assert status.startswith(STATUSES), f"no status of the list above: {status}"
    places = PLACE.findall(where)
    assert bool(places) != status.startswith("not built"), "a place for what is built, and none for what is not"
    if "decided" in status:
        texts = [(ROOT / file).read_text("utf-8") for file, _ in places]
        assert any("ecided" in text for text in texts), "no place of this row says what was decided"


def test_every_recipe_of_a_paper_is_listed():
    named = {Path(file).name for file, _ in PLACES}
    commands = set(re.findall(r"carina (?:train|search) ([\w-]+)", TEXT))
    for path in (ROOT / "trainer/recipes").glob("*.toml"):
        compares = re.search(r"^\[(grid|search)\]", path.read_text("utf-8"), re.MULTILINE)
        if compares:
            assert path.name in named, f"docs/papers.md says nothing of {path.name}"
            assert path.stem in commands, f"docs/papers.md has no command for {path.stem}"


@pytest.mark.parametrize("line", re.findall(r"`(carina [^`]+)`", TEXT))
def test_every_command_names_a_recipe_and_a_layout(line):
    words = shlex.split(line)
    if words[1] in ("train", "search"):
        text = (ROOT / "trainer/recipes" / f"{words[2]}.toml").read_text("utf-8")
        assert ("--grid" in words) == ("[grid]" in text)
        assert (words[1] == "search") == ("[search]" in text)
    if "--layout" in words:
        layout = words[words.index("--layout") + 1]
        assert (ROOT / "trainer/data/layouts" / f"{layout}.toml").is_file()
