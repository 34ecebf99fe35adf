"""A MkDocs hook: pages that stand in the root of the repository join the site.

In the repository README.md links to docs/tutorial.md, and a guide links to ../../SECURITY.md. On
the site all pages stand below docs, so the links on both sides are rewritten.
"""

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "LOG.md")
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the root's pages."""
    for name in PAGES:
        files.append(File.generated(config, name, content=(ROOT / name).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:
    """Point links at where their pages stand on the site."""
    here = PurePosixPath(page.file.src_uri)
    source = here if str(here) in PAGES else "docs" / here

    def on_site(link: re.Match[str]) -> str:
        target = normpath(source.parent / link[1])
        return f"]({relpath(target.removeprefix('docs/'), here.parent)}"

    return LINK.sub(on_site, markdown)
