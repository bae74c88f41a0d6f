"""Pages of the site that are no files of docs/, for mkdocs: README.md, settings, what documents link to elsewhere.

A link that leaves docs/ works in the repository as it stands; here it leads to a page that is made of the file.
"""

import posixpath
import re
from collections.abc import Iterator
from pathlib import Path

import yaml
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"(?<=\]\()(?P<path>[^()\s#:]+)(?=(#[^()\s]*)?\))")
SETTINGS = "reference/settings.md"
LINKED = ("CONTRIBUTING.md", "CHANGELOG.md", "outputs/README.md", "conf/config.yaml")
"""Pages whoever links to them."""


def page_of(path: str) -> str:
    """Returns where a file of the repository is on the site; `path` is relative to the repository."""
    if path in ("README.md", "conf/config.yaml"):
        return "index.md" if path == "README.md" else SETTINGS
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"repository/{path}" if path.endswith(".md") else f"repository/{path}.md"


def links(text: str, path: str) -> Iterator[str]:
    """Yields the files of the repository that a document of it links to."""
    for match in LINK.finditer(text):
        yield posixpath.normpath(posixpath.join(posixpath.dirname(path), match["path"]))


def with_links(text: str, path: str) -> str:
    """Returns a document whose links to files are those between pages."""
    here = posixpath.dirname(page_of(path)) or "."

    def moved(match: re.Match[str]) -> str:
        wanted = posixpath.normpath(posixpath.join(posixpath.dirname(path), match["path"]))
        return posixpath.relpath(page_of(wanted), here) if (ROOT / wanted).is_file() else match["path"]

    return LINK.sub(moved, text)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages."""
    documents = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    waiting, seen = ["README.md", *LINKED, *documents], set(documents)
    while waiting:
        path = waiting.pop()
        text = (ROOT / path).read_text()
        if page_of(path) == SETTINGS:
            text = settings()
        elif path.endswith(".md"):
            found = [each for each in links(text, path) if (ROOT / each).is_file() and not each.startswith("docs/")]
            waiting += [each for each in dict.fromkeys(found) if each not in seen and each not in waiting]
        else:
            text = f"---\nsearch:\n  exclude: true\n---\n\n# {path}\n\n`````{Path(path).suffix[1:]}\n{text}`````\n"
        if path not in seen:
            files.append(File.generated(config, page_of(path), content=text))
        seen.add(path)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Returns a page's text, its links being those of the site."""
    uri = page.file.src_uri
    if uri in ("index.md", SETTINGS):
        return with_links(markdown, "README.md") if uri == "index.md" else markdown
    return with_links(markdown, uri.removeprefix("repository/") if uri.startswith("repository/") else f"docs/{uri}")


def commented(node: yaml.MappingNode, text: str, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yields name, value as written, and comment of each setting of a YAML file, those of nested ones too."""
    for key, value in node.value:
        if key.value in ("_target_", "defaults"):
            continue
        if isinstance(value, yaml.MappingNode) and value.value:
            yield from commented(value, text, f"{prefix}{key.value}.")
            continue
        start, end = value.start_mark.index, value.end_mark.index
        yield f"{prefix}{key.value}", text[start:end], text[end:].partition("\n")[0].partition("#")[2].strip()


def cell(text: str) -> str:
    """Returns a text for a cell of a table."""
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def table(rows: Iterator[tuple[str, str, str]]) -> str:
    """Returns settings as a table."""
    head = "| setting | default | |\n|---|---|---|\n"
    return head + "".join(f"| `{name}` | `{cell(value)}` | {cell(comment)} |\n" for name, value, comment in rows)


def settings() -> str:
    """Returns the page of all groups and settings, from the files in conf/."""
    conf = ROOT / "conf"
    text = (conf / "config.yaml").read_text()
    root = yaml.compose(text)
    own = [(key, value) for key, value in root.value if key.value not in ("defaults", "hydra")]
    groups = next(value for key, value in root.value if key.value == "defaults").value
    parts = [
        "# Settings\n\nEvery setting with its default and what `conf/` says of it; any of them is changed on the "
        "command line, as in `num_rounds=20`, any group as in `partition=dirichlet`. "
        "[Configuration](../configuration.md) says what for.\n",
        "## Of a run\n\n" + table(commented(yaml.MappingNode("", own), text)),
        "## Groups\n\n" + table(row for each in groups if each.value for row in chosen(each, text)),
    ]
    for folder in sorted({path.parent for path in conf.glob("*/**/*.yaml")}):
        parts.append(f"## {folder.relative_to(conf)}\n")
        parts += [choice(path) for path in sorted(folder.glob("*.yaml"))]
    return "\n".join(parts)


def chosen(entry: yaml.Node, text: str) -> Iterator[tuple[str, str, str]]:
    """Yields a group, its default choice and its comment."""
    if isinstance(entry, yaml.MappingNode) and " " not in entry.value[0][0].value:
        yield from commented(entry, text)


def choice(path: Path) -> str:
    """Returns what stands in one of a group's files."""
    text = path.read_text()
    if path.parent.name == "experiment":  # a set of overrides, as it stands
        return f"### {path.stem}\n\n```yaml\n{text}```\n"
    first = re.match(r"((?:#.*\n)*)", text)[1].replace("# @package _global_\n", "")  # type: ignore[index]
    told = " ".join(line.removeprefix("#").strip() for line in first.splitlines())
    rows = list(commented(yaml.compose(text), text))
    target = re.search(r"^_target_: *(\S+)", text, re.MULTILINE)
    says = [f"### {path.stem}\n", told, f"`{target[1]}`" if target else ""]
    return "\n\n".join([*filter(None, says), table(iter(rows)) if rows else ""]) + "\n"
