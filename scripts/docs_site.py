"""Hooks of the documentation site (mkdocs.yml): pages that are rendered from their sources.

A comment `<!-- generated: NAME -->` in a page is replaced by the Markdown that the function of
that name in `GENERATED` returns. Documents at the top of the repository become pages, and links
that lead out of docs/ lead to those pages or to a copy of the file. A link to a file that does not
exist is left as it is, so that `mkdocs build --strict` fails.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from functools import partial
from os.path import normpath, relpath
from pathlib import Path, PurePosixPath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[1]

# Documents at the top of the repository, and their pages.
TOP = {
    "README.md": "index.md",
    "ARCHITECTURE.md": "architecture.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
}

# Where files of the repository that pages link to are copied.
COPIES = "repository"

LINK = re.compile(r"(\]\()([^)\s#:]+)((?:#[^)\s]*)?\))")
MARKER = re.compile(r"^<!-- generated: ([\w -]+) -->$", re.MULTILINE)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the documents at the top of the repository, and the files that pages link to."""
    for name, page in TOP.items():
        files.append(File.generated(config, page, content=(REPOSITORY / name).read_text()))
    for file in files.documentation_pages():
        for target in _outside(file.src_uri, file.content_string):
            uri = f"{COPIES}/{target}"
            if (REPOSITORY / target).is_file() and files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, abs_src_path=str(REPOSITORY / target)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Fills in what is generated and turns links that lead out of docs/."""
    uri = page.file.src_uri

    def turned(match: re.Match[str]) -> str:
        target = _in_site(uri, match[2])
        return f"{match[1]}{relpath(target, PurePosixPath(uri).parent)}{match[3]}"

    filled = MARKER.sub(lambda match: GENERATED[match[1]](), markdown)
    return LINK.sub(turned, filled)


def _place(uri: str) -> str:
    """The path of a page's source from the top of the repository."""
    tops = {page: name for name, page in TOP.items()}
    return tops.get(uri, f"docs/{uri}")


def _in_site(uri: str, link: str) -> str:
    """The place in the site of the file that `link` on the page `uri` leads to."""
    target = normpath(PurePosixPath(_place(uri)).parent / link)
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return TOP.get(target, f"{COPIES}/{target}")


def _outside(uri: str, markdown: str) -> Iterator[str]:
    """The files of the repository outside docs/ that a page links to, but for other pages."""
    for match in LINK.finditer(markdown):
        found = _in_site(uri, match[2])
        if found.startswith(f"{COPIES}/"):
            yield found.removeprefix(f"{COPIES}/")


def command_line() -> str:
    """The help of every command, from the parser itself."""
    from rare_trt.cli import parser

    (commands,) = (a for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    parts = []
    for name, command in commands.choices.items():
        command.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=95)
        parts += [f"## {name}", f"```text\n{command.format_help().rstrip()}\n```"]
    return "\n\n".join(parts)


def source(name: str, language: str) -> str:
    """The file `name` of the repository as it is."""
    return f"```{language}\n{(REPOSITORY / name).read_text().rstrip()}\n```"


GENERATED: dict[str, Callable[[], str]] = {
    "command line": command_line,
    "C header": partial(source, "native/include/rare_trt.h", "c"),
    "manifest schema": partial(source, "rare_trt/package/manifest.schema.json", "json"),
}
