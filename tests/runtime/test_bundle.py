from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import edgediffusion as ed
from edgediffusion import bundle as bundle_module
from edgediffusion.bundle import find_bundle
from edgediffusion.hashing import sha256_file


def rewrite_manifest(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the manifest, and bring the listed sizes and hashes up to date."""
    path = folder / "manifest.json"
    data = json.loads(path.read_text())
    for name, spec in data["files"].items():
        if (folder / name).is_file():
            spec |= {
                "size": (folder / name).stat().st_size,
                "sha256": sha256_file(folder / name),
            }
    change(data)
    path.write_text(json.dumps(data))


def test_the_demo_opens_by_default_by_name_and_by_path(demo: Path) -> None:
    assert ed.Bundle.open().path == ed.Bundle.open("shapes").path == ed.Bundle.open(demo).path


def test_an_existing_path_wins_over_a_name(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied.rename(tmp_path / "shapes")
    monkeypatch.chdir(tmp_path)
    assert find_bundle("shapes") == tmp_path / "shapes"


def test_a_bundle_of_the_user_is_found_by_name(
    copied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "user_bundles", lambda: tmp_path / "mine")
    (tmp_path / "mine").mkdir()
    copied.rename(tmp_path / "mine" / "kiosk")
    assert ed.Bundle.open("kiosk").manifest.name == "shapes"


def test_an_unknown_name_gets_its_near_matches() -> None:
    with pytest.raises(ed.BundleNotFound, match=r"no bundle 'shape'.*did you mean shapes\?"):
        ed.Bundle.open("shape")


def test_a_file_is_no_bundle(demo: Path) -> None:
    with pytest.raises(ed.BundleNotFound, match="is a file, a bundle is a folder"):
        ed.Bundle.open(demo / "manifest.json")


def test_a_missing_file_is_named(copied: Path) -> None:
    (copied / "unet" / "weights.safetensors").unlink()
    with pytest.raises(ed.IntegrityError, match=r"weights\.safetensors is missing: copy or export"):
        ed.Bundle.open(copied)


def test_a_truncated_file_is_named(copied: Path) -> None:
    weights = copied / "unet" / "weights.safetensors"
    os.truncate(weights, weights.stat().st_size - 1)
    with pytest.raises(ed.IntegrityError, match=r"weights\.safetensors has \d+ bytes, the manif"):
        ed.Bundle.open(copied)


@pytest.mark.parametrize("name", ["unet/weights.safetensors", "tokenizer/tokenizer.json"])
def test_a_flipped_bit_is_found(copied: Path, name: str) -> None:
    data = bytearray((copied / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copied / name).write_bytes(data)
    with pytest.raises(ed.IntegrityError, match="it is damaged or foreign"):
        ed.Bundle.open(copied)


def test_a_large_file_is_hashed_again_when_it_changed(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundle_module, "ALWAYS_HASHED", 0)
    ed.Bundle.open(copied)
    hashed: list[Path] = []
    monkeypatch.setattr(
        "edgediffusion.hashing.sha256_file", lambda path: hashed.append(path) or sha256_file(path)
    )
    ed.Bundle.open(copied)
    assert hashed == []
    weights = copied / "unet" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(ed.IntegrityError, match="it is damaged or foreign"):
        ed.Bundle.open(copied)
    assert hashed == [weights]


def test_a_link_that_leaves_the_folder_is_refused(copied: Path, tmp_path: Path) -> None:
    weights = copied / "unet" / "weights.safetensors"
    weights.rename(tmp_path / "elsewhere")
    weights.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ed.UnsafePath, match="is a link that leaves the bundle's folder"):
        ed.Bundle.open(copied)


def test_a_linked_bundle_folder_is_fine(demo: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(demo, target_is_directory=True)
    assert ed.Bundle.open(tmp_path / "link").manifest.name == "shapes"


def test_external_data_that_leaves_the_folder_is_refused(copied: Path) -> None:
    graph = next((copied / "unet").glob("*.onnx"))
    raw = graph.read_bytes()
    assert b"weights.safetensors" in raw
    graph.write_bytes(raw.replace(b"weights.safetensors", b"../../etc/passwd..."))
    rewrite_manifest(copied, lambda data: None)
    bundle = ed.Bundle.open(copied)
    failed = [check for check in ed.verify(bundle) if not check.passed]
    assert [check.subject for check in failed] == [f"unet/{graph.name}"]
    assert "outside its own folder: refused" in failed[0].detail


def test_verify_passes_on_the_demo(demo: Path) -> None:
    checks = list(ed.verify(ed.Bundle.open(demo)))
    assert all(check.passed for check in checks)
    graphs = [check for check in checks if check.detail.startswith("L2")]
    assert len(graphs) == sum(
        len(each.graphs) for each in ed.Bundle.open(demo).manifest.components.values()
    )


def test_verify_says_on_what_and_in_which_arithmetic(demo: Path) -> None:
    checks = list(ed.verify(ed.Bundle.open(demo), "cpu"))
    graphs = [check.detail for check in checks if check.subject.endswith(".onnx")]
    assert all("gate 1e-04, cpu in fp32" in detail for detail in graphs if "L2" in detail)
    assert any("L2" in detail for detail in graphs)


def test_the_gate_is_that_of_the_arithmetic(copied: Path) -> None:
    bundle = ed.Bundle.open(copied)
    graph = bundle.graph("unet", size=(128, 128))
    assert bundle.gate(graph, "fp32") == 1e-4
    assert bundle.gate(graph, "bf16") == bundle.gate(graph, "fp16") == 3e-2
    rewrite_manifest(copied, lambda data: data["gates"].update(fp32=0.5, bf16=0.1))
    loose = ed.Bundle.open(copied)
    assert loose.gate(graph, "fp32") == loose.gate(graph, "bf16") == 0.5, "never tighter than fp32"
    rewrite_manifest(copied, lambda data: data["gates"].clear())
    silent = ed.Bundle.open(copied)
    assert silent.gate(graph, "fp32") == graph.parity.gate
    assert silent.gate(graph, "bf16") == 3e-2


def test_verify_finds_a_wrong_weight_behind_a_right_hash(copied: Path) -> None:
    weights = copied / "unet" / "weights.safetensors"
    data = bytearray(weights.read_bytes())
    header = int.from_bytes(data[:8], "little") + 8
    data[header + 1 : header + 4001 : 2] = b"\x3c" * 2000  # the high bytes of 2,000 fp16 values
    weights.write_bytes(data)
    rewrite_manifest(copied, lambda data: None)
    failed = {c.subject for c in ed.verify(ed.Bundle.open(copied)) if not c.passed}
    assert failed
    assert all(subject.startswith("unet/") for subject in failed)


def test_verify_reports_damage_and_goes_on(copied: Path) -> None:
    bundle = ed.Bundle.open(copied)
    (copied / "unet" / "golden.safetensors").write_bytes(b"not safetensors")
    checks = {check.subject: check for check in ed.verify(bundle)}
    assert not checks["unet/golden.safetensors"].passed
    assert checks["vae_decoder/golden.safetensors"].passed
    graph = bundle.manifest.components["unet"].graphs[0]
    assert not checks[graph.file].passed


def test_a_missing_golden_tensor_is_named(copied: Path) -> None:
    def rename(data: dict[str, Any]) -> None:
        case = data["components"]["text_encoder"]["graphs"][0]["golden"][0]
        next(iter(case["outputs"].values()))["tensor"] = "gone"

    rewrite_manifest(copied, rename)
    details = [c.detail for c in ed.verify(ed.Bundle.open(copied)) if not c.passed]
    assert len(details) == 1
    assert "has no tensor 'gone'" in details[0]


def test_graphs_that_are_not_there_are_answered_with_those_that_are(demo: Path) -> None:
    bundle = ed.Bundle.open(demo)
    with pytest.raises(ed.RequestError, match=r"no unet graph for batch 7 at 128x128; it has batc"):
        bundle.graph("unet", batch=7, size=(128, 128))
    with pytest.raises(ed.RequestError, match=r"no component 'unett': did you mean unet\?"):
        bundle.graph("unett")
