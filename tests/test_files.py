import pytest

from eff_plugins.files import atomic, check_folder, check_writable


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


def test_where_nothing_can_be_written_is_known_beforehand(tmp_path, monkeypatch):
    check_writable(tmp_path / 'new' / 'a.json')
    assert list(tmp_path.iterdir()) == []
    (tmp_path / 'file').write_text('')
    with pytest.raises(IsADirectoryError, match='is a folder; name a file'):
        check_writable(tmp_path)
    with pytest.raises(NotADirectoryError, match='file is a file'):
        check_folder(tmp_path / 'file' / 'deeper')
    monkeypatch.setattr('os.access', lambda *_: False)
    with pytest.raises(PermissionError, match='no permission to write into'):
        check_writable(tmp_path / 'new' / 'a.json')
