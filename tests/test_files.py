import pytest

from eff_plugins.files import atomic


def test_a_file_appears_whole_in_a_new_folder_and_replaces_the_old_one(tmp_path):
    target = tmp_path / 'new' / 'rows.csv'
    for text in ('first', 'second'):
        with atomic(target) as partial:
            partial.write_text(text)
            assert partial.suffix == '.csv' and (text == 'first') != target.exists()
        assert target.read_text() == text
    assert [p.name for p in target.parent.iterdir()] == ['rows.csv']


def test_what_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / 'rows.csv'
    target.write_text('old')
    with pytest.raises(ZeroDivisionError), atomic(target) as partial:
        partial.write_text('ha')
        1 / 0  # noqa: B018
    assert [p.read_text() for p in tmp_path.iterdir()] == ['old']


def test_a_writer_that_wrote_nothing_is_told(tmp_path):
    with pytest.raises(FileNotFoundError), atomic(tmp_path / 'rows.csv'):
        pass
