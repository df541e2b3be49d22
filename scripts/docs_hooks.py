"""Called by mkdocs for each page, so that a page looks in the site as it does in the repository.

Links to raw records, which are not part of the site, become plain text. Lists get the empty line that mkdocs needs
before their first item.
"""

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\((?!https?:|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")
ITEM = re.compile(r"\s*([-*]|\d+\.) ")


def on_page_markdown(markdown, page, config, files):
    def replaced(match):
        target = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), match[2]))
        file = files.get_file_from_path(target)
        in_site = file is not None and file.inclusion.is_included()
        return match[0] if in_site or not (ROOT / target).exists() else match[1]

    return with_space_before_lists(LINK.sub(replaced, markdown))


def with_space_before_lists(markdown):
    lines, in_code, in_list = [], False, False
    for line in markdown.splitlines():
        in_code ^= line.startswith("```")
        if not in_code and ITEM.match(line):
            if not in_list and lines and lines[-1].strip():
                lines.append("")
            in_list = True
        elif not line.startswith(" "):
            in_list = False
        lines.append(line)
    return "\n".join(lines)
