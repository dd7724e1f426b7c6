"""How the model answers questions."""

from typing import Literal

from pydantic import Field

from ghosttrack.settings.section import Section


class GenerationSettings(Section):
    """How the model answers questions."""

    prompt: Literal["plain", "chat"] = Field(
        "plain",
        description="Prompt format. `plain`: few-shot demonstrations and the question as text, "
        "for base models; `chat`: messages in the chat template of the model's tokenizer, with "
        "the demonstrations as earlier messages, for instruct models. The template is "
        "rendered with `enable_thinking: false`. If it shows a date, the date is fixed. "
        "Labelled texts are read unchanged in both formats.",
    )
    max_new_tokens: int = Field(12, ge=1, le=512, description="Maximum tokens per answer.")
    questions: int = Field(
        200, ge=4, description="Questions per generated data set, spread evenly over its relations."
    )
    samples: int = Field(
        4,
        ge=0,
        le=1000,
        description="Answers sampled for each question in addition to the greedy one. "
        "Self-consistency and semantic entropy are computed from them. 0: none.",
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="Sampling temperature. Below 1, answers are closer to the greedy one.",
    )
