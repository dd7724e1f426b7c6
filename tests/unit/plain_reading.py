"""What a causal language model says of a text if it is read in the simplest way: the reference for every faster way.

One text at a time, no kept keys and values, no attention mask, and a text's first token is its first position. Nothing
here uses the package under test.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Text(NamedTuple):
    """One text, read plainly.

    blocks: the output of every block, each (tokens, d_model). final: final hidden states, (tokens, d_model).
    logprobs: log-probabilities of the next token in nats, (tokens, vocabulary).
    """

    blocks: list[Tensor]
    final: Tensor
    logprobs: Tensor


class PlainModel:
    """Reads texts with a model; a text that was read before is not read again.

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
        for output in outputs[:-1]:  # the model's own report norms the last
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
    """The hidden states among what a module returns."""
    tensor: Tensor = value[0] if isinstance(value, tuple | list) else value
    return tensor
