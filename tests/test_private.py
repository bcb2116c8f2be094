"""Folders and files that others could have written are not used. Run as root, with folders given away; else skipped in part."""

from __future__ import annotations

import os

import pytest

from stylegan_dist.private import NotPrivate, open_private, private_folder, user_folder

OTHER = 54321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")


def test_a_new_folder_is_the_users_alone(tmp_path):
    folder = private_folder(tmp_path / "a" / "b")
    assert folder == (tmp_path / "a" / "b").resolve()
    assert folder.stat().st_mode & 0o777 == 0o700
    assert private_folder(folder) == folder


@needs_root
def test_a_folder_of_somebody_else(tmp_path):
    (tmp_path / "theirs").mkdir()
    os.chown(tmp_path / "theirs", OTHER, OTHER)
    with pytest.raises(NotPrivate, match=f"uid {OTHER}"):
        private_folder(tmp_path / "theirs")


@needs_root
def test_a_link_of_somebody_else(tmp_path):
    """Although it leads to a folder of ours, in which files would be written and removed."""
    (tmp_path / "mine").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "mine")
    assert private_folder(tmp_path / "link") == (tmp_path / "mine").resolve()
    os.lchown(tmp_path / "link", OTHER, OTHER)
    with pytest.raises(NotPrivate, match="symbolic link"):
        private_folder(tmp_path / "link")


@pytest.mark.parametrize("mode", [0o770, 0o702, 0o777])
def test_a_folder_that_others_may_write_to(tmp_path, mode):
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(mode)
    with pytest.raises(NotPrivate, match="others may write"):
        private_folder(tmp_path / "open")


def test_a_folder_that_others_may_replace(tmp_path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared").chmod(0o777)
    with pytest.raises(NotPrivate, match="sticky"):
        private_folder(tmp_path / "shared" / "mine")
    (tmp_path / "shared").chmod(0o1777)
    private_folder(tmp_path / "shared" / "mine")


def test_files_that_lead_elsewhere(tmp_path):
    (tmp_path / "precious").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "precious")
    (tmp_path / "dangling").symlink_to(tmp_path / "made")
    os.mkfifo(tmp_path / "pipe")
    for name in ("link", "dangling", "pipe"):
        for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            with pytest.raises(NotPrivate):
                open_private(tmp_path / name, flags)
    assert (tmp_path / "precious").read_text() == "x"
    assert not (tmp_path / "made").exists()
    (tmp_path / "precious").chmod(0o666)
    with pytest.raises(NotPrivate):
        open_private(tmp_path / "precious")


def test_where_a_user_remembers(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert user_folder("sums") == tmp_path / "xdg" / "stylegan-dist" / "sums"
    monkeypatch.delenv("XDG_CACHE_HOME")
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert user_folder("sums") == tmp_path / "home" / ".cache" / "stylegan-dist" / "sums"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path / "nowhere"))
    assert user_folder("sums") == tmp_path / f"stylegan-dist-{os.geteuid()}" / "sums"
    (tmp_path / f"stylegan-dist-{os.geteuid()}").chmod(0o777)
    assert user_folder("sums") is None


@needs_root
def test_a_home_of_somebody_else_is_left_alone(tmp_path, monkeypatch):
    """That of the user who called sudo, who could not use what root made there."""
    (tmp_path / "home").mkdir()
    os.chown(tmp_path / "home", OTHER, OTHER)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert user_folder("sums") == tmp_path / f"stylegan-dist-{os.geteuid()}" / "sums"
