"""Pages of the site that are made of other files, for `mkdocs build`.

The README, the results of the benchmarks and the other pages of the repository are taken as they
are; each example becomes a page of its text blocks, its code, and what it printed and drew. Links
between all these go to the pages; one in a built page that leads to no file is a warning.
"""

import ast
import logging
import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

from mkdocs.structure.files import File

ROOT = Path(__file__).parent.parent
# Pages of the site, by the files in the repository that they are made of.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "benchmarks/RESULTS.md": "benchmarks.md",
}
# Files that the site has copies of, since pages lead to them.
COPIES = (
    "LICENSE",
    "examples/*.py",
    "benchmarks/*.py",
    "benchmarks/results/*",
    "docs/printed/*.png",
)
EXAMPLES = [path.stem for path in ROOT.glob("examples/*.py")]
PAGES |= {f"examples/{name}.py": f"tutorials/{name}.md" for name in EXAMPLES}
CIRCUMSTANCES = """On two CPU cores, with Keras 3.15 on TensorFlow 2.21 (several hosts: JAX 0.10).
Other machines and versions round differently, and a training then takes another path: expect
numbers close to these, not the same."""
LINK = re.compile(r"(\]\()([^)#:]+)((?:#[^)]*)?\))")
LOGGER = logging.getLogger("mkdocs.hooks.links")  # Its warnings end a strict build.
HEADER = re.compile(r"^(Title|Description): *(.*)$", re.M)


def on_files(files, config):
    """Adds the pages that are made of files elsewhere."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        text = page_of_example(ROOT / source, text) if source.endswith(".py") else text
        files.append(File.generated(config, page, content=with_links(text, source, page)))
    for path in (path for pattern in COPIES for path in ROOT.glob(pattern)):
        copy = f"files/{path.relative_to(ROOT).as_posix()}"
        files.append(File.generated(config, copy, content=path.read_bytes()))
    return files


def on_page_markdown(markdown, page, config, files):
    """Makes the links of pages in `docs`, which lead to files of the repository, lead to pages."""
    if page.file.generated_by:
        return markdown
    return with_links(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)


def on_post_build(config):
    """Warns of links to files that the site lacks.

    MkDocs itself looks at its sources: a link to a file that `exclude_docs` keeps out passes there.
    """
    site = Path(config.site_dir)
    for page in sorted(site.rglob("*.html")):
        links = Links()
        links.feed(page.read_text(encoding="utf-8"))
        for link in links.found:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc or not parts.path:
                continue
            start = site if parts.path.startswith("/") else page.parent
            target = start / unquote(parts.path).lstrip("/")
            if not (target / "index.html" if target.is_dir() else target).is_file():
                LOGGER.warning("%s leads to '%s', which is not built", page.relative_to(site), link)


class Links(HTMLParser):
    """What the elements of a page lead to or show."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        """Called by the parser for each element."""
        self.found += [value for name, value in attrs if name in ("href", "src") and value]


def with_links(text, source, page):
    """A text with its links to files of the repository as links from its page to their pages."""

    def link(match):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), match[2]))
        if not (ROOT / target).exists():
            return match[0]  # No link at all, or one to a page that is made.
        of_docs = target.removeprefix("docs/") if target.startswith("docs/") else None
        inside = PAGES.get(target) or of_docs or f"files/{target}"
        return f"{match[1]}{posixpath.relpath(inside, posixpath.dirname(page) or '.')}{match[3]}"

    return LINK.sub(link, text)


def page_of_example(path, text):
    """An example as a page: its texts, its code, and then what it printed and drew."""
    lines = text.splitlines()
    parts, code_from = [], 0
    for number, node in enumerate(ast.parse(text).body):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            parts.append(code("\n".join(lines[code_from : node.lineno - 1])))
            parts.append(heading(node.value.value) if number == 0 else node.value.value)
            code_from = node.end_lineno
    parts.append(code("\n".join(lines[code_from:])))
    printed = ROOT / "docs" / "printed" / f"{path.stem}.txt"
    if printed.exists():
        parts.append(f"## What it prints\n\n{CIRCUMSTANCES}")
        parts.append(code(printed.read_text(encoding="utf-8"), "text"))
    picture = printed.with_suffix(".png")
    if picture.exists():
        parts.append(f"![The picture that it draws](../files/docs/printed/{picture.name})")
    parts.append(f"[The file](../files/examples/{path.name})")
    return "\n\n".join(filter(None, parts)) + "\n"


def heading(docstring):
    """The first text of an example: the header of keras.io's guides, or a docstring."""
    header = dict(HEADER.findall(docstring))
    if header:
        return f"# {header['Title']}\n\n{header['Description']}"
    first, _, rest = docstring.partition("\n")
    return f"# {first.rstrip('.')}\n{rest}"


def code(text, language="python"):
    """A block of code; nothing for nothing."""
    text = text.strip("\n")
    return f"```{language}\n{text}\n```" if text.strip() else ""
