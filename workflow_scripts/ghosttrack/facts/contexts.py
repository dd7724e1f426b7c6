"""Solved statements that stand before every text of a relation: they show the model how such a sentence ends.

All texts of a relation get the same ones, so they tell nothing about a label. None of them is an evaluated fact of
any shipped table, in either direction.
"""

from ghosttrack.facts.statements import TEMPLATES, Fact, sentence_of

# Subject and answer. Five show the form: with twelve of us_cities and ten of cities the answer's log-probability told no
# more, and with eight of borders_hard less (AUROC .653 against .700).
SOLVED: dict[str, tuple[tuple[str, str], ...]] = {
    "capital": (
        ("Japan", "Tokyo"),
        ("Egypt", "Cairo"),
        ("France", "Paris"),
        ("Peru", "Lima"),
        ("Norway", "Oslo"),
    ),
    "largest_city": (
        ("Brazil", "São Paulo"),
        ("Egypt", "Cairo"),
        ("France", "Paris"),
        ("Peru", "Lima"),
        ("Japan", "Tokyo"),
    ),
    "city": (
        ("Munich", "Germany"),
        ("Mumbai", "India"),
        ("Marseille", "France"),
        ("Melbourne", "Australia"),
        ("Osaka", "Japan"),
    ),
    "us_city": (
        ("Chicago", "Illinois"),
        ("Houston", "Texas"),
        ("Detroit", "Michigan"),
        ("Seattle", "Washington"),
        ("Miami", "Florida"),
    ),
    "country_continent": (
        ("Canada", "North America"),
        ("Chile", "South America"),
        ("France", "Europe"),
        ("Japan", "Asia"),
        ("Nigeria", "Africa"),
    ),
    "city_continent": (
        ("Chicago", "North America"),
        ("Lima", "South America"),
        ("Munich", "Europe"),
        ("Mumbai", "Asia"),
        ("Cairo", "Africa"),
    ),
    "language": (
        ("Angola", "Portuguese"),
        ("Argentina", "Spanish"),
        ("Austria", "German"),
        ("Greece", "Greek"),
        ("Iran", "Persian"),
    ),
    "border": (
        ("Texas", "Oklahoma"),
        ("Bavaria", "Saxony"),
        ("Ontario", "Quebec"),
        ("Kansas", "Nebraska"),
        ("Provence", "Liguria"),
    ),
    "symbol": (("oxygen", "O"), ("sulfur", "S"), ("iron", "Fe"), ("copper", "Cu"), ("lead", "Pb")),
    "number": (("oxygen", "8"), ("sulfur", "16"), ("iron", "26"), ("copper", "29"), ("lead", "82")),
}
REVERSE = "_reverse"


def context_of(relation: str) -> str:
    """One solved statement a line, the last line ended too; "" for a relation that has none."""
    base = relation.removesuffix(REVERSE)
    if base not in SOLVED or (relation.endswith(REVERSE) and not TEMPLATES[base].reverse_prompt):
        return ""
    facts = [
        Fact(base, subject, answer, (), (), (), (), "solved") for subject, answer in SOLVED[base]
    ]
    return "".join(f"{sentence_of(fact, reverse=relation.endswith(REVERSE))}\n" for fact in facts)
