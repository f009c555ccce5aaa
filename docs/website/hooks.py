"""MkDocs' hooks for the site: pages from outside docs/, a page for each public function, versions, llms.txt."""

import json
import os
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
ROOT_PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    ".github/SECURITY.md": "report.md",
}
LINK = re.compile(r"\[(?P<text>[^][]*)\]\((?P<path>[^)\s:#]*)(?P<anchor>#[^)\s]*)?\)")
ROW = re.compile(r"^\| \[docs/(?P<path>\S+?)\.md\]\(\S+\) \| (?P<question>.+?) \|$", re.M)
HEADING = re.compile(r"^#{2,3} (.+)$", re.M)
SIGNATURE = re.compile(r"^    (?:loracomp|bi)\.(\w+)\(", re.M)
RELEASE = re.search(r'"(\d+\.\d+)', (ROOT / "loracomp" / "__init__.py").read_text())[1]


def on_config(config: Any) -> Any:
    """Each minor version has a separate folder, so that the pages of older versions stay."""
    config.site_dir = str(Path(config.site_dir) / RELEASE)
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are not in docs/, and what pages link to outside it."""
    for source, target in ROOT_PAGES.items():
        files.append(File.generated(config, target, content=(ROOT / source).read_text()))
    for page in (DOCS / "answers.md", *sorted((DOCS / "sql").glob("*.md"))):
        for name, text in functions(page).items():
            files.append(
                File.generated(config, f"functions/{name}.md", content=text, inclusion=InclusionLevel.NOT_IN_NAV)
            )
    return files


def functions(page: Path) -> dict[str, str]:
    """The pages of the functions that a page of the SQL reference shows, by name: their section of it."""
    here = f"../{page.relative_to(DOCS)}"

    def led(link: re.Match[str]) -> str:
        path = os.path.relpath(page.parent / link["path"], DOCS / "functions") if link["path"] else here
        return f"[{link['text']}]({path}{link['anchor'] or ''})"

    _, *parts = HEADING.split(page.read_text())
    return {
        name: f"# {name}\n{LINK.sub(led, text)}\n[All of {page.stem}]({here})\n"
        for text in parts[1::2]
        for name in SIGNATURE.findall(text)
    }


def on_page_markdown(markdown: str, page: Any, files: Files, **_: Any) -> str:
    """Links to pages lead to the site's pages. Links to other files become plain names of the files."""
    sources = {target: source for source, target in ROOT_PAGES.items()}
    folder = (ROOT / sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")).parent
    up = "../" * page.file.src_uri.count("/")

    def led(link: re.Match[str]) -> str:
        if not link["path"]:
            return link[0]
        target = (folder / link["path"]).resolve().relative_to(ROOT).as_posix()
        uri = ROOT_PAGES.get(target, target.removeprefix("docs/"))
        in_site = target.startswith("docs/") or target in ROOT_PAGES
        return f"[{link['text']}]({up}{uri}{link['anchor'] or ''})" if in_site else link["text"]

    return LINK.sub(led, markdown)


def on_post_build(config: Any) -> None:
    """List the versions for the site's menu, redirect the root to the newest, and write llms.txt from README."""
    site = Path(config.site_dir).parent
    versions = sorted((path.name for path in site.glob("[0-9]*")), key=lambda name: [*map(int, name.split("."))])[::-1]
    (site / "versions.json").write_text(
        json.dumps([{"version": each, "title": each, "aliases": []} for each in versions])
    )
    (site / "index.html").write_text(f'<meta http-equiv="refresh" content="0; url={versions[0]}/">\n')
    rows = ROW.finditer((ROOT / "README.md").read_text())
    pages = "".join(
        f"- [{row['path']}]({versions[0]}/{row['path']}/): {LINK.sub(lambda link: link['text'], row['question'])}\n"
        for row in rows
    )
    (site / "llms.txt").write_text(f"# loracomp\n\n> {config.site_description}\n\n## Docs\n\n{pages}")
