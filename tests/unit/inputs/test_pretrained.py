"""Finding a layer's pretrained autoencoder, and refusing what does not fit it, from names and cfg.json alone."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ghosttrack.errors import UserError
from ghosttrack.inputs import pretrained
from ghosttrack.inputs.pretrained import Hook
from ghosttrack.settings import SaeSettings

CFG: dict[str, Any] = {
    "architecture": "jumprelu", "d_in": 8, "d_sae": 16, "dtype": "float32", "normalize_activations": "none",
    "metadata": {"hook_name": "blocks.5.hook_resid_post", "hook_head_index": None},
}  # fmt: skip
SPARSIFY: dict[str, Any] = {"d_in": 8, "expansion_factor": 4, "num_latents": 0, "k": 3, "activation": "topk"}


def put(folder: Path, cfg: dict[str, Any] = CFG, weights: str = "sae_weights.safetensors") -> Path:
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    (folder / weights).touch()
    return folder


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("blocks.5.hook_resid_post", Hook(5, "resid_post")),
        ("blocks.5.hook_resid_pre", Hook(4, "resid_post")),  # what enters a block is what leaves the one before
        ("blocks.0.hook_resid_pre", Hook(0, "resid_pre")),  # the embedding: the output of no block
        ("blocks.11.hook_mlp_out", Hook(11, "mlp_out")),
        ("blocks.3.attn.hook_z", Hook(3, "z")),
        ("layers.7", Hook(7, "resid_post")),
        ("transformer.h.7", Hook(7, "resid_post")),
        ("model.layers.7.mlp", Hook(7, "mlp_out")),
        ("layers.7.self_attn", Hook(7, "attn_out")),
        ("layer_07", Hook(7, None)),
        ("embed_tokens", None),
        ("width_16k", None),
    ],
)
def test_names_of_hooks_modules_and_folders_are_understood(name: str, place: Hook | None) -> None:
    assert pretrained.hook(name) == place


def test_a_folder_is_found_by_its_name_or_by_the_pattern(tmp_path: Path) -> None:
    for name in ("blocks.4.hook_resid_post", "blocks.5.hook_resid_post", "blocks.5.hook_mlp_out", "width_16k"):
        put(tmp_path / name)
    (tmp_path / "blocks.6.hook_resid_post").mkdir()  # holds nothing
    plain = SaeSettings(source=str(tmp_path))
    assert pretrained.locate(plain, 5, "resid_post").name == "blocks.5.hook_resid_post"
    assert pretrained.locate(plain, 5, "mlp_out").name == "blocks.5.hook_mlp_out"
    named = SaeSettings(source=f"{tmp_path}/blocks.{{next_layer}}.hook_resid_post")
    assert pretrained.locate(named, 4, "resid_post").name == "blocks.5.hook_resid_post"
    padded = SaeSettings(source=f"{tmp_path}/layer_{{layer:02d}}/width_16k")
    folder = put(tmp_path / "layer_07" / "width_16k")
    assert pretrained.locate(padded, 7, "resid_post") == folder
    for layer in (6, 9):
        with pytest.raises(UserError, match=rf"no autoencoder for resid_post of layer {layer} \(found blocks\.4"):
            pretrained.locate(plain, layer, "resid_post")
        with pytest.raises(UserError, match=rf"no cfg\.json: there is no autoencoder of layer {layer}"):
            pretrained.locate(padded, layer, "resid_post")
    put(tmp_path / "layers.5")
    with pytest.raises(UserError, match=r"holds several for resid_post of layer 5 \(found blocks\.5.*, layers\.5\)"):
        pretrained.locate(plain, 5, "resid_post")
    with pytest.raises(UserError, match="there is no folder owner/name; for a hub repository give its commit"):
        pretrained.locate(SaeSettings(source="owner/name"), 5, "resid_post")


def read(folder: Path, site: str = "resid_post") -> pretrained.Pretrained:
    return pretrained.read(folder, 5, site, 8)


def test_both_forms_and_that_before_version_6_are_described(tmp_path: Path) -> None:
    found = read(put(tmp_path / "a"))
    assert (found.form, found.architecture, found.d_sae, found.k, found.centred) == (
        "saelens",
        "jumprelu",
        16,
        None,
        False,
    )
    assert [path.name for path in found.files] == ["cfg.json", "sae_weights.safetensors"]
    old = {
        "d_in": 8, "d_sae": 16, "hook_point": "blocks.6.hook_resid_pre", "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 4}, "normalize_activations": False,
    }  # fmt: skip
    found = read(put(tmp_path / "b", old))
    assert (found.architecture, found.k, found.centred) == ("topk", 4, True)
    found = read(put(tmp_path / "layers.5", SPARSIFY, "sae.safetensors"))
    assert (found.form, found.architecture, found.d_sae, found.k, found.centred) == ("sparsify", "topk", 32, 3, False)
    assert read(put(tmp_path / "mine", {**SPARSIFY, "num_latents": 24}, "sae.safetensors")).d_sae == 24


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"d_in": 16}, "d_in is 16, the model's width is 8: it belongs to another model"),
        ({"d_in": None}, "d_in is None, expected a positive whole number"),
        ({"d_sae": "many"}, "d_sae is 'many'"),
        ({"architecture": "gated"}, "architecture is 'gated'; standard, jumprelu, topk, batchtopk can be read"),
        ({"architecture": "standard", "activation_fn": "gelu"}, "activation_fn is 'gelu', only relu and topk"),
        ({"architecture": "topk"}, "k is None"),
        ({"normalize_activations": "layer_norm"}, "normalize_activations is 'layer_norm'; none, expected_average_only_in"),
        ({"normalize_activations": True}, r"no activation_scaler\.json beside it"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
        ({"metadata": {"hook_name": "blocks.4.hook_resid_post"}}, r"it reads resid_post of layer 4 \(blocks\.4.*expected resid_post of layer 5"),
        ({"metadata": {"hook_name": "blocks.5.hook_resid_pre"}}, "it reads resid_post of layer 4"),
        ({"metadata": {"hook_name": "blocks.5.hook_mlp_out"}}, "it reads mlp_out of layer 5"),
        ({"metadata": {"hook_name": "hook_embed"}}, "'hook_embed' names no place in a block"),
        ({"metadata": {"hook_name": "blocks.5.hook_resid_post", "hook_head_index": 2}}, "one attention head"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_in_one_line(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = put(tmp_path / "sae", {**CFG, **change})
    with pytest.raises(UserError, match=said) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    assert str(folder / "cfg.json") in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"activation": "groupmax"}, "activation is 'groupmax'; topk can be read"),
        ({"transcode": True}, "transcode is true: it is no plain autoencoder"),
        ({"skip_connection": True}, "skip_connection is true"),
        ({"k": 0}, "k is 0, expected a positive whole number"),
    ],
)
def test_what_sparsify_has_and_we_do_not_is_named(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        read(put(tmp_path / "layers.5", {**SPARSIFY, **change}, "sae.safetensors"))


def test_a_sparsify_folder_of_another_layer_or_site_is_refused(tmp_path: Path) -> None:
    for name in ("layers.4", "layers.5.mlp"):
        with pytest.raises(UserError, match=rf"\({name}\), expected resid_post of layer 5"):
            read(put(tmp_path / name, SPARSIFY, "sae.safetensors"))


def test_missing_weights_and_broken_json_are_named(tmp_path: Path) -> None:
    folder = put(tmp_path / "a", weights="params.npz")
    with pytest.raises(UserError, match=r"a holds neither sae_weights\.safetensors nor sae\.safetensors"):
        read(folder)
    (folder / "cfg.json").write_text("{")
    with pytest.raises(UserError, match=r"cfg\.json cannot be read as JSON"):
        read(folder)


def test_a_hub_repository_gives_the_folder_and_the_files_that_are_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    names = [
        "README.md",
        "top/layers.5/cfg.json",
        "top/layers.5/sae.safetensors",
        "top/layers.5.mlp/cfg.json",
        "x/cfg.json",
    ]
    asked: list[Any] = []

    def download(repository: str, **rest: Any) -> str:
        asked.append((repository, rest))
        return str(tmp_path)

    about = SimpleNamespace(sha="f" * 40, siblings=[SimpleNamespace(rfilename=name) for name in names])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: about)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    for source in ("owner/name/top", "owner/name/top/layers.{layer}"):
        settings = SaeSettings(source=source, revision="abc")
        assert pretrained.fetch(settings, 5, "resid_post") == tmp_path / "top" / "layers.5"
        repository, rest = asked.pop()
        assert (repository, rest["revision"]) == ("owner/name", "f" * 40)
        assert "top/layers.5/sae.safetensors" in rest["allow_patterns"]
        with pytest.raises(UserError, match=r"sae\.source: .*no.* of layer 6|of layer 6"):
            pretrained.fetch(settings, 6, "resid_post")


def test_without_the_hub_its_cache_serves_or_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    settings = SaeSettings(source="owner/name", revision="abc")
    with pytest.raises(
        UserError, match=r"sae\.source: repository 'owner/name' at revision abc cannot be fetched.*name a local folder"
    ):
        pretrained.fetch(settings, 5, "resid_post")
    put(tmp_path / "layers.5", SPARSIFY, "sae.safetensors")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert pretrained.fetch(settings, 5, "resid_post") == tmp_path / "layers.5"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"source": "a/{layr}"}, r"a/\{layr\} may hold \{layer\} and \{next_layer\}"),
        ({"source": "a/{"}, r"may hold \{layer\}"),
        ({"source": "a/{}"}, r"may hold \{layer\}"),
        ({"source": "name", "revision": "abc"}, "OWNER/NAME"),
        ({"revision": "abc"}, "OWNER/NAME"),
    ],
)
def test_a_source_that_cannot_be_meant_is_refused(values: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SaeSettings(**values)
