"""Versions of packages, beside packages of others whose files cannot be read."""

import importlib.metadata

from framework.runtime.packages import package_versions


def test_a_package_whose_metadata_is_not_utf_8_does_not_matter(tmp_path, monkeypatch):
    (tmp_path / "olde-1.0.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: olde\nVersion: 1.0\nAuthor: Jürgen\n"
    (tmp_path / "olde-1.0.dist-info" / "METADATA").write_bytes(metadata.encode("latin-1"))
    expected = importlib.metadata.version("numpy")
    monkeypatch.syspath_prepend(tmp_path)
    assert package_versions(["numpy", "no-such-package"]) == {"numpy": expected}
