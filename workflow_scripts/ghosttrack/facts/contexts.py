"""Few-shot demonstrations that precede every text of a relation and show how its sentences end.

All texts of a relation get the same demonstrations, so these reveal nothing about a label. None of
them is an evaluated fact of any shipped table, in either direction.
"""

from ghosttrack.facts.statements import TEMPLATES, Fact, sentence_of

# Pairs of subject and answer. Five are enough to show the form. The AUROC of the answer's
# log-probability was not higher with twelve demonstrations for us_cities and ten for cities, and
# was lower with eight for borders_hard (.653 against .700).
DEMONSTRATIONS: dict[str, tuple[tuple[str, str], ...]] = {
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
    """The demonstrations of a relation, one per line with its line end; "" if there are none."""
    base = relation.removesuffix(REVERSE)
    if base not in DEMONSTRATIONS or (
        relation.endswith(REVERSE) and not TEMPLATES[base].reverse_prompt
    ):
        return ""
    facts = [
        Fact(base, subject, answer, (), (), (), (), "demonstration")
        for subject, answer in DEMONSTRATIONS[base]
    ]
    return "".join(f"{sentence_of(fact, reverse=relation.endswith(REVERSE))}\n" for fact in facts)
