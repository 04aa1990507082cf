"""The layout as a rule: which room may use which, how many there are, how long a file may be.

A room is a folder or a file directly below `escherjax/`; `data_prep/` is one room. An arrow a -> b
says that some module of a imports one of b, at its top or inside a function.
"""

import ast
import tomllib
from pathlib import Path

import escherjax

REPOSITORY = Path(__file__).resolve().parent.parent

# What each room may use. From top to bottom: a room may only use those below it.
VERBS = {
    "__main__": "errors escherjax",  # starts any command by its name
    "evaluate": "sample weights metrics reports models data cameras devices files errors",
    "demo": "sample weights reports models data cameras errors",
    "compile": "train models data devices config files errors",
    "export": "sample weights pytorch cameras errors",
    "compare": "reports files errors",
    "checkpoints": "weights errors",
    "data_prep": "weights metrics reports models data cameras devices files errors",
    "train": "weights metrics reports models data cape devices config files errors",
    "sample": "weights reports models data cameras devices files errors",
}
NOUNS = {
    "weights": "models cape cameras devices config files errors",
    "metrics": "cameras files errors",
    "reports": "cameras files errors",
    "models": "cape cameras devices errors",
    "data": "cape cameras devices files errors",
    "cape": "cameras errors",
    "pytorch": "cameras errors",
    "cameras": "errors",
    "devices": "errors",
    "config": "errors",
    "files": "errors",
    "errors": "",
    "escherjax": "",  # the front door: names what `escherjax.x` is, imports it on first use
}
MAY_USE = {room: set(uses.split()) for room, uses in (VERBS | NOUNS).items()}
MAX_ROOMS, MAX_FLOORS, MAX_ARROWS, MAX_LINES = 25, 7, 99, 400

# The only files that use names which another package keeps to itself (`_name`), and whose they are.
PRIVATE_REACHES = {
    "escherjax/demo/guard.py": "viser",
    "escherjax/devices/hosts.py": "jax",
}

# Public names that begin with an underscore all the same: of `os` and of named tuples.
DOCUMENTED = {"_exit", "_replace", "_asdict", "_fields"}

# Arrows and files that still break the rule. Entries leave as soon as they are mended.
PENDING_ARROWS: set[tuple[str, str]] = set()
PENDING_LONG: set[str] = set()
PENDING_PRIVATE: set[str] = set()


def sources(*roots: str, suffixes: tuple[str, ...] = (".py",)) -> dict[str, str]:
    """Text of the source files below folders of the repository, by path."""
    found = (path for root in roots for path in (REPOSITORY / root).rglob("*"))
    return {
        path.relative_to(REPOSITORY).as_posix(): path.read_text(encoding="utf-8")
        for path in sorted(found)
        if path.suffix in suffixes
    }


def module_name(path: str) -> str:
    return path.removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def room_of(module: str) -> str:
    package, *rest = module.split(".")
    return rest[0] if package == "escherjax" and rest else package


def imported(path: str, text: str) -> list[str]:
    """Dotted names that a module imports anywhere but for type checkers alone."""
    names, skipped = [], set()
    for node in ast.walk(ast.parse(text)):  # outer nodes come before inner ones
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            skipped.update(id(inner) for part in node.body for inner in ast.walk(part))
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno} imports by a relative name"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


def arrows_of(files: dict[str, str]) -> dict[tuple[str, str], set[str]]:
    """The files behind each arrow between rooms."""
    modules = {module_name(path) for path in files}
    arrows: dict[tuple[str, str], set[str]] = {}
    for path, text in files.items():
        room = room_of(module_name(path))
        for name in imported(path, text):
            module = name if name in modules else name.rpartition(".")[0]
            if module in modules and room_of(module) != room:
                arrows.setdefault((room, room_of(module)), set()).add(path)
    return arrows


def private_reaches(text: str) -> list[str]:
    """Names with one leading underscore that belong neither to the module nor to its objects."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and _is_private(node.attr):
            is_own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            if not is_own and node.attr not in DOCUMENTED:
                found.append(ast.unparse(node))
    names = imported("text", text)
    return found + [name for name in names if any(map(_is_private, name.split(".")))]


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def num_floors(uses: dict[str, set[str]]) -> int:
    """The longest way down, counted in rooms. Raises AssertionError on a circle."""
    heights: dict[str, int] = {}

    def height(room: str, above: tuple[str, ...]) -> int:
        assert room not in above, f"a circle of imports: {' -> '.join((*above, room))}"
        if room not in heights:
            heights[room] = 1 + max((height(b, (*above, room)) for b in uses[room]), default=0)
        return heights[room]

    return max(height(room, ()) for room in uses)


def test_every_room_uses_only_what_the_table_allows():
    arrows = arrows_of(sources("escherjax", "data_prep"))
    wrong = {
        f"{a} -> {b}": sorted(files)
        for (a, b), files in arrows.items()
        if b not in MAY_USE.get(a, set()) and (a, b) not in PENDING_ARROWS
    }
    assert not wrong


def test_the_table_names_every_room_and_no_other():
    rooms = {room_of(module_name(path)) for path in sources("escherjax", "data_prep")}
    assert rooms == MAY_USE.keys()
    assert len(rooms) <= MAX_ROOMS


def test_the_table_points_down_only_in_few_floors_and_arrows():
    order = list(MAY_USE)
    for i, (room, uses) in enumerate(MAY_USE.items()):
        assert not uses.intersection(order[: i + 1]), f"{room} uses a room that is not below it"
    assert num_floors(MAY_USE) <= MAX_FLOORS
    assert sum(map(len, MAY_USE.values())) <= MAX_ARROWS


def test_nouns_never_use_verbs():
    for noun in NOUNS:
        assert not MAY_USE[noun] & VERBS.keys(), noun


def test_no_file_is_longer_than_a_few_screens():
    files = sources(
        "escherjax", "data_prep", "configs", "benchmarks", suffixes=(".py", ".html", ".js")
    )
    lengths = {path: text.count("\n") for path, text in files.items() if path not in PENDING_LONG}
    assert {path: n for path, n in lengths.items() if n > MAX_LINES} == {}


def test_private_names_of_other_packages_are_used_in_the_named_files_alone():
    files = sources("escherjax", "data_prep", "configs", "benchmarks")
    found = {path: names for path, text in files.items() if (names := private_reaches(text))}
    assert found.keys() - PENDING_PRIVATE == PRIVATE_REACHES.keys(), found


def test_nothing_that_was_mended_is_still_called_pending():
    arrows = arrows_of(sources("escherjax", "data_prep"))
    assert not PENDING_ARROWS - arrows.keys(), "take these out of PENDING_ARROWS"
    for path in PENDING_LONG:
        assert (REPOSITORY / path).read_text().count("\n") > MAX_LINES, path
    for path in PENDING_PRIVATE:
        assert private_reaches((REPOSITORY / path).read_text()), path


def test_an_arrow_is_seen_wherever_the_import_stands():
    files = {
        "escherjax/errors.py": "",
        "escherjax/data/shards.py": "",
        "escherjax/a/one.py": "from escherjax.errors import UserError",
        "escherjax/b.py": "def f():\n    import escherjax.errors",
        "escherjax/c.py": "from escherjax.data import shards\nimport numpy",
        "escherjax/d.py": "if TYPE_CHECKING:\n    from escherjax.data import shards\n"
        "else:\n    from escherjax import errors",
        "data_prep/lib/x.py": "from escherjax.data.shards import Scene",
        "data_prep/y.py": "from data_prep.lib import x",
    }
    assert arrows_of(files) == {
        ("a", "errors"): {"escherjax/a/one.py"},
        ("b", "errors"): {"escherjax/b.py"},
        ("c", "data"): {"escherjax/c.py"},
        ("d", "errors"): {"escherjax/d.py"},
        ("data_prep", "data"): {"data_prep/lib/x.py"},
    }


def test_floors_are_counted_along_the_longest_way_and_circles_are_found():
    assert num_floors({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == 3
    try:
        num_floors({"a": {"b"}, "b": {"a"}})
    except AssertionError as error:
        assert "a -> b -> a" in str(error)
    else:
        raise AssertionError("the circle was not found")


def test_a_private_name_is_seen_and_ones_own_is_not():
    text = "from jax._src import core\nself._x\nserver._socket\nx.__doc__\nimport a._b"
    assert sorted(private_reaches(text)) == ["a._b", "jax._src.core", "server._socket"]


def test_the_front_door_has_the_version_and_the_names_that_users_import():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert escherjax.__version__ == project["version"]
    assert set(escherjax.__all__) == {"Pipeline", "__version__", "load", "read_inputs"}
    modules = {module_name(path): text for path, text in sources("escherjax").items()}
    for name, home in escherjax._HOMES.items():
        assert f"class {name}" in modules[home] or f"def {name}(" in modules[home]
