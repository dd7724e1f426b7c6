# rules/common/detect.smk -- helpers of rules/detect.smk.
def closed_book(wildcards):
    """Input function: output on the statements without their remarks, of a conflict set."""
    folder = f"results/{wildcards.model}/examples/{wildcards.dataset}"
    return [f"{folder}/closed_book.parquet"] if wildcards.dataset in CONFLICT else []
