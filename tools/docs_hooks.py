"""What the documentation site does to pages that are also read beside the code."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError

ROOT = Path(__file__).resolve().parents[1]
API_PAGE, EVERY_NAME = "api.md", "<!-- every public name -->"

#: A link to a file of the repository that is no page: of the code, or above docs/.
_BESIDE = re.compile(
    r"\[([^\]]*)\]\(((?:\.\./)+(?:src|tests|benchmarks|examples|README)[^)#]*)[^)]*\)"
)
#: A role of docstrings, as it is rendered: ``:class:`~dynamicvit.Schedule```.
_ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod):<code>~?([\w.]+)</code>")


def public_names() -> list[str]:
    """``dynamicvit.__all__``, read without importing torch."""
    tree = ast.parse((ROOT / "src" / "dynamicvit" / "__init__.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return [name for name in ast.literal_eval(node.value) if not name.startswith("__")]
    raise PluginError("dynamicvit has no __all__")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Names for the API page; for links to code, which the site has not, the name of the file."""
    here = Path(page.file.abs_src_path).parent

    def named(link: re.Match[str]) -> str:
        text, target = link.groups()
        if not (here / target).exists():
            raise PluginError(f"{page.file.src_path}: links to {target}, which is not there")
        return text

    markdown = _BESIDE.sub(named, markdown)
    if page.file.src_path == API_PAGE:
        entries = "\n\n".join(f"::: dynamicvit.{name}" for name in public_names())
        markdown = markdown.replace(EVERY_NAME, entries)
    return markdown


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Roles as links to the entries of the page, or as code."""

    def shown(role: re.Match[str]) -> str:
        target = role[1]
        code = f"<code>{target.rpartition('.')[2]}</code>"
        return f'<a href="#{target}">{code}</a>' if f'id="{target}"' in html else code

    return _ROLE.sub(shown, html)
