"""Wordings of the training statements of many kinds: `{s}` is the subject, `{a}` the answer."""

from typing import NamedTuple

END, FRONT, MIDDLE = "end", "front", "middle"


class Wording(NamedTuple):
    """One wording of a relation, affirmed and negated, without the final full stop.

    `form` says where the answer stands: END after the subject, as the last words; FRONT before the
    subject; MIDDLE with further words behind subject and answer.
    """

    form: str
    affirmed: str
    negated: str


class Comparison(NamedTuple):
    """Two opposite wordings of a comparison of `{s}` with `{a}`, each affirmed and negated."""

    more: str
    less: str
    not_more: str
    not_less: str


WORDINGS: dict[str, tuple[Wording, ...]] = {
    "capital": (
        Wording(END, "The capital city of {s} is {a}", "The capital city of {s} is not {a}"),
        Wording(END, "{s} has a capital called {a}", "{s} does not have a capital called {a}"),
        Wording(FRONT, "{a} serves as the capital of {s}", "{a} is not the capital of {s}"),
        Wording(
            FRONT,
            "{a} is the name of the capital of {s}",
            "{a} is not the name of the capital of {s}",
        ),
        Wording(MIDDLE, "{s} has {a} as its capital", "{s} does not have {a} as its capital"),
        Wording(MIDDLE, "In {s}, {a} is the capital", "In {s}, {a} is not the capital"),
    ),
    "city": (
        Wording(END, "The city of {s} lies in {a}", "The city of {s} is not in {a}"),
        Wording(END, "{s} belongs to the country of {a}", "{s} is not a city in {a}"),
        Wording(FRONT, "One of the cities of {a} is {s}", "The cities of {a} do not include {s}"),
        Wording(FRONT, "{a} has a city called {s}", "{a} is not the country of the city of {s}"),
        Wording(MIDDLE, "In {a}, {s} is one of the cities", "In {a}, {s} is not one of the cities"),
        Wording(
            MIDDLE,
            "Whoever is in {s} is in {a} at the same time",
            "Whoever is in {s} is not in {a} at the same time",
        ),
    ),
    "us_city": (
        Wording(END, "{s} is a city in the state of {a}", "{s} is not a city in the state of {a}"),
        Wording(END, "The city of {s} is in {a}", "The city of {s} is not in {a}"),
        Wording(
            FRONT, "{a} is the state in which {s} lies", "{a} is not the state in which {s} lies"
        ),
        Wording(
            FRONT,
            "The state of {a} contains the city of {s}",
            "The state of {a} does not contain the city of {s}",
        ),
        Wording(
            MIDDLE,
            "In the state of {a}, {s} is one of the cities",
            "In the state of {a}, {s} is not one of the cities",
        ),
        Wording(
            MIDDLE,
            "The people of {s} have {a} as their state",
            "The people of {s} do not have {a} as their state",
        ),
    ),
    "county": (
        Wording(END, "{s} is part of {a}", "{s} is not part of {a}"),
        Wording(
            END, "{s} is a county of the state of {a}", "{s} is not a county of the state of {a}"
        ),
        Wording(FRONT, "The state of {a} includes {s}", "The state of {a} does not include {s}"),
        Wording(
            MIDDLE, "In {a}, {s} is one of the counties", "In {a}, {s} is not one of the counties"
        ),
    ),
    "country_continent": (
        Wording(END, "{s} lies in {a}", "{s} does not lie in {a}"),
        Wording(END, "The continent of {s} is {a}", "The continent of {s} is not {a}"),
        Wording(
            FRONT,
            "{a} is the continent to which {s} belongs",
            "{a} is not the continent to which {s} belongs",
        ),
        Wording(
            FRONT, "The countries of {a} include {s}", "The countries of {a} do not include {s}"
        ),
        Wording(
            MIDDLE, "In {a}, {s} is one of the countries", "In {a}, {s} is not one of the countries"
        ),
    ),
    "city_continent": (
        Wording(END, "{s} is a city on the continent of {a}", "The city of {s} is not in {a}"),
        Wording(
            FRONT,
            "{a} is the continent where the city of {s} lies",
            "{a} is not the continent where the city of {s} lies",
        ),
        Wording(
            MIDDLE,
            "On a map of {a}, the city of {s} can be found",
            "On a map of {a}, the city of {s} cannot be found",
        ),
    ),
    "language": (
        Wording(
            END,
            "The official languages of {s} include {a}",
            "The official languages of {s} do not include {a}",
        ),
        Wording(FRONT, "{a} has official status in {s}", "{a} has no official status in {s}"),
        Wording(
            FRONT,
            "{a} is one of the official languages of {s}",
            "{a} is not one of the official languages of {s}",
        ),
        Wording(
            MIDDLE, "In {s}, {a} is an official language", "In {s}, {a} is not an official language"
        ),
        Wording(
            MIDDLE,
            "{s} has {a} as an official language",
            "{s} does not have {a} as an official language",
        ),
    ),
    "border": (
        Wording(END, "{s} has a land border with {a}", "{s} has no land border with {a}"),
        Wording(
            END, "A neighbouring country of {s} is {a}", "{s} is not a neighbouring country of {a}"
        ),
        Wording(
            FRONT, "{a} is among the neighbours of {s}", "{a} is not among the neighbours of {s}"
        ),
        Wording(
            MIDDLE,
            "Between {s} and {a} there is a land border",
            "Between {s} and {a} there is no land border",
        ),
    ),
    "currency": (
        Wording(END, "People in {s} pay with the {a}", "People in {s} do not pay with the {a}"),
        Wording(
            END,
            "The money that is used in {s} is the {a}",
            "The money that is used in {s} is not the {a}",
        ),
        Wording(FRONT, "The {a} is the currency of {s}", "The {a} is not the currency of {s}"),
        Wording(FRONT, "The {a} is the money of {s}", "The {a} is not the money of {s}"),
        Wording(MIDDLE, "In {s}, the {a} is the currency", "In {s}, the {a} is not the currency"),
        Wording(
            MIDDLE, "{s} has the {a} as its currency", "{s} does not have the {a} as its currency"
        ),
    ),
    "number": (
        Wording(
            END,
            "The atomic number of the element {s} is {a}",
            "The atomic number of {s} is not {a}",
        ),
        Wording(FRONT, "{a} is the atomic number of {s}", "{a} is not the atomic number of {s}"),
        Wording(
            MIDDLE, "An atom of {s} has {a} protons", "An atom of {s} does not have {a} protons"
        ),
    ),
    "symbol": (
        Wording(
            END, "The symbol of the element {s} is {a}", "The symbol of the element {s} is not {a}"
        ),
        Wording(FRONT, "{a} is the symbol of {s}", "{a} is not the symbol of {s}"),
        Wording(
            MIDDLE,
            "Chemists write {s} as {a} in a formula",
            "Chemists do not write {s} as {a} in a formula",
        ),
    ),
    "mass": (
        Wording(
            END, "The atomic mass of {s} is about {a}", "The atomic mass of {s} is not about {a}"
        ),
        Wording(
            FRONT,
            "About {a} is the atomic mass of {s}",
            "It is not about {a} that is the atomic mass of {s}",
        ),
        Wording(
            MIDDLE,
            "An atom of {s} has a mass of about {a} units",
            "An atom of {s} does not have a mass of about {a} units",
        ),
    ),
    "area": (
        Wording(
            MIDDLE,
            "The area of {s} is about {a} square kilometres",
            "The area of {s} is not about {a} square kilometres",
        ),
        Wording(
            FRONT,
            "About {a} square kilometres is the area of {s}",
            "It is not about {a} square kilometres that is the area of {s}",
        ),
    ),
    "population": (
        Wording(
            END, "The population of {s} is about {a}", "The population of {s} is not about {a}"
        ),
        Wording(
            FRONT,
            "About {a} people live in {s}",
            "It is not true that about {a} people live in {s}",
        ),
        Wording(MIDDLE, "{s} has about {a} inhabitants", "{s} does not have about {a} inhabitants"),
    ),
    "sum": (
        Wording(END, "{s} is {a}", "{s} is not {a}"),
        Wording(FRONT, "{a} is the result of {s}", "{a} is not the result of {s}"),
        Wording(MIDDLE, "{s} gives {a} as the result", "{s} does not give {a} as the result"),
    ),
    # The subject of a definition has its article: "a trout".
    "is_a": (
        Wording(END, "{s} is a kind of {a}", "{s} is not a kind of {a}"),
        Wording(END, "{s} is a type of {a}", "{s} is not a type of {a}"),
        Wording(FRONT, "One kind of {a} is {s}", "No kind of {a} is {s}"),
        Wording(FRONT, "A sort of {a} is what {s} is", "A sort of {a} is not what {s} is"),
        Wording(
            MIDDLE, "{s} is some kind of {a} by definition", "{s} is not any kind of {a} at all"
        ),
        Wording(MIDDLE, "{s} is one {a} among many others", "{s} is not one {a} among many others"),
    ),
    "gloss": (
        Wording(END, "The word {s} can mean {a}", "The word {s} cannot mean {a}"),
        Wording(
            FRONT, "{a} can be what the word {s} means", "{a} cannot be what the word {s} means"
        ),
    ),
    "young": (
        Wording(END, "A young {s} is called a {a}", "A young {s} is not called a {a}"),
        Wording(FRONT, "A {a} grows up to be a {s}", "A {a} does not grow up to be a {s}"),
    ),
    "opposite": (
        Wording(END, "The opposite of {s} is {a}", "The opposite of {s} is not {a}"),
        Wording(MIDDLE, "{s} and {a} are opposites", "{s} and {a} are not opposites"),
    ),
    "made_from": (
        Wording(END, "The main ingredient or material of {s} is {a}", "{s} is not made from {a}"),
        Wording(
            FRONT, "It is {a} that people turn into {s}", "It is not {a} that people turn into {s}"
        ),
        Wording(
            MIDDLE,
            "For {s} one needs {a} as the material",
            "For {s} one does not need {a} as the material",
        ),
    ),
    "author": (
        Wording(END, "{s} was written by {a}", "{s} was not written by {a}"),
        Wording(END, "The author of {s} is {a}", "The author of {s} is not {a}"),
        Wording(FRONT, "{a} wrote {s}", "{a} did not write {s}"),
        Wording(MIDDLE, "{s} has {a} as its author", "{s} does not have {a} as its author"),
    ),
    "painter": (
        Wording(END, "{s} was painted by {a}", "{s} was not painted by {a}"),
        Wording(FRONT, "{a} painted {s}", "{a} did not paint {s}"),
    ),
    "composer": (
        Wording(END, "{s} was composed by {a}", "{s} was not composed by {a}"),
        Wording(FRONT, "{a} composed {s}", "{a} did not compose {s}"),
    ),
    "originator": (
        Wording(
            END,
            "The name most often linked with the origin of {s} is {a}",
            "The origin of {s} is not linked with {a}",
        ),
        Wording(FRONT, "{a} is famous for {s}", "{a} is not famous for {s}"),
        Wording(
            MIDDLE,
            "As for {s}, {a} is the name in the textbooks",
            "As for {s}, {a} is not the name in the textbooks",
        ),
    ),
    "landmark": (
        Wording(END, "{s} is in {a}", "{s} is not in {a}"),
        Wording(
            END,
            "The country in which one can visit {s} is {a}",
            "The country in which one can visit {s} is not {a}",
        ),
        Wording(FRONT, "{a} is home to {s}", "{a} is not home to {s}"),
        Wording(MIDDLE, "In {a}, {s} is a famous sight", "In {a}, {s} is not to be seen"),
    ),
    "workplace": (
        Wording(
            END,
            "The usual workplace of a {s} is a {a}",
            "The usual workplace of a {s} is not a {a}",
        ),
        Wording(FRONT, "A {a} is where a {s} works", "A {a} is not where a {s} works"),
        Wording(MIDDLE, "A {s} goes to a {a} to work", "A {s} does not go to a {a} to work"),
    ),
    "used_to": (
        Wording(END, "The purpose of a {s} is to {a}", "The purpose of a {s} is not to {a}"),
        Wording(FRONT, "To {a}, people use a {s}", "To {a}, people do not use a {s}"),
        Wording(MIDDLE, "With a {s} people {a} every day", "With a {s} people do not {a} at all"),
    ),
    "next_month": (
        Wording(END, "The month after {s} is {a}", "The month after {s} is not {a}"),
        Wording(FRONT, "{a} comes right after {s}", "{a} does not come right after {s}"),
    ),
    "next_day": (
        Wording(END, "The day after {s} is {a}", "The day after {s} is not {a}"),
        Wording(FRONT, "{a} is the day after {s}", "{a} is not the day after {s}"),
    ),
    "has_parts": (
        Wording(END, "A {s} has {a}", "A {s} does not have {a}"),
        Wording(FRONT, "There are {a} in a {s}", "There are not {a} in a {s}"),
    ),
    "usual_colour": (
        Wording(END, "The usual colour of {s} is {a}", "The usual colour of {s} is not {a}"),
        Wording(FRONT, "{a} is the usual colour of {s}", "{a} is not the usual colour of {s}"),
    ),
    "measured_in": (
        Wording(END, "The unit for {s} is called {a}", "The unit for {s} is not called {a}"),
        Wording(FRONT, "{a} are the unit for {s}", "{a} are not the unit for {s}"),
        Wording(
            MIDDLE,
            "Scientists give {s} in {a} as the unit",
            "Scientists do not give {s} in {a} as the unit",
        ),
    ),
    "studied_by": (
        Wording(END, "The subject of {s} is {a}", "The subject of {s} is not {a}"),
        Wording(FRONT, "The study of {a} is called {s}", "The study of {a} is not called {s}"),
        Wording(
            MIDDLE,
            "In {s}, experts study {a} above all",
            "In {s}, experts do not study {a} above all",
        ),
    ),
    "word_in_spanish": (
        Wording(END, "The Spanish word for {s} is {a}", "The Spanish word for {s} is not {a}"),
        Wording(FRONT, "{a} means {s} in Spanish", "{a} does not mean {s} in Spanish"),
        Wording(
            MIDDLE, "The word for {s} is {a} in Spanish", "The word for {s} is not {a} in Spanish"
        ),
    ),
    "word_in_french": (
        Wording(END, "The French word for {s} is {a}", "The French word for {s} is not {a}"),
        Wording(FRONT, "{a} means {s} in French", "{a} does not mean {s} in French"),
        Wording(
            MIDDLE, "The word for {s} is {a} in French", "The word for {s} is not {a} in French"
        ),
    ),
    "word_in_german": (
        Wording(END, "The German word for {s} is {a}", "The German word for {s} is not {a}"),
        Wording(FRONT, "{a} means {s} in German", "{a} does not mean {s} in German"),
        Wording(
            MIDDLE, "The word for {s} is {a} in German", "The word for {s} is not {a} in German"
        ),
    ),
    "word_in_italian": (
        Wording(END, "The Italian word for {s} is {a}", "The Italian word for {s} is not {a}"),
        Wording(FRONT, "{a} means {s} in Italian", "{a} does not mean {s} in Italian"),
        Wording(
            MIDDLE, "The word for {s} is {a} in Italian", "The word for {s} is not {a} in Italian"
        ),
    ),
}

COMPARISONS: dict[str, tuple[Comparison, ...]] = {
    "area": (
        Comparison(
            "{s} is larger than {a}",
            "{s} is smaller than {a}",
            "{s} is not larger than {a}",
            "{s} is not smaller than {a}",
        ),
        Comparison(
            "{s} covers more land than {a}",
            "{s} covers less land than {a}",
            "{s} does not cover more land than {a}",
            "{s} does not cover less land than {a}",
        ),
    ),
    "population": (
        Comparison(
            "{s} has more inhabitants than {a}",
            "{s} has fewer inhabitants than {a}",
            "{s} does not have more inhabitants than {a}",
            "{s} does not have fewer inhabitants than {a}",
        ),
        Comparison(
            "More people live in {s} than in {a}",
            "Fewer people live in {s} than in {a}",
            "It is not true that more people live in {s} than in {a}",
            "It is not true that fewer people live in {s} than in {a}",
        ),
    ),
    "mass": (
        Comparison(
            "An atom of {s} is heavier than an atom of {a}",
            "An atom of {s} is lighter than an atom of {a}",
            "An atom of {s} is not heavier than an atom of {a}",
            "An atom of {s} is not lighter than an atom of {a}",
        ),
    ),
    "place": (
        Comparison(
            "{s} is a bigger city than {a}",
            "{s} is a smaller city than {a}",
            "{s} is not a bigger city than {a}",
            "{s} is not a smaller city than {a}",
        ),
        Comparison(
            "The city of {s} has more people than {a}",
            "The city of {s} has fewer people than {a}",
            "The city of {s} does not have more people than {a}",
            "The city of {s} does not have fewer people than {a}",
        ),
    ),
}
