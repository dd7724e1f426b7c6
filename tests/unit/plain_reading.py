"""The plain forward pass of a causal language model: the reference of every faster one.

It reads one text at a time, without a KV cache and an attention mask, and a text's first token has
the first position. It does not use the package under test.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Text(NamedTuple):
    """The model's outputs for one text."""

    blocks: list[Tensor]  # output of every block, each (tokens, d_model)
    final: Tensor  # final hidden states, (tokens, d_model)
    logprobs: Tensor  # of the next token, in nats, (tokens, vocabulary)


class PlainModel:
    """Reads texts with a model, and keeps the results.

    Args:
        model: causal language model in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.blocks = largest_list(model)
        self._texts: dict[tuple[int, ...], Text] = {}

    def read(self, ids: Sequence[int]) -> Text:
        """Read one text, given as token ids."""
        key = tuple(ids)
        if key not in self._texts:
            self._texts[key] = self._read(key)
        return self._texts[key]

    def _read(self, ids: tuple[int, ...]) -> Text:
        outputs: list[Tensor] = []
        handles = [
            block.register_forward_hook(
                lambda _module, _arguments, output: outputs.append(first(output).clone())
            )
            for block in self.blocks
        ]
        try:
            with torch.inference_mode():
                found = self.model(
                    input_ids=torch.tensor([ids]), use_cache=False, output_hidden_states=True
                )
        finally:
            for handle in handles:
                handle.remove()
        states = found.hidden_states
        for output in outputs[:-1]:  # the last entry of hidden_states is normalised
            assert any(
                state.shape == output.shape and torch.equal(state, output) for state in states
            )
        logprobs = found.logits[0].float().log_softmax(-1)
        return Text([output[0] for output in outputs], states[-1][0], logprobs)


def largest_list(model: nn.Module) -> list[nn.Module]:
    """The blocks of a model: its list of modules with the most parameters."""
    lists: list[nn.ModuleList] = [
        module for module in model.modules() if isinstance(module, nn.ModuleList)
    ]
    sizes = [sum(weight.numel() for weight in each.parameters()) for each in lists]
    return list(lists[sizes.index(max(sizes))])


def first(value: Any) -> Tensor:
    """The hidden states in a module's output."""
    tensor: Tensor = value[0] if isinstance(value, tuple | list) else value
    return tensor
