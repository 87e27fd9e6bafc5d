from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgediffusion.errors import ManifestError
from edgediffusion.manifest_file import dump_manifest, format_of, parse_manifest, read_manifest
from tests.manifests import graph, tensor, valid_manifest

REWRITTEN = {"file": "unet/a", "rewrites": {"winograd": 3}}


def parse(data: object) -> Any:
    return parse_manifest(json.dumps(data).encode())


def test_a_valid_manifest_survives_the_round_trip() -> None:
    manifest = parse(valid_manifest())
    assert manifest.sizes == ((64, 64),)
    assert parse_manifest(dump_manifest(manifest)) == manifest
    assert dump_manifest(parse_manifest(dump_manifest(manifest))) == dump_manifest(manifest)


def test_unknown_fields_are_ignored_so_that_format_1_can_grow() -> None:
    data = valid_manifest() | {"added_in_2027": {"anything": [1]}}
    assert parse(data) == parse(valid_manifest())


def test_a_newer_format_is_named_before_anything_else() -> None:
    with pytest.raises(ManifestError, match=r"bundle format 4.*reads up to 3: upgrade"):
        parse({"format": 4, "all": "different"})


def test_all_faults_are_reported_at_once_with_their_paths() -> None:
    data = valid_manifest()
    del data["license"]
    data["latent"]["channels"] = "four"
    data["components"]["unet"]["graphs"][0]["precision"] = "fp12"
    data["components"]["unet"]["graphs"][0]["golden"][0]["inputs"]["sample"] = {"type": "magic"}
    data["tokenizer"]["bos"] = True
    with pytest.raises(ManifestError, match=r"5 fault") as caught:
        parse(data)
    for expected in (
        "$.license: is missing",
        "$.latent.channels: got string, expected int",
        "$.components.unet.graphs[0].precision: got 'fp12', expected 'fp16' or 'fp32' or 'int8'",
        "$.components.unet.graphs[0].golden[0].inputs.sample.type: got 'magic'",
        "$.tokenizer.bos: got boolean, expected int",
    ):
        assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("format",), 0, r"\$.format: got 0, expected 1 to 3"),
        (("latent", "scaling_factor"), 0, r"\$.latent: .* scaling_factor not 0"),
        (("latent", "rgb"), [[1, 1, 1]], r"\$.latent.rgb: got 1 rows, expected 4"),
        (("latent", "rgb_bias"), [1], r"\$.latent.rgb_bias: got 1 items, expected 3"),
        (("defaults", "steps"), 0, r"\$.defaults.steps: got 0, expected at least 1"),
        (("tokenizer", "file"), "x.json", r"\$.tokenizer.file: 'x.json' is not listed"),
        (("tokenizer", "length"), 2, r"\$.tokenizer.length: got 2, expected at least 3"),
        (("tokenizer", "bos"), "<s>", r"\$.tokenizer.bos: got string, expected"),
        (("components", "unet", "graphs"), [], r"\$.components.unet.graphs: is empty"),
        (("components", "unet", "graphs"), {}, r"graphs: got object, expected array"),
        (("components", "unet"), 7, r"\$.components.unet: got number 7, expected object"),
        (("components",), [], r"\$.components: got array, expected object"),
        (("components", "unet", "weights"), "unet/w", r"'unet/w' is not listed in \$.files"),
        (("components", "unet", "golden"), "tokenizer/tokenizer.json", r"lies outside the comp"),
        (("components", "unet", "graphs", 0, "batch"), 0, r"batch: got 0, expected at least 1"),
        (("components", "unet", "graphs", 0, "size"), [0, 8], r"size: got \(0, 8\), expected two"),
        (("components", "unet", "graphs", 0, "size"), "big", r"size: got string, expected"),
        (("components", "unet", "graphs", 0, "inputs"), [], r"needs at least one tensor"),
        (
            ("components", "unet", "graphs", 0, "fp32"),
            REWRITTEN,
            r"fp32.file: 'unet/a' is not list",
        ),
        (
            ("components", "unet", "graphs", 0, "bf16"),
            {"amx": REWRITTEN},
            r"bf16.amx.file: 'unet/a' is not list",
        ),
        (("components", "unet", "graphs", 0, "outputs"), [tensor("a", -1)], r"\(-1,\), not static"),
    ],
)
def test_each_fault_is_named(path: tuple[Any, ...], value: object, message: str) -> None:
    data = valid_manifest()
    place: Any = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(ManifestError, match=message):
        parse(data)


def test_int8_graphs_need_their_measured_gate() -> None:
    data = valid_manifest() | {"format": 2}
    data["components"]["unet"]["graphs"][0]["precision"] = "int8"
    with pytest.raises(ManifestError, match=r"\$.gates: has none for int8, which graphs"):
        parse(data)
    data["gates"]["int8"] = 0.02
    manifest = parse(data)
    assert format_of(manifest.components) == 2
    assert format_of(parse(valid_manifest()).components) == 1


def test_a_pair_of_text_encoders_needs_both_and_their_tokenizers() -> None:
    data = valid_manifest() | {"format": 3}
    data["conditioning"]["recipe"] = "clip-pair"
    with pytest.raises(ManifestError, match=r"\$\.components: text_encoder_2 is missing") as caught:
        parse(data)
    assert "$.tokenizer_2: goes with recipe clip-pair, got clip-pair" in str(caught.value)
    second = json.loads(
        json.dumps(data["components"]["text_encoder"]).replace("text_encoder/", "text_encoder_2/")
    )
    data["components"]["text_encoder_2"] = second
    for path in (second["weights"], second["golden"], *(g["file"] for g in second["graphs"])):
        data["files"][path] = data["files"][data["tokenizer"]["file"]]
    data["tokenizer_2"] = data["tokenizer"] | {"file": "tokenizer_2/tokenizer.json", "length": 2}
    with pytest.raises(ManifestError, match=r"\$\.tokenizer_2\.length: got 2, expected") as caught:
        parse(data)
    assert "$.tokenizer_2.file: 'tokenizer_2/tokenizer.json' is not listed" in str(caught.value)
    data["tokenizer_2"] = data["tokenizer"]
    manifest = parse(data)
    assert list(manifest.tokenizers) == ["text_encoder", "text_encoder_2"]
    assert format_of(manifest.components) == 3
    data["conditioning"]["recipe"] = "clip"
    with pytest.raises(
        ManifestError, match=r"\$\.tokenizer_2: goes with recipe clip-pair, got clip"
    ):
        parse(data)


def test_a_tokenizer_may_begin_no_text() -> None:
    data = valid_manifest()
    data["tokenizer"]["bos"] = None
    assert parse(data).tokenizer.bos is None
    del data["tokenizer"]["bos"]
    assert parse(data).tokenizer.bos is None
    assert parse_manifest(dump_manifest(parse(data))) == parse(data)


def with_prompt_graph(*skip_states: int) -> Any:
    data = valid_manifest()
    component = data["components"]["text_encoder"]
    made = graph(
        "text_encoder/b1.prompt.onnx",
        [tensor("input_ids", 1, 77, dtype="int64"), tensor("extra_embeddings", 75, 16)],
        [tensor("skip_states", *skip_states), tensor("pooler_output", 1, 16)],
        variant="prompt",
    )
    component["graphs"].append(made)
    data["files"][made["file"]] = {"size": 1, "sha256": "0" * 64}
    return data


def test_a_graph_for_prompts_must_have_what_the_runtime_reads_from_it() -> None:
    parse(with_prompt_graph(1, 4, 77, 16))
    with pytest.raises(
        ManifestError, match=r"graphs\[1\]: a prompt graph needs skip_states with 4"
    ):
        parse(with_prompt_graph(1, 77, 16))
    data = with_prompt_graph(1, 4, 77, 16)
    data["components"]["text_encoder"]["graphs"][1]["inputs"].pop()
    with pytest.raises(ManifestError, match="a prompt graph needs extra_embeddings with 2 sides"):
        parse(data)


@pytest.mark.parametrize(
    "path", ["../x", "/etc/passwd", "a/../b", "C:/x", "a\\b", "a//b", ".x", ""]
)
def test_a_path_that_could_leave_the_bundle_is_refused(path: str) -> None:
    data = valid_manifest()
    data["files"][path] = {"size": 1, "sha256": "0" * 64}
    with pytest.raises(ManifestError, match="is not a plain relative path inside the bundle"):
        parse(data)


def test_a_missing_component_is_named() -> None:
    data = valid_manifest()
    del data["components"]["vae_decoder"]
    with pytest.raises(ManifestError, match=r"\$.components: vae_decoder is missing"):
        parse(data)


def test_a_bad_hash_is_named() -> None:
    data = valid_manifest()
    data["files"]["tokenizer/tokenizer.json"]["sha256"] = "XYZ"
    with pytest.raises(ManifestError, match="needs a size of at least 0 and a lower-case hex"):
        parse(data)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b'{"format": NaN}', b"[" * 100_000])
def test_what_is_not_json_is_said_to_be_damaged(raw: bytes) -> None:
    with pytest.raises(ManifestError, match="is not valid JSON"):
        parse_manifest(raw)


def test_a_folder_without_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"is not a bundle: it has no manifest\.json"):
        read_manifest(tmp_path)


def test_a_manifest_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").mkdir()
    with pytest.raises(ManifestError, match="cannot be read"):
        read_manifest(tmp_path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(data=st.data(), value=_JSON)
def test_any_field_replaced_by_anything_is_valid_or_a_manifest_error(
    data: st.DataObject, value: object
) -> None:
    manifest = valid_manifest()
    place: Any = manifest
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = data.draw(st.sampled_from(list(keys)))
        if not isinstance(place[key], (dict, list)) or not place[key] or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = value
    with suppress(ManifestError):
        parse(manifest)


@given(raw=st.binary(max_size=64))
def test_any_bytes_are_valid_or_a_manifest_error(raw: bytes) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(raw)


def in_parts(*parts: tuple[str, list[Any], list[Any]]) -> dict[str, Any]:
    data = valid_manifest()
    unet = data["components"]["unet"]["graphs"][0]
    unet["parts"] = [{"file": f, "inputs": i, "outputs": o} for f, i, o in parts]
    for file, _, _ in parts:
        data["files"][file] = {"size": 1, "sha256": "0" * 64}
    return data


SAMPLE, HIDDEN, RESULT = (
    tensor("sample", 1, 4, 8, 8),
    tensor("hidden", 1, 8, 4, 4),
    tensor("out_sample", 1, 4, 8, 8),
)


def test_parts_hand_on_what_the_later_ones_take() -> None:
    first, second = ("unet/p1.onnx", [SAMPLE], [HIDDEN]), ("unet/p2.onnx", [HIDDEN], [RESULT])
    data = in_parts(first, second)
    graph = parse(data).components["unet"].graphs[0]
    assert [part.file for part in graph.parts] == ["unet/p1.onnx", "unet/p2.onnx"]
    assert parse_manifest(dump_manifest(parse(data))) == parse(data)
    with pytest.raises(ManifestError, match=r"parts\[0\].inputs: hidden comes from nowhere"):
        parse(in_parts(second, first))
    with pytest.raises(ManifestError, match="no part gives the graph's output out_sample"):
        parse(in_parts(first))
    with pytest.raises(ManifestError, match=r"parts\[0\].file.* outside the component's folder"):
        parse(in_parts(("vae_decoder/p.onnx", [SAMPLE], [RESULT])))
    del data["files"]["unet/p2.onnx"]
    with pytest.raises(ManifestError, match=r"parts\[1\].file: 'unet/p2.onnx' is not listed"):
        parse(data)
