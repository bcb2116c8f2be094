import subprocess

import pytest

from stylegan_dist import provenance


@pytest.fixture
def source(tmp_path, monkeypatch):
    """A repository with a package, whose remote has a password."""
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "provenance.py").write_text("")
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "package" / "provenance.py"))
    provenance.source_state.cache_clear()
    yield tmp_path
    provenance.source_state.cache_clear()


def git(folder, *arguments):
    command = ["git", "-c", "user.name=x", "-c", "user.email=x@y", *arguments]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


def test_commit_and_changes(source):
    git(source, "init", "-q")
    git(source, "remote", "add", "origin", "https://user:hush-hush@host/x.git")
    git(source, "add", "package")
    git(source, "commit", "-q", "-m", "first")
    state = provenance.source_state()
    assert len(state["commit"]) == 40
    assert state == {"commit": state["commit"], "dirty": False}
    (source / "package" / "provenance.py").write_text("changed")
    provenance.source_state.cache_clear()
    assert provenance.source_state() == {"commit": state["commit"], "dirty": True}


def test_an_environment_inside_a_repository_is_not_its_source(source):
    git(source, "init", "-q")
    git(source, "commit", "-q", "--allow-empty", "-m", "of something else")
    assert provenance.source_state() == {}


def test_no_repository_or_no_git(source, monkeypatch):
    assert provenance.source_state() == {}
    monkeypatch.setenv("PATH", "")
    provenance.source_state.cache_clear()
    assert provenance.source_state() == {}
