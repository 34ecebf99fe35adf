"""The documents: links lead somewhere, names exist, quotes are straight. No torch is imported."""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
# what was true at a commit may be gone since: of these pages only links are checked
HISTORY = ("LOG.md", "CHANGELOG.md", "results.md")
CURRENT = [page for page in PAGES if page.name not in HISTORY]
GUILLEMETS = "\u00ab\u00bb"
WORDS_OF_README = 850

FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
FOLDERS = ("src", "fl", "configs", "tests", "docs", "benchmarks", "docker")
PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./*-]*")
MODULE = re.compile(r"(?:src|fl)(?:\.\w+)+")
SETTING = re.compile(r"((?:data|partition|model|merge|evaluate|privacy|cache)\.[a-z-]+)(?: ?=.*)?")
FILE_ENDINGS = ("json", "safetensors", "csv", "toml", "html", "md", "py")
ASSIGNMENT = re.compile(r"--set[ =]([\w.-]+)=")
COMMAND = re.compile(r"fedpatchcore((?: [\w-]+)+)?")
MAKE = re.compile(r"\bmake ([a-z][\w-]*)")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def prose(page: Path) -> str:
    """A page without its code blocks."""
    return FENCE.sub("", page.read_text("utf-8"))


def code(page: Path) -> list[str]:
    """The lines of a page's shell blocks; continued lines are joined."""
    blocks = [text for kind, text in FENCE.findall(page.read_text("utf-8")) if kind == "sh"]
    return "".join(blocks).replace("\\\n", " ").splitlines()


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    slugs = set()
    for heading in HEADING.findall(prose(page)):
        plain = re.sub(r"[^\w\s-]", "", heading.lower()).strip()
        slugs |= {re.sub(r"\s", "-", plain), re.sub(r"[-\s]+", "-", plain)}
    return slugs


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


def test_quotes_are_straight() -> None:
    code = [
        path
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".toml")
    ]
    texts = {name_of(path): path.read_text("utf-8") for path in [*PAGES, *code] if path.is_file()}
    assert not [name for name, text in texts.items() if any(mark in text for mark in GUILLEMETS)]


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_paths_exist(page: Path) -> None:
    paths = [path for span in SPAN.findall(prose(page)) for path in PATH.findall(span)]
    paths += [path for line in code(page) for path in re.findall(rf"(?<!\S){PATH.pattern}", line)]
    assert not [path for path in paths if not any(ROOT.glob(path.rstrip("/.")))]


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_modules_exist(page: Path) -> None:
    names = [span for span in SPAN.findall(prose(page)) if MODULE.fullmatch(span)]
    names += re.findall(r"^::: (\S+)", page.read_text("utf-8"), re.MULTILINE)
    assert not [name for name in names if not is_defined(name)]


def is_defined(dotted: str) -> bool:
    """Whether a dotted name is a module, or something that a module defines or imports."""
    path, parts = ROOT, dotted.split(".")
    while parts and (path / parts[0]).is_dir():
        path /= parts.pop(0)
    if parts and (path / f"{parts[0]}.py").is_file():
        path /= f"{parts.pop(0)}.py"
    elif path.is_dir():
        path /= "__init__.py"
    return path.is_file() and (not parts or parts[0] in set(top_level_names(path)))


def top_level_names(path: Path) -> Iterator[str]:
    for node in ast.parse(path.read_text("utf-8")).body:
        match node:
            case ast.FunctionDef() | ast.ClassDef():
                yield node.name
            case ast.Import() | ast.ImportFrom():
                yield from (alias.asname or alias.name for alias in node.names)
            case ast.Assign():
                yield from (target.id for target in node.targets if isinstance(target, ast.Name))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_settings_exist(page: Path) -> None:
    spans = [span.removeprefix("--set ") for span in SPAN.findall(prose(page))]
    named = [match[1] for span in spans if (match := SETTING.fullmatch(span))]
    named = [key for key in named if key.rpartition(".")[2] not in FILE_ENDINGS]
    named += ASSIGNMENT.findall(prose(page)) + ASSIGNMENT.findall("\n".join(code(page)))
    assert not sorted(set(named) - settings() - {"key"})


@cache
def settings() -> set[str]:
    """Every key of a run's configuration, from pyproject.toml."""
    table = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return set(flat(table["tool"]["flwr"]["app"]["config"]))


def flat(table: dict, prefix: str = "") -> Iterator[str]:
    for key, value in table.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}{key}.")
        else:
            yield prefix + key


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_commands_and_their_options_exist(page: Path) -> None:
    lines = [span for span in SPAN.findall(prose(page)) if span.startswith("fedpatchcore")]
    lines += [line for line in code(page) if re.match(r"\s*fedpatchcore\s", line)]
    assert not [line for line in lines if not is_command(line)]


def is_command(line: str) -> bool:
    """Whether the command line knows the command, and its options."""
    words = line.partition("#")[0].split()[1:]
    names, options = command_tree(), [word.split("=")[0] for word in words if word[:2] == "--"]
    path = ""
    while words and f"{path} {words[0]}".strip() in names:
        path = f"{path} {words.pop(0)}".strip()
    is_group = any(name.startswith(f"{path} ") for name in names) or not path
    unknown = bool(words) and is_group and words[0].islower() and words[0].isalpha()
    return not unknown and set(options) <= names.get(path, set()) | {"--help"}


@cache
def command_tree() -> dict[str, set[str]]:
    """Command -> its options."""
    from typer.main import get_command

    from fl.cli.main import app

    return dict(walk(get_command(app), ""))


def walk(command: object, path: str) -> Iterator[tuple[str, set[str]]]:
    yield path, {option for parameter in command.params for option in parameter.opts}  # type: ignore[attr-defined]
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, f"{path} {name}".strip())


@pytest.mark.parametrize("page", CURRENT, ids=name_of)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    spans = [span for span in SPAN.findall(prose(page)) if span.startswith("make ")]
    lines = [line for line in code(page) if line.startswith("make ")]
    assert not {target for line in [*spans, *lines] for target in MAKE.findall(line)} - targets


def test_every_key_of_metrics_json_is_documented() -> None:
    page = (ROOT / "docs/reference/metrics.md").read_text("utf-8")
    schema = ast.parse((ROOT / "src/storage/run_metrics.py").read_text("utf-8"))
    classes = {node.name: node for node in schema.body if isinstance(node, ast.ClassDef)}
    run = classes["RunMetrics"].body + classes["MetricSet"].body
    keys = {node.target.id for node in run if isinstance(node, ast.AnnAssign)}
    documented = {span.replace("aupro_0.05", "aupro_005") for span in SPAN.findall(page)}
    assert not keys - documented


def test_every_page_is_on_the_site() -> None:
    nav = (ROOT / "mkdocs.yml").read_text("utf-8")
    assert not [name_of(page) for page in PAGES if name_of(page).removeprefix("docs/") not in nav]


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").split()) <= WORDS_OF_README
