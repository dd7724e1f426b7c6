"""How the model answers questions."""

from typing import Literal

from pydantic import Field

from ghosttrack.settings.section import Section


class GenerationSettings(Section):
    """The model's own answers."""

    prompt: Literal["plain", "chat"] = Field(
        "plain",
        description="How a question is put: `plain` text behind solved questions, for base models; or, for instruct models, messages of `chat` in the template of the model's own tokenizer, solved questions as earlier messages (enable_thinking: false; a template that shows a date gets a fixed one). Labelled texts are read as they are in either case.",
    )
    max_new_tokens: int = Field(12, ge=1, le=512, description="Longest generated answer.")
    questions: int = Field(
        200, ge=4, description="Questions per generated data set, spread evenly over its relations."
    )
    samples: int = Field(
        4,
        ge=0,
        le=1000,
        description="Answers drawn for each question beside the greedy one, for self-consistency and semantic entropy; 0: none.",
    )
    temperature: float = Field(
        1.0,
        gt=0,
        description="Divides the logits before an answer is drawn; below 1: closer to the greedy answer.",
    )
