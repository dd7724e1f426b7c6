# rules/common/score.smk -- helpers of rules/score.smk.
def user_texts(wildcards):
    """Input function: the file of texts to score (score.texts)."""
    path = SETTINGS[wildcards.model].score.texts
    if not path or not Path(path).is_file():
        found = f"{path} is not there" if path else "none is given"
        raise WorkflowError(
            f"score.texts: {found}; name a file of texts, as in --config 'score={{texts: mine.csv}}'"
        )
    return path


def user_context(wildcards):
    """Input function: the file of statements before the texts (score.context), if it is set."""
    path = SETTINGS[wildcards.model].score.context
    if path and not Path(path).is_file():
        raise WorkflowError(
            f"score.context: {path} is not there; name a text file of a few true statements, one a line"
        )
    return [path] if path else []
