import pytest

from eff_plugins.models.image import __main__ as command
from tests.conftest import oracle


def test_table_of_a_tiny_network(capsys, tmp_path):
    oracle('timm')
    out = tmp_path / 'zoo.md'
    command.main(['--table', '--pattern', 'tinynet_e', '--out', str(out)])
    heading, _, line, *_, last = capsys.readouterr().out.splitlines()
    assert heading.startswith('name') and last == f'wrote {out}'
    cells = line.split()
    assert cells[0] == 'tinynet_e' and cells[7:9] == ['106', 'timm:tinynet_e']
    assert float(cells[1]) == pytest.approx(2.04, abs=0.01) and float(cells[2]) == 2.0
    assert float(cells[3]) == pytest.approx(100 * (float(cells[1]) / 2.0 - 1), abs=0.06)
    assert float(cells[-1]) <= 1e-4
    # columns stand below their headings
    assert line.index('106') + 3 == heading.index('input') + 5
    document = out.read_text()
    assert '| tinynet_e | ' in document and 'Han et al., NeurIPS 2020' in document
    table = [text for text in document.splitlines() if text.startswith('|')]
    assert len({text.count('|') for text in table}) == 1


def test_without_oracle_nothing_is_compared(capsys, monkeypatch):
    from eff_plugins.testing import oracles

    monkeypatch.setattr(oracles, 'build_oracle', lambda name: pytest.fail('an oracle was built'))
    command.main(['--table', '--no-oracle', '--pattern', 'tinynet_e'])
    line = capsys.readouterr().out.splitlines()[2]
    assert line.split()[-2:] == ['-', '-']


def test_names_alone_and_a_pattern_that_matches_nothing(capsys):
    command.main(['--pattern', 'regnetz*'])
    assert capsys.readouterr().out.split() == ['regnetz_4.0gf', 'regnetz_4.0gf_head', 'regnetz_500mf']
    with pytest.raises(SystemExit):
        command.main(['--pattern', 'nothing*'])
    assert "no network matches 'nothing*'" in capsys.readouterr().err
