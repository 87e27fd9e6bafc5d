from __future__ import annotations

from pathlib import Path

import pytest

from edgediffusion_export.license import find_license


@pytest.mark.parametrize(
    ("files", "index", "found"),
    [
        ({}, {}, "unknown"),
        ({"README.md": "---\ntags: [a]\nlicense: openrail++\n---\n# x"}, {}, "openrail++"),
        ({"README.md": "---\nlicense: 'mit'\n---\n", "LICENSE": "Apache License"}, {}, "mit"),
        ({"README.md": "# no front matter\nlicense: mit\n"}, {}, "unknown"),
        ({}, {"license": "cc0-1.0"}, "cc0-1.0"),
        ({"LICENSE": "   Apache License\n Version 2.0"}, {}, "Apache-2.0"),
        ({"LICENSE.md": "# MIT License"}, {}, "MIT"),
        ({"LICENSE.txt": "You owe me a beer."}, {}, "see LICENSE.txt"),
    ],
)
def test_licences_are_found(
    tmp_path: Path, files: dict[str, str], index: dict[str, str], found: str
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert find_license(tmp_path, index) == found
