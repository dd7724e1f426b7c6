"""Small tokenizers with chat templates like those of instruct models."""

from typing import Any, NamedTuple

import small_models

# A template per family. They differ in role markers, bos token and end of an assistant message.
CHATML = """\
{%- for message in messages -%}
{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"""

LLAMA = """\
{%- if date_string is not defined -%}
{%- if strftime_now is defined -%}{%- set date_string = strftime_now('%d %b %Y') -%}
{%- else -%}{%- set date_string = '1 Jan 2020' -%}{%- endif -%}
{%- endif -%}
{{- bos_token + '<|head|>system<|/head|>\\n\\nToday is ' + date_string + '.<|eot|>' -}}
{%- for message in messages -%}
{{- '<|head|>' + message['role'] + '<|/head|>\\n\\n' + message['content'] | trim + '<|eot|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|head|>assistant<|/head|>\\n\\n' -}}{%- endif -%}"""

GEMMA = """\
{{- bos_token -}}
{%- if messages[0]['role'] == 'system' -%}{{- raise_exception('no system role') -}}{%- endif -%}
{%- for message in messages -%}
{%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}{{- raise_exception('roles must alternate') -}}{%- endif -%}
{%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
{{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\\n' -}}{%- endif -%}"""

# The turn markers are plain text, and there is no generation prompt.
MISTRAL = """\
{{- bos_token -}}
{%- for message in messages -%}
{%- if message['role'] == 'user' -%}{{- '[INST] ' + message['content'] + ' [/INST]' -}}
{%- else -%}{{- ' ' + message['content'] + eos_token -}}{%- endif -%}
{%- endfor -%}"""

PHI = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>' + '\\n' + message['content'] + '<|end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- else -%}{{- eos_token -}}{%- endif -%}"""

ZEPHYR = """\
{%- for message in messages -%}
{{- '<|' + message['role'] + '|>\\n' + message['content'] + eos_token + '\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>\\n' -}}{%- endif -%}"""

THINKING = CHATML.replace(
    "{{ '<|im_start|>assistant\\n' }}",
    "{{ '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and not enable_thinking -%}"
    "{{ '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}",
)


class Family(NamedTuple):
    """A chat template and the tokens it needs."""

    template: str  # Jinja
    special: list[str]  # special tokens to add to the tokenizer
    bos: int  # how often the template writes the bos token
    closes: str  # the end of a turn
    added: tuple[str, ...] = ()  # other tokens to add
    spaces: bool = False  # a space before the first word of a text, as in SentencePiece


FAMILIES = {
    "chatml": Family(CHATML, ["<|im_start|>", "<|im_end|>"], 0, "<|im_end|>"),
    "llama": Family(LLAMA, ["<|head|>", "<|/head|>", "<|eot|>"], 1, "<|eot|>"),
    "gemma": Family(GEMMA, ["<start_of_turn>", "<end_of_turn>"], 1, "<end_of_turn>"),
    "mistral": Family(MISTRAL, [], 1, "</s>"),
    "mistral with spaces": Family(MISTRAL, [], 1, "</s>", spaces=True),
    "phi": Family(PHI, ["<|user|>", "<|assistant|>", "<|end|>"], 0, "<|end|>", spaces=True),
    "zephyr": Family(ZEPHYR, [], 0, "</s>", spaces=True),
    "thinking": Family(
        THINKING, ["<|im_start|>", "<|im_end|>"], 0, "<|im_end|>", ("<think>", "</think>")
    ),
}


def make_tokenizer(family: Family) -> Any:
    """A tokenizer with the family's tokens and template; `<s>` begins and `</s>` ends a text."""
    tokenizer = _with_spaces() if family.spaces else small_models.make_tokenizer()
    tokenizer.add_special_tokens({"eos_token": "</s>"})
    tokenizer.add_tokens(family.special, special_tokens=True)
    tokenizer.add_tokens(list(family.added))
    tokenizer.chat_template = family.template
    return tokenizer


def _with_spaces() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    text = "".join(small_models.WORDS)
    letters = sorted({*map(chr, range(33, 127)), *text} - {" "})
    pieces = ["<s>", "\u2581", "\n", "\n\n", *letters, *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: number for number, piece in enumerate(pieces)},
            [("\n", "\n")],
            byte_fallback=True,
        )
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("\u2581", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<s>")


def make_model(tokenizer: Any, context: int = 1024) -> Any:
    """A random GPT-2 with an embedding row for every token of the tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=context,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return GPT2LMHeadModel(config).requires_grad_(False).eval()
