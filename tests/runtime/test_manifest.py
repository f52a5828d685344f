"""Hashing folders and refusing folders that are not what they were."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from edgetune_runtime.errors import BundleError, InputError
from edgetune_runtime.manifest import MANIFEST, read_manifest, sha256_file, sha256_tree, verify_files


def stage(folder: Path, **change: Any) -> Path:
    """Write a stage folder of two files and its manifest."""
    (folder / "sub").mkdir(parents=True)
    contents = {"a.bin": b"alpha", "sub/b.bin": b"beta" * 1000}
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    files = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
        for name, content in contents.items()
    }
    (folder / MANIFEST).write_text(json.dumps({"schema": 1, "stage": "export", "files": files, **change}))
    return folder


def test_sha256_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")  # the example of FIPS 180-2
    assert sha256_file(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_tree(path) == sha256_file(path)


def test_tree_hash_depends_on_names_and_contents_only(tmp_path: Path) -> None:
    first = stage(tmp_path / "first")
    hashed = sha256_tree(first)
    assert sha256_tree(stage(tmp_path / "second")) == hashed
    (first / MANIFEST).unlink()
    assert sha256_tree(first) == hashed  # read from the files now, not from the manifest
    (first / "a.bin").rename(first / "c.bin")
    assert sha256_tree(first) != hashed
    (first / "c.bin").rename(first / "a.bin")
    (first / "a.bin").write_bytes(b"alphA")
    assert sha256_tree(first) != hashed


def test_tree_hash_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file or folder"):
        sha256_tree(tmp_path / "gone")


def test_an_intact_folder_passes(tmp_path: Path) -> None:
    folder = stage(tmp_path / "x")
    verify_files(folder)
    assert read_manifest(folder)["stage"] == "export"


def test_changed_files_are_found(tmp_path: Path) -> None:
    folder = stage(tmp_path / "x")
    (folder / "sub/b.bin").write_bytes(b"BETA" * 1000)
    with pytest.raises(BundleError, match=r"b\.bin: sha256 differs"):
        verify_files(folder)
    verify_files(folder, max_bytes=1000)  # large files may be passed over
    with pytest.raises(BundleError, match=r"b\.bin: sha256 differs"):
        verify_files(folder, max_bytes=4000)
    (folder / "sub/b.bin").write_bytes(b"beta")
    with pytest.raises(BundleError, match=r"b\.bin: 4 bytes, manifest\.json says 4000"):
        verify_files(folder, max_bytes=3)
    (folder / "sub/b.bin").unlink()
    with pytest.raises(BundleError, match="missing"):
        verify_files(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "not a manifest"),
        ('{"schema": 2, "files": {}}', "schema 2, this version reads schema 1"),
        ('{"schema": 1, "files": {"../x": {"sha256": "", "size": 1}}}', "leads out of the folder"),
        ('{"schema": 1, "files": {"/x": {"sha256": "", "size": 1}}}', "leads out of the folder"),
        ('{"schema": 1, "files": {"x": {"size": 1}}}', "lacks its 'sha256' or 'size'"),
        ('{"schema": 1, "files": {"x": 5}}', "lacks its 'sha256' or 'size'"),
    ],
)
def test_broken_manifests(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(BundleError, match=message):
        read_manifest(tmp_path)


def test_folders_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no manifest\.json in this folder"):
        read_manifest(tmp_path)
    with pytest.raises(BundleError, match="no such folder"):
        read_manifest(tmp_path / "gone")


def test_progress_counts_every_byte_that_is_read(tmp_path: Path) -> None:
    folder = stage(tmp_path / "out")
    read: list[int] = []
    verify_files(folder, progress=read.append)
    assert sum(read) == 5 + 4000
    (folder / MANIFEST).unlink()
    sha256_tree(folder, progress=read.append)
    assert sum(read) == 2 * (5 + 4000)
