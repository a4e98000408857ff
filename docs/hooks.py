"""What the site's builder does beside building: links out of docs/, and docstrings' roles."""

from __future__ import annotations

import re
from typing import Any

_OUTSIDE = re.compile(r"\[([^\]]+)\]\((?:\.\./)+([^)#]+)(?:#[^)]*)?\)")
_ROLE = re.compile(r":(?:class|func|data|meth|mod):(?=<code>)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Name files of the repository that the site has no page of, instead of linking to them."""
    if "/" in page.file.src_uri:
        return markdown  # below reference/, `../` leads to a page

    def named(link: re.Match[str]) -> str:
        text, path = link.groups()
        return f"`{path}`" if text.strip("`") in path else f"{text} (`{path}`)"

    return _OUTSIDE.sub(named, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Turn the role before a name in a docstring into nothing: the name is code already."""
    return _ROLE.sub("", html).replace("<code>~orchestrator.", "<code>orchestrator.")
