"""The documents point to files that exist."""

import re
from pathlib import Path
from urllib.parse import unquote

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    ROOT / name for name in ('README.md', 'CONTRIBUTING.md', 'CHANGELOG.md', 'benchmarks/results/README.md')
] + sorted([*ROOT.glob('docs/*.md'), *ROOT.glob('configs/**/README.md')])
# [text](target "title"), ![picture](target) and [name]: target
LINK = re.compile(r'\]\(\s*<?([^)\s>]+)>?[^)]*\)|^\s*\[[^\]]+\]:\s*<?([^\s>]+)', re.MULTILINE)


def relative_links(text):
    """Targets outside code that are neither addresses nor places in the same document, without their fragment."""
    text = re.sub(r'^```.*?^```|`[^`\n]*`', '', text, flags=re.MULTILINE | re.DOTALL)
    targets = [first or second for first, second in LINK.findall(text)]
    return [unquote(target.partition('#')[0]) for target in targets if not re.match(r'[a-z][a-z+.-]*:|#', target)]


def test_links_are_found():
    text = '[a](b.md#c) ![d](e/f.png "g") [`h`](i.py) [j](https://k.l) [m](#n) `[o](p)`\n[q]: r.md\n```\n[s](t)\n```\n'
    assert relative_links(text) == ['b.md', 'e/f.png', 'i.py', 'r.md']


@pytest.mark.parametrize('document', DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_resolve(document):
    links = relative_links(document.read_text(encoding='utf-8'))
    assert not sorted(link for link in links if not (document.parent / link).exists())
