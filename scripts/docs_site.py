"""Hooks of the documentation site (mkdocs.yml): pages that are rendered from their sources.

A comment `<!-- generated: NAME -->` in a page is replaced by the Markdown that the function of
that name in `GENERATED` returns. Documents at the top of the repository become pages, and links
that lead out of docs/ lead to those pages or to a copy of the file. A link to a file that does not
exist is left as it is, so that `mkdocs build --strict` fails.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator
from os.path import normpath, relpath
from pathlib import Path, PurePosixPath
from typing import Any

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

JsonObject = dict[str, Any]


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
    """Every command: its usage, its purpose and its options, from the parser itself."""
    from rare_trt.cli import parser

    top = parser()
    (commands,) = (a for a in top._actions if isinstance(a, argparse._SubParsersAction))
    summaries = {action.dest: action.help for action in commands._choices_actions}
    parts = []
    for name, command in commands.choices.items():
        parts += [f"## {name}", _sentence(command.description or summaries[name] or "")]
        parts.append(f"```text\n{_usage(command)}\n```")
        rows = ["| argument | meaning |", "|---|---|"]
        for group in command._action_groups:
            rows += [row for row in map(_option_row, group._group_actions) if row]
        parts.append("\n".join(rows))
    return "\n\n".join(parts)


def _usage(command: argparse.ArgumentParser) -> str:
    command.formatter_class = lambda prog: argparse.HelpFormatter(prog, width=95)
    first, *rest = command.format_usage().rstrip().splitlines()
    head = "usage: "
    return "\n".join([first.removeprefix(head), *(line[len(head) :] for line in rest)])


def _option_row(action: argparse.Action) -> str:
    if "--help" in action.option_strings:
        return ""
    metavar = "" if action.nargs == 0 else str(action.metavar or "")
    if action.choices:
        metavar = metavar or " ".join(map(str, action.choices))
    if not action.option_strings:
        names = f"`{metavar or action.dest}`"
    else:
        names = ", ".join(f"`{name}`" for name in action.option_strings)
        names += f" `{metavar or action.dest.upper()}`" if action.nargs != 0 else ""
    notes = [action.help or ""]
    default = action.default
    if "default" not in notes[0] and not (default is None or default is False or default == []):
        notes.append(f"default: `{default}`")
    if action.required and action.option_strings:
        notes.append("required")
    text = "; ".join(note for note in notes if note)
    return f"| {names} | {_sentence(text)} |".replace("||", "|")


def _sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:]


def c_header() -> str:
    """The C header: what it says of itself, then every declaration with its comment."""
    text = (REPOSITORY / "native/include/rare_trt.h").read_text()
    head, _, body = text.partition("#ifndef RARE_TRT_H")
    parts = [_comment(head.split("*/", 1)[0])]
    for chunk in re.split(r"\n{2,}", body):
        declared = re.sub(r"^/\*.*?\*/\n", "", chunk, flags=re.DOTALL)
        name = re.search(r"^} (\w+);|\b(rare_trt_\w+)\(|^typedef struct (\w+) \w+;", declared, re.M)
        if name is None or ("RARE_TRT_API " not in declared and "typedef" not in declared):
            continue
        title = next(group for group in name.groups() if group)
        comment = _comment(chunk.removesuffix(declared))
        parts.append(f"## {title}\n\n{comment}\n\n```c\n{declared.strip()}\n```")
    return "\n\n".join(parts)


def _comment(text: str) -> str:
    """A C comment as Markdown: names in code, indented lines as code."""
    text = re.sub(r"^/\*|\*/\s*$", "", text.strip())
    lines = [re.sub(r"^\s*\* ?", "", line) for line in text.splitlines()]
    out, code = [], False
    for line in lines:
        if line.startswith("  ") != code:
            code = not code
            out.append("```c" if code else "```")
        out.append(line.removeprefix("  ") if code else _named(line.strip()))
    return "\n".join(out).strip()


def _named(line: str) -> str:
    return re.sub(r"(?<!`)\*?\b(rare_trt_\w+|RARE_TRT_\w+)\b(?!`)", r"`\g<0>`", line)


def manifest_schema() -> str:
    """The manifest's schema as tables: one per object, one for the simple types."""
    schema = json.loads((REPOSITORY / "rare_trt/package/manifest.schema.json").read_text())
    parts = ["## manifest", _object_table(schema)]
    simple = []
    for name, definition in schema["definitions"].items():
        if "properties" in definition:
            about = _sentence(definition.get("description", ""))
            parts += [f"## {name}", *([f"{about}."] if about else [])]
            parts += _object_tables(definition, name)
        else:
            note = definition.get("description", "")
            simple.append(f"| {_anchor(name)} | {_type(definition)} | {_cell(note)} |")
    parts += ["## Types", "\n".join(["| type | values | meaning |", "|---|---|---|", *simple])]
    return "\n\n".join(parts)


def _anchor(name: str) -> str:
    return f'<span id="{name}">`{name}`</span>'


def _object_tables(definition: JsonObject, path: str) -> list[str]:
    """The table of the object at `path`, and below it those of the objects inside it."""
    parts = [_object_table(definition)]
    for name, entry in definition["properties"].items():
        inner = entry.get("items", entry)
        if "properties" in inner:
            parts.append(f"### {path}.{name}")
            parts += _object_tables(inner, f"{path}.{name}")
    return parts


def _object_table(definition: JsonObject) -> str:
    required = definition.get("required", [])
    rows = []
    for name, entry in definition["properties"].items():
        inner = entry.get("items", entry)
        kind = _type(entry) if "properties" not in inner else "object, below"
        if kind == "object, below" and "items" in entry:
            kind = "list of objects, below"
        need = "" if name in required else " (optional)"
        rows.append(f"| `{name}`{need} | {kind} | {_cell(entry.get('description', ''))} |")
    return "\n".join(["| entry | values | meaning |", "|---|---|---|", *rows])


def _type(entry: JsonObject) -> str:
    """The values that a schema entry allows, in words."""
    if "$ref" in entry:
        name = entry["$ref"].rpartition("/")[2]
        return f"[{name}](#{name})"
    if "const" in entry:
        return f"`{json.dumps(entry['const'])}`"
    if "enum" in entry:
        return ", ".join(f"`{value}`" for value in entry["enum"])
    if entry.get("type") == "array":
        low, high = entry.get("minItems", 0), entry.get("maxItems")
        count = f"{low} " if low == high else f"{low} or more " if high is None else ""
        count = count or f"{low} to {high} "
        return f"list of {count.removeprefix('0 or more ')}× {_type(entry['items'])}".replace(
            "list of × ", "list of "
        )
    types = entry.get("type", "object")
    name = " or ".join(types) if isinstance(types, list) else types
    if "additionalProperties" in entry and isinstance(entry["additionalProperties"], dict):
        inner = entry["additionalProperties"]["properties"]
        name = "object by file: " + ", ".join(f"`{key}` {_type(v)}" for key, v in inner.items())
    limits = [
        f"{words} {entry[key]}"
        for key, words in (
            ("minimum", "at least"),
            ("exclusiveMinimum", "above"),
            ("maximum", "at most"),
            ("maxLength", "characters at most"),
        )
        if key in entry
    ]
    if "pattern" in entry:
        limits.append(f"pattern `{entry['pattern']}`")
    return _cell(", ".join([name, *limits]))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


GENERATED: dict[str, Callable[[], str]] = {
    "command line": command_line,
    "C header": c_header,
    "manifest schema": manifest_schema,
}
