"""Rebuild the shipped fact tables and training text from the packages that they come from."""

import logging
from pathlib import Path

from ghosttrack.errors import UserError
from ghosttrack.facts import fact_sources, fact_tables, fact_text, statements, text_sources
from ghosttrack.runtime import job

log = logging.getLogger("ghosttrack")


def main(*, folder: Path, wordnet: Path = Path("/usr/share/wordnet")) -> None:
    """Write facts/*.csv, statements/*.csv and corpus/wordnet.txt.xz below `folder`.

    Args:
        folder: the package's data folder, or another one to compare with it.
        wordnet: folder of WordNet 3.0's data files (Debian: package wordnet-base).
    """
    if not (wordnet / "data.noun").exists():
        raise UserError(
            f"wordnet: {wordnet} holds no data.noun; install Debian's wordnet-base or name the folder of WordNet 3.0's data files"
        )
    sources = fact_sources.load_sources()
    tables = fact_tables.tables(sources)
    for name, lines in tables.items():
        fact_sources.write_csv(folder / "facts" / f"{name}.csv", fact_sources.FACT_COLUMNS, lines)
    subjects = {statements.fold(line["subject"]) for lines in tables.values() for line in lines}
    for name, lines in text_sources.attributes(sources, wordnet, subjects).items():
        fact_sources.write_csv(
            folder / "statements" / f"{name}.csv", text_sources.STATEMENT_COLUMNS[name], lines
        )
    finder = fact_text.PairFinder(fact_tables.pairs(tables))
    documents = list(text_sources.gloss_documents(wordnet, finder))
    text_sources.write_corpus(folder / "corpus" / "wordnet.txt.xz", documents)
    log.info(
        "%d fact tables with %d rows, %d corpus documents",
        len(tables),
        sum(map(len, tables.values())),
        len(documents),
    )


if __name__ == "__main__":
    job.run(main, globals())
