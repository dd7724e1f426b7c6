"""Remarks: texts before a statement that assert the true or the false answer of its block.

In a conflict set, each statement of a minimal-pair block follows each of two remarks: one asserts
the true answer to its prompt, one the false answer. So the words of a text, the remark, and whether
the statement agrees with the remark say nothing about the label. A block has one wording: folds
that keep blocks whole can also leave out a wording.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from ghosttrack.errors import UserError
from ghosttrack.facts import answers
from ghosttrack.facts.examples import COLUMNS, Example, Question, example_table, same_text

if TYPE_CHECKING:
    import pandas as pd


# Remarks by wording, each up to the statement. {sentence}: the assertion, such as "The capital of
# Chad is Paris."; {clause}: the same within a sentence; {lines}: an assertion for every prompt of
# the block, the statement's own prompt last.
WORDINGS = {
    # What some people say.
    "hearsay": "Some say that {clause} In fact, ",
    # What a user believes, before an assistant's answer.
    "belief": "User: I am quite sure that {clause}\nAssistant: ",
    # A retrieved passage of three sentences, the assertion in the middle.
    "passage": "This note is part of a collection of short texts about the world. {sentence} Its "
    "editors last revised it a few years ago.\n\n",
    # More few-shot demonstrations, all of them true or all of them false.
    "demonstrations": "{lines}",
}
# A statement begins within a sentence after a remark that ends like this.
_CONNECTIVE = ", "
_ARTICLE = re.compile(r"(The|A|An) ")
# Beginning and ends of the prompts that hold a question, and ends of remarks that only a statement
# continues.
_ASKED, _MARKS, _STATED = "Q: ", ("?", "\uff1f", "\u061f"), ("In fact, ", "Assistant: ")
# End of a sentence, also before a closing quote.
_END = re.compile(r"[.!?\u3002\uff01\uff1f\u0964\u061f\u06d4][\"')\]\u201d\u2019]*$")


def with_remarks(
    examples: "pd.DataFrame", wordings: Sequence[str], contexts: Mapping[str, str]
) -> "pd.DataFrame":
    """The conflict set of a minimal-pair set: every statement after a true and a false remark.

    Args:
        examples: columns of `Example`. Prompts with other answers than one true and one false
            answer are left out.
        wordings: names in WORDINGS. Block i has wording i modulo their number.
        contexts: by relation, a text with which its remarks begin.
    Returns:
        Columns of `Example`, two rows per statement; the relation is that of the statement.
    """
    rows: list[Example] = []
    blocks: dict[str, list[Example]] = {}
    for row in paired(examples):
        blocks.setdefault(row.group, []).append(row)
    for number, block in enumerate(blocks.values()):
        rows.extend(_block(block, wordings[number % len(wordings)], contexts))
    return example_table(rows)


def paired(examples: "pd.DataFrame") -> list[Example]:
    """Rows whose prompt has one true and one false answer, with `other` filled in.

    The two answers differ in more than case: else no remark could assert one of them alone.
    """
    prompts: dict[tuple[str, str], list[Example]] = {}
    for record in examples[list(COLUMNS)].to_dict("records"):
        row = Example(**{str(key): value for key, value in record.items()})
        prompts.setdefault((row.group, row.text[: row.answer_start]), []).append(row)
    return [
        row._replace(other=rest.answer)
        for pair in prompts.values()
        if len(pair) == 2
        and pair[0].label != pair[1].label
        and same_text(pair[0].answer) != same_text(pair[1].answer)
        for row, rest in (pair, pair[::-1])
    ]


def _block(
    block: Sequence[Example], wording: str, contexts: Mapping[str, str]
) -> Iterator[Example]:
    pairs = {row.prompt: sorted((row.answer, row.other)) for row in block}
    stated = {(row.text[: row.answer_start], row.answer): row.text for row in block}
    for row in block:
        true, false = (row.answer, row.other) if row.label == 0 else (row.other, row.answer)
        # Other prompts of the block with the same two answers: what is true there is false here.
        partners = [
            other
            for other in block
            if pairs[other.prompt] == pairs[row.prompt]
            and other.prompt != row.prompt
            and other.label == 0
        ]
        for name, asserted in (("true", true), ("false", false)):
            lines = [
                _assertion(
                    partner.prompt,
                    stated[
                        partner.text[: partner.answer_start],
                        partner.answer if name == "true" else partner.other,
                    ],
                )
                for partner in partners
            ]
            remark = contexts.get(row.relation, "") + remark_of(
                wording,
                row.question,
                row.prompt,
                asserted,
                lines,
                stated[row.text[: row.answer_start], asserted],
            )
            statement = _after(remark, row.text) if row.prompt else row.text
            yield row._replace(
                id=f"{row.id}-{name}-remark",
                prompt=f"{remark}{statement[: len(row.prompt)]}",
                text=f"{remark}{statement}",
                answer_start=row.answer_start + len(remark),
                answer_end=row.answer_end + len(remark),
                remark=remark,
                remark_answer=asserted,
                wording=wording,
            )


def ask_after_remarks(
    questions: Sequence[Question], shots: Sequence[str], wordings: Sequence[str]
) -> list[Question]:
    """Every question after a true and after a false remark.

    Args:
        questions: `other` is the answer that the false remark asserts.
        shots: (questions,) the beginning of each prompt after which the remark is inserted.
        wordings: names in WORDINGS. Question i has wording i modulo their number.
    """
    rows = []
    for number, (question, shown) in enumerate(zip(questions, shots, strict=True)):
        wording = wordings[number % len(wordings)]
        own = question.prompt[len(shown) :]
        for name, asserted in (("true", usual_answer(question.gold)), ("false", question.other)):
            remark = remark_of(wording, question.question, own, asserted)
            rows.append(
                question._replace(
                    id=f"{question.id}-{name}-remark",
                    prompt=f"{shown}{remark}{_after(remark, own)}",
                    remark=remark,
                    remark_answer=asserted,
                    wording=wording,
                )
            )
    return rows


def usual_answer(gold: Sequence[str]) -> str:
    """The first accepted answer that a remark can assert: an answer of one line can match it."""
    return next(filter(answers.is_matchable, gold), gold[0])


def remark_of(
    wording: str,
    question: str,
    prompt: str,
    answer: str,
    lines: Sequence[str] = (),
    statement: str = "",
) -> str:
    """The remark that asserts an answer to a prompt, up to the statement.

    `lines`: assertions for other prompts of the block; `statement`: the text that states the
    answer, also what stands after it; "": prompt and answer.
    """
    sentence = _assertion(prompt, statement or f"{prompt} {answer}")
    said, text = sentence, WORDINGS[wording]
    if _asks(prompt):
        said = _closed(f'The answer to "{question or prompt}" is {answer}')
        for end in _STATED:
            text = f"{text.removesuffix(end).rstrip()}\n" if text.endswith(end) else text
    return text.format(
        sentence=said,
        clause=_within(said) if prompt else said,
        lines="".join(f"{line}\n" for line in (*lines, sentence)),
    )


def _asks(prompt: str) -> bool:
    return prompt.startswith(_ASKED) or prompt.rstrip().endswith(_MARKS)


def _assertion(prompt: str, statement: str) -> str:
    statement = statement.rstrip()
    return statement if _asks(prompt) else _closed(statement)


def _closed(sentence: str) -> str:
    return sentence if _END.search(sentence) else f"{sentence}."


def _within(sentence: str) -> str:
    """A sentence as it continues another: without the capital of a leading article."""
    return sentence[:1].lower() + sentence[1:] if _ARTICLE.match(sentence) else sentence


def _after(remark: str, statement: str) -> str:
    return _within(statement) if remark.endswith(_CONNECTIVE) else statement


def without_remarks(examples: "pd.DataFrame") -> "pd.DataFrame":
    """The same statements without remark: text, prompt and answer positions of the closed book.

    Rows without a remark are unchanged.
    """
    rows = examples.copy()
    for column in ("text", "prompt"):
        rows[column] = [
            _removed(str(text), str(remark), int(start))
            for text, remark, start in zip(
                examples[column], examples["remark"], examples["answer_start"], strict=True
            )
        ]
    for column in ("answer_start", "answer_end"):
        rows[column] = examples[column] - examples["remark"].map(len)
    return rows


def _removed(text: str, remark: str, before: int) -> str:
    """`text` without the last occurrence of `remark` that ends at character `before` or earlier."""
    if not remark:
        return text
    at = text.rindex(remark, 0, before)
    rest = text[at + len(remark) :]
    if remark.endswith(_CONNECTIVE) and _ARTICLE.match(rest[:1].upper() + rest[1:]):
        rest = rest[:1].upper() + rest[1:]
    return text[:at] + rest


def asserted_spans(examples: "pd.DataFrame", dataset: str) -> "pd.DataFrame":
    """The same texts with `answer_start` and `answer_end` of the answer that the remark asserts.

    It is the last occurrence of `remark_answer` in the remark, before the words with which every
    remark of the wording ends, and after the text's own prompt if the remark repeats it.

    Args:
        examples: columns of `Example`, each text with a remark.
        dataset: named in errors.
    Raises:
        UserError: a remark does not contain its answer.
    """
    spans = []
    for row in examples.to_dict("records"):
        remark, asserted = str(row["remark"]), str(row["remark_answer"])
        ending = WORDINGS.get(str(row["wording"]), "").rpartition("}")[2]
        said, start = remark.removesuffix(ending), int(row["answer_start"])
        before = str(row["text"]).rindex(remark, 0, start)
        # Without its first letter, which may be lower case in the remark.
        prompt = str(row["text"])[before + len(remark) : start][1:]
        at = said.rfind(prompt + asserted)
        at = at + len(prompt) if at >= 0 else said.rfind(asserted)
        if at < 0 or not asserted.strip():
            raise UserError(
                f"data set {dataset}, id {row['id']}: its remark {remark!r} does not contain the "
                f"answer {asserted!r} that it asserts; delete the data set's folder in examples/ "
                "and run again"
            )
        at += before
        spans.append((at, at + len(asserted)))
    starts, ends = zip(*spans, strict=True)
    return examples.assign(answer_start=starts, answer_end=ends)


def repeats(answer: str, asserted: str) -> bool:
    """Whether an answer of the model gives the answer that a remark asserts."""
    return answers.judge(answer, [asserted]) == answers.AnswerVerdict.CORRECT


def agreement(examples: "pd.DataFrame") -> list[bool]:
    """Whether each text states the answer that its remark asserts, (examples,)."""
    return [
        repeats(answer, asserted)
        if mode == "generated"
        else same_text(answer) == same_text(asserted)
        for mode, answer, asserted in zip(
            examples["mode"], examples["answer"], examples["remark_answer"], strict=True
        )
    ]


def strata(examples: "pd.DataFrame") -> list[str]:
    """Relation of each text, with the wording of its remark if it has one, (examples,).

    Output features of texts are comparable within a stratum.
    """
    if "wording" not in examples:
        return [str(relation) for relation in examples["relation"]]
    return [
        f"{relation} after {wording}" if wording else str(relation)
        for relation, wording in zip(examples["relation"], examples["wording"], strict=True)
    ]


def has_remarks(examples: "pd.DataFrame") -> bool:
    """Whether every text has a remark: the data set is a conflict set."""
    return "remark" in examples and bool(len(examples)) and bool((examples["remark"] != "").all())
