"""Sizes from a config.json, compared with those that transformers reads."""

import json
import logging
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from ghosttrack.errors import UserError
from ghosttrack.inputs.model_sizes import _stated, read_limit, read_sizes, require_context
from ghosttrack.inputs.models import max_context
from tests.conftest import ROOT

# As these models stand on the hub, with keys that transformers' own save_pretrained no longer writes.
HUB = {
    "gpt_neo": {
        "model_type": "gpt_neo",
        "num_layers": 12,
        "hidden_size": 768,
        "attention_types": [[["global", "local"], 6]],
    },
    "mpt": {"model_type": "mpt", "n_layers": 32, "d_model": 4096, "max_seq_len": 2048},
    "bloom": {"model_type": "bloom", "n_layer": 24, "n_embed": 1024},
    "bloom with both": {"model_type": "bloom", "n_layer": 70, "n_embed": 14336, "hidden_size": 64},
    "gpt2": {
        "model_type": "gpt2",
        "n_layer": 12,
        "n_embd": 768,
        "n_ctx": 1024,
        "n_positions": 1024,
    },
    "ctrl": {"model_type": "ctrl", "n_layer": 48, "n_embd": 1280, "n_positions": 256},
    "xglm": {
        "model_type": "xglm",
        "num_layers": 24,
        "d_model": 1024,
        "max_position_embeddings": 2048,
    },
    "opt": {
        "model_type": "opt",
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "max_position_embeddings": 2048,
    },
    "falcon": {"model_type": "falcon", "n_layer": 32, "hidden_size": 4544},
    "t5": {"model_type": "t5", "num_layers": 6, "d_model": 512},
    "gemma3": {
        "model_type": "gemma3",
        "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 3, "hidden_size": 32},
    },
}


def write(path: Path, about: Any) -> Path:
    path.write_text(about if isinstance(about, str) else json.dumps(about), encoding="utf-8")
    return path


@cache
def defaults() -> dict[str, dict[str, Any]]:
    """The default configuration of every causal language model that needs no arguments."""
    logging.disable(logging.WARNING)
    found = {}
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        try:
            config = CONFIG_MAPPING[name]()
            text = config.get_text_config()
            found[name] = {
                **config.to_dict(),
                "expected": (text.num_hidden_layers, text.hidden_size),
            }
        except (
            ValueError,
            AttributeError,
            StrictDataclassError,
        ):  # sizes must be given, or the architecture has none
            continue
    logging.disable(logging.NOTSET)
    return found


def test_every_causal_architecture_of_transformers_gives_its_own_sizes_or_none() -> None:
    found = defaults()
    assert len(found) > 150
    wrong = {
        name: (stated, about["expected"])
        for name, about in found.items()
        if (stated := _stated(about)) not in (None, about["expected"]) and name != "longcat_flash"
    }
    assert not wrong
    silent = {name for name, about in found.items() if _stated(about) is None}
    assert silent == {"nemotron_h", "prophetnet"}


@pytest.mark.parametrize("name", ["longcat_flash", "nemotron_h", "prophetnet"])
def test_an_architecture_that_computes_its_sizes_is_asked_through_transformers(
    tmp_path: Path, name: str
) -> None:
    config = CONFIG_MAPPING[name]()
    config.save_pretrained(tmp_path)
    found = read_sizes(tmp_path / "config.json", "model_path")
    assert (found.n_layers, found.d_model) == (config.num_hidden_layers, config.hidden_size)


@pytest.mark.parametrize("name", HUB)
def test_the_hubs_form_of_a_configuration_gives_the_sizes_that_transformers_reads(
    tmp_path: Path, name: str
) -> None:
    path = write(tmp_path / "config.json", HUB[name])
    text = AutoConfig.from_pretrained(tmp_path).get_text_config()
    assert read_sizes(path, "model_path")[:2] == (text.num_hidden_layers, text.hidden_size)


def test_sizes_under_any_common_name_are_read_without_transformers(tmp_path: Path) -> None:
    write(tmp_path / "config.json", HUB["mpt"])
    code = (
        "import sys; from pathlib import Path; from ghosttrack.inputs.model_sizes import read_sizes\n"
        f"assert read_sizes(Path({str(tmp_path / 'config.json')!r}), 'k')[:3] == (32, 4096, 2048)\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "workflow_scripts", check=True)


@pytest.mark.parametrize(
    ("about", "message"),
    [
        ("[" * 100_000, "cannot be read: .*copy config.json from the model again"),
        ("{oops", "cannot be read: .*copy config.json"),
        ("[1]", r"holds \[1\], expected an object as written by save_pretrained"),
        (
            "{}",
            "gives no size of the model; expected num_hidden_layers and hidden_size as whole numbers",
        ),
        (
            {"hidden_size": "64", "num_hidden_layers": 2},
            "gives .*'hidden_size': '64'.*; expected num_hidden_layers",
        ),
        ({"hidden_size": 64, "num_hidden_layers": True}, "gives .*'num_hidden_layers': True"),
        ({"hidden_size": 64, "num_hidden_layers": -2}, "gives .*'num_hidden_layers': -2"),
        (
            {"hidden_size": 64, "num_hidden_layers": 2, "n_positions": "many"},
            "has an invalid longest input",
        ),
    ],
    ids=str,
)
def test_a_configuration_without_readable_sizes_is_refused_with_what_it_states(
    tmp_path: Path, about: Any, message: str
) -> None:
    path = write(tmp_path / "config.json", about)
    with pytest.raises(UserError, match=rf"^model_path: .*config\.json {message}"):
        read_sizes(path, "model_path")


@pytest.mark.parametrize(
    ("about", "limit"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"text_config": {"max_position_embeddings": 64}, "n_ctx": 9}, 64),
        ({"max_target_positions": 448}, 448),
        ({"model_max_length": 4096}, 4096),
        ({"context_length": 1024}, 1024),
        ({"vocab_size": 8}, sys.maxsize),
        ({"n_positions": -1}, sys.maxsize),
        ({"max_position_embeddings": -1, "n_positions": 64}, 64),
        ({"max_position_embeddings": 0, "n_positions": 64}, 64),
        ({"max_position_embeddings": None, "n_positions": 64}, 64),
        ({"max_position_embeddings": 64.0}, 64),
        ({"text_config": None, "n_positions": 64}, 64),
        ({"text_config": [1], "n_positions": 64}, 64),
        ({"text_config": {}, "n_positions": 64}, sys.maxsize),
        ({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}, 512),
        ({"model_type": "xlm-roberta", "max_position_embeddings": 514}, 512),
        ({"model_type": "xmod", "max_position_embeddings": 514, "pad_token_id": 0}, 513),
    ],
)
def test_the_longest_input_is_found_under_every_name_that_architectures_use(
    tmp_path: Path, about: dict[str, Any], limit: int
) -> None:
    assert read_limit(write(tmp_path / "config.json", about), "k") == max_context(about) == limit


def test_a_context_may_be_as_long_as_the_model_allows() -> None:
    require_context(64, 64, "mine")
    with pytest.raises(
        UserError,
        match=r"corpus\.context: 65 .* than mine allows; set corpus\.context to at most 64",
    ):
        require_context(65, 64, "mine")


def test_every_causal_architecture_with_a_limit_states_it_under_a_known_key() -> None:
    # Recurrent, ALiBi and relative positions: no limit.
    unlimited = {
        "bloom",
        "cpmant",
        "falcon_mamba",
        "mamba",
        "mamba2",
        "recurrent_gemma",
        "xlnet",
        "xlstm",
    }
    found = {name for name, about in defaults().items() if max_context(about) == sys.maxsize}
    assert found == unlimited


@pytest.mark.parametrize(
    ("about", "expected"),
    [
        ({"vocab_size": 50_257}, 50_257),
        ({"text_config": {"vocab_size": 262_144}, "vocab_size": 9}, 262_144),
        ({}, None),
        ({"vocab_size": "many"}, None),
        ({"vocab_size": -1}, None),
    ],
)
def test_the_vocabulary_is_read_where_it_is_stated(
    tmp_path: Path, about: dict[str, Any], expected: int | None
) -> None:
    sizes = {"num_hidden_layers": 2, "hidden_size": 8}
    inner = {"text_config": {**sizes, **about["text_config"]}} if "text_config" in about else {}
    path = write(tmp_path / "config.json", {**sizes, **about, **inner})
    assert read_sizes(path, "k").vocab_size == expected
