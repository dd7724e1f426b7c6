"""Write parts of a paper: LaTeX tables, pdf figures, a citation, and a document that shows them."""

import shutil
from pathlib import Path

import ghosttrack
from ghosttrack import scores as registry
from ghosttrack.report import paper as parts
from ghosttrack.runtime import files, job


def main(
    *,
    metrics: Path,
    ledger: Path,
    quality: list[Path],
    figures: list[Path],
    paper: Path,
    model: str,
    layers: list[int],
) -> None:
    """Write the folder `paper` with the pdf files of `figures`; `quality` in the order of `layers`."""
    by_layer = {layer: files.read_object(path) for layer, path in zip(layers, quality, strict=True)}
    drawn = [path for path in figures if path.suffix == ".pdf"]
    version = ghosttrack.__version__
    texts = {
        "paper.tex": parts.document(model, version, [path.stem for path in drawn]),
        "citation.bib": parts.citation(version),
        "tables/detectors.tex": parts.detectors(registry.read(metrics, registry.METRICS)),
        "tables/claims.tex": parts.claims(registry.read(ledger, registry.LEDGER)),
        "tables/saes.tex": parts.saes(by_layer),
    }
    with files.atomic_directory(paper) as partial:
        for folder in ("tables", "figures"):
            (partial / folder).mkdir()
        for name, text in texts.items():
            (partial / name).write_text(text, encoding="utf-8")
        for path in drawn:
            shutil.copyfile(path, partial / "figures" / path.name)


if __name__ == "__main__":
    job.run(main, globals())
