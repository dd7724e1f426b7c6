"""SAEs by their names in SAELens: errors and what is loaded, with a stand-in for the library."""

import hashlib
import importlib.util
import re
import sys
from pathlib import Path
from typing import Any

import fake_saelens
import huggingface_hub
import pytest
import torch

from ghosttrack.errors import UserError
from ghosttrack.inputs import pretrained, saelens
from ghosttrack.settings import SaeSettings
from ghosttrack.settings.names import LibraryName, library_name

SOURCE = "saelens:tiny-res/layer_{layer}/width_32/canonical"
D_MODEL, D_SAE = 8, 32
CFG: dict[str, Any] = {
    "architecture": "jumprelu",
    "d_in": D_MODEL,
    "d_sae": D_SAE,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": False,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {"hook_name": "blocks.5.hook_resid_post", "model_name": "tiny-gpt2"},
}
WEIGHTS = {
    "W_enc": torch.ones(D_MODEL, D_SAE),
    "b_enc": torch.zeros(D_SAE),
    "W_dec": torch.ones(D_SAE, D_MODEL),
    "b_dec": torch.zeros(D_MODEL),
    "threshold": torch.ones(D_SAE),
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return fake_saelens.install(tmp_path, monkeypatch)


def fetched(layer: int = 5, **change: Any) -> pretrained.Pretrained:
    return pretrained.fetched(SaeSettings(source=SOURCE, **change), layer, "resid_post", D_MODEL)


def publish(hub: Path, revision: str = fake_saelens.COMMIT, **change: Any) -> Path:
    return fake_saelens.publish(
        hub, "layer_5/width_32/canonical", {**CFG, **change}, WEIGHTS, revision
    )


def test_a_name_is_a_release_and_an_id_with_slashes() -> None:
    assert library_name("saelens:a/b/c") == LibraryName("a", "b/c")
    assert SaeSettings(source=SOURCE).from_library
    assert not SaeSettings(source=SOURCE).local
    assert SaeSettings(source="folder").local
    named = SaeSettings(source="saelens:a/blocks.{next_layer}.hook_resid_pre", revision="abc")
    assert named.source_of(4) == "saelens:a/blocks.5.hook_resid_pre"


@pytest.mark.parametrize("source", ["saelens:", "saelens:a", "saelens:a/", "saelens:/a"])
def test_a_name_without_release_or_id_is_refused_with_an_example(source: str) -> None:
    with pytest.raises(ValueError, match=r"expected saelens:RELEASE/SAE_ID, such as saelens:gemma"):
        SaeSettings(source=source)


def test_one_name_for_several_layers_is_refused() -> None:
    one = SaeSettings(source="saelens:tiny-res/layer_1/width_32/canonical")
    saelens.require_pattern(one, [1])
    saelens.require_pattern(SaeSettings(source=SOURCE), [1, 2])
    with pytest.raises(UserError, match=r"names one SAE, but 2 layers are analysed; write {layer}"):
        saelens.require_pattern(one, [1, 2])


def test_the_registry_is_read_without_importing_the_library(hub: Path) -> None:
    path = saelens.registry()
    assert path == hub.parent / "sae_lens" / "pretrained_saes.yaml"
    found = saelens.look_up(LibraryName("tiny-res", "layer_5/width_32/canonical"), path)
    assert (found.repository, found.model) == ("owner/tiny-saes", "tiny-gpt2")
    assert [found.l0[f"layer_{layer}/width_32/canonical"] for layer in (0, 1, 5)] == [7, 0, 4]
    last = saelens.look_up(LibraryName("other-res", "layer_1"), path)
    assert (last.model, list(last.l0)) == ("owner/other", ["layer_1"])
    assert "sae_lens" not in sys.modules


@pytest.mark.usefixtures("hub")
def test_an_unknown_name_lists_the_most_similar_ones() -> None:
    path = saelens.registry()
    assert path is not None
    with pytest.raises(UserError, match=r"knows no release tiny_res; most similar: tiny-res, "):
        saelens.look_up(LibraryName("tiny_res", "x"), path)
    with pytest.raises(
        UserError,
        match=r"tiny-res holds no SAE layer_1/width_16/canonical; most similar of 5: "
        r"layer_1/width_32/canonical, ",
    ):
        saelens.look_up(LibraryName("tiny-res", "layer_1/width_16/canonical"), path)
    with pytest.raises(UserError, match="a hub repository is named without `saelens:`"):
        saelens.look_up(LibraryName("owner", "name/folder"), path)


@pytest.mark.skipif(
    importlib.util.find_spec("sae_lens") is not None, reason="the library is installed"
)
def test_a_missing_library_is_one_line_that_says_what_to_install_and_where() -> None:
    assert saelens.registry() is None
    with pytest.raises(UserError) as error:
        fetched()
    said = str(error.value)
    assert "\n" not in said
    assert re.search(r"`\S*python\S* -m pip install -r envs/saelens.txt`", said)
    assert f"sae-lens=={saelens.TESTED} to the pip packages in envs/fetch.yaml" in said


def test_the_requirements_pin_the_tested_version_and_keep_every_version_of_the_lock() -> None:
    root = Path(__file__).resolve().parents[3]
    lines = (root / saelens.REQUIREMENTS).read_text().splitlines()
    assert "-c requirements.txt" in lines
    pinned = dict(line.split("==") for line in lines if line and line[0] not in "#-")
    assert pinned["sae-lens"] == saelens.TESTED
    lock = (root / "envs" / "requirements.txt").read_text().splitlines()
    taken = {line.split("==")[0].lower() for line in lock if "==" in line}
    assert not taken & {name.lower() for name in pinned}


@pytest.mark.parametrize("version", ["5.11.0", "7.0.0"])
def test_another_version_of_the_library_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    fake_saelens.install(tmp_path, monkeypatch, version)
    with pytest.raises(
        UserError, match=rf"SAELens {re.escape(version)} is installed, expected version 6"
    ):
        fetched()


def test_a_library_that_cannot_be_imported_is_named(hub: Path) -> None:
    (hub.parent / "sae_lens" / "__init__.py").write_text("import no_such_dependency\n")
    with pytest.raises(
        UserError, match=r"cannot be imported \(ModuleNotFoundError: No module.*saelens\.txt`"
    ):
        fetched()


def test_an_sae_is_loaded_at_one_commit_and_its_files_are_recorded(hub: Path) -> None:
    old, new = "a" * 40, fake_saelens.COMMIT
    publish(hub, old, apply_b_dec_to_input=True)
    folder = publish(hub)
    found = fetched()
    assert found.loaded is not None
    assert found.loaded.cfg["metadata"]["l0"] == 4.0
    assert found.files == []
    assert {name: tensor.shape for name, tensor in found.loaded.tensors.items()} == {
        name: tensor.shape for name, tensor in WEIGHTS.items()
    }
    assert found.loaded.origin == {
        "source": "saelens:tiny-res/layer_5/width_32/canonical",
        "repository": "owner/tiny-saes",
        "revision": new,
        "sae_lens": saelens.TESTED,
        "sha256": {
            f"layer_5/width_32/canonical/{name}": hashlib.sha256(
                (folder / name).read_bytes()
            ).hexdigest()
            for name in ("cfg.json", "weights.safetensors")
        },
    }
    pinned = fetched(revision=old)
    assert pinned.loaded is not None
    assert pinned.loaded.origin["revision"] == old
    assert pinned.cfg["apply_b_dec_to_input"] is True
    assert found.cfg["apply_b_dec_to_input"] is False


def test_the_library_is_left_as_it_was_also_after_an_error(hub: Path) -> None:
    import sae_lens.loading.pretrained_sae_loaders as loaders

    before = (loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes)
    with pytest.raises(
        UserError,
        match=r"sae\.source: saelens:tiny-res/layer_5/\S+ \(owner/tiny-saes\) at revision c+ "
        r"cannot be fetched.*no layer_5/width_32/canonical/cfg\.json.*save_model",
    ):
        fetched()
    publish(hub)
    fetched()
    assert (loaders.hf_hub_download, loaders.get_safetensors_tensor_shapes) == before


def test_an_unreachable_hub_is_named_and_its_cache_is_used(
    hub: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    publish(hub)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    with pytest.raises(UserError, match=r"the hub cannot be reached.*; without the hub, write it"):
        fetched()
    cached = tmp_path / "snapshots" / fake_saelens.COMMIT
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(cached))
    found = fetched()
    assert found.loaded is not None
    assert found.loaded.origin["revision"] == fake_saelens.COMMIT


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"metadata": {"hook_name": "blocks.4.hook_resid_post"}},
            "trained on resid_post of layer 4 .*, expected resid_post of layer 5",
        ),
        ({"metadata": {"hook_name": "blocks.5.attn.hook_z"}}, "trained on z of layer 5"),
        ({"metadata": {"hook_name": "blocks.5.hook_mlp_out"}}, "trained on mlp_out of layer 5"),
        ({"metadata": {"hook_name": "hook_embed"}}, "'hook_embed' names no known site"),
        ({"architecture": "temporal"}, "architecture is 'temporal'; supported: standard, "),
        ({"architecture": "transcoder"}, "architecture is 'transcoder'; supported: standard, "),
        ({"normalize_activations": "layer_norm"}, "'layer_norm', which scales every token"),
        (
            {"normalize_activations": "constant_norm_rescale"},
            "'constant_norm_rescale', which scales every token",
        ),
        ({"normalize_activations": "expected_average_only_in"}, "SAELens knows no scale"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
        ({"new_switch": True}, "remove it from a folder that SAELens's save_model wrote"),
    ],
)
def test_an_sae_that_cannot_be_converted_is_refused_in_one_line_with_its_name(
    hub: Path, change: dict[str, Any], said: str
) -> None:
    publish(hub, **change)
    with pytest.raises(UserError, match=said) as error:
        fetched()
    assert "saelens:tiny-res/layer_5/width_32/canonical" in str(error.value)
    assert "\n" not in str(error.value)


def test_an_sae_of_another_width_is_refused(hub: Path) -> None:
    publish(hub)
    with pytest.raises(UserError, match=r"canonical/cfg\.json: d_in is 8, but the model's width"):
        pretrained.fetched(SaeSettings(source=SOURCE), 5, "resid_post", 16)
