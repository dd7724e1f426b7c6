"""Known answers of the labels of generated answers."""

import pytest

from ghosttrack.facts.answer_words import TENS, UNITS, normalise
from ghosttrack.facts.answers import AnswerVerdict, first_answer, judge

CORRECT, WRONG, AMBIGUOUS, EMPTY = (
    AnswerVerdict.CORRECT,
    AnswerVerdict.WRONG,
    AnswerVerdict.AMBIGUOUS,
    AnswerVerdict.EMPTY,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" Paris.\nThe capital of", "Paris"),
        (" Paris. It is large.", "Paris"),
        ("\n\n Lyon\nQuestion: ...", "Lyon"),
        (" St. John's. The capital", "St. John's"),
        (" Washington, D.C.\nMore", "Washington, D.C"),
        (" the U.S. state of Texas. And", "the U.S. state of Texas"),
        (" 12.01 units. More", "12.01 units"),
        (" Au; the symbol", "Au"),
        (" Really? No", "Really"),
        ("   ", ""),
        ("", ""),
        (" No. The symbol of nobelium", "No"),
        (" I. The", "I"),
        (" N'Djamena", "N'Djamena"),
        (" 22.", "22"),
        (" 1. Paris\n2. Lyon", "1. Paris"),
        (" 1. It is hydrogen", "1"),
        (" 7. Nitrogen is a gas", "7"),
        (" George W. Bush. He was", "George W. Bush"),
        (" J. K. Rowling. She wrote", "J. K. Rowling"),
        (" J. R. R. Tolkien\nQ:", "J. R. R. Tolkien"),
        (" Samuel L. Jackson", "Samuel L. Jackson"),
        (" A. A. Milne", "A. A. Milne"),
        (" F. Scott Fitzgerald. He wrote", "F. Scott Fitzgerald"),
        (" H. Potassium It is", "H"),
        (" Gen. Custer. He fell", "Gen. Custer"),
        (" Symphony No. 9. It is", "Symphony No. 9"),
        (" In May. 5 people came", "In May"),
        (" No. 5 is a perfume", "No. 5 is a perfume"),
        (" K. Potassium is a metal", "K"),
        (" B. Paris", "B"),
        (" World War I. It began", "World War I"),
        (" vitamin C. Oranges have it", "vitamin C"),
        (" Plan B. Question: who", "Plan B"),
        (" Bill Gen. it is", "Bill Gen"),
    ],
)
def test_the_answer_ends_at_the_first_line_or_sentence(text: str, expected: str) -> None:
    assert first_answer(text) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "expected"),
    [
        ("Paris", ["Paris"], CORRECT),
        ("paris", ["Paris"], CORRECT),
        ("PARIS", ["Paris"], CORRECT),
        ("the city of Paris", ["Paris"], CORRECT),
        ("Paris, France", ["Paris"], CORRECT),
        ("Parisian", ["Paris"], WRONG),
        ("Comparison", ["Paris"], WRONG),
        ("Lyon", ["Paris"], WRONG),
        ("Bogota", ["Bogotá"], CORRECT),
        ("São Tomé", ["Sao Tome"], CORRECT),
        ("Lodz", ["Łódź"], CORRECT),
        ("\uff30\uff41\uff52\uff49\uff53", ["Paris"], CORRECT),
        ("Netherlands", ["the Netherlands"], CORRECT),
        ("the netherlands", ["Netherlands"], CORRECT),
        ("Saint Paul", ["St. Paul"], CORRECT),
        ("St Johns", ["St. John's"], CORRECT),
        ("N\u2019Djamena", ["N'Djamena"], CORRECT),
        ("Port au Prince", ["Port-au-Prince"], CORRECT),
        ("U.S.", ["US"], CORRECT),
        ("Guatemala", ["Guatemala City"], CORRECT),
        ("Holland", ["the Netherlands", "Holland"], CORRECT),
        ("six", ["6"], CORRECT),
        ("6", ["six"], CORRECT),
        ("twenty-two", ["22"], CORRECT),
        ("\u0662\u0662", ["22"], CORRECT),  # Arabic-Indic digits
        ("22.0", ["22"], CORRECT),
        ("007", ["7"], CORRECT),
        ("70", ["7"], WRONG),
        ("100", ["1"], WRONG),
        ("1.50", ["1.5"], CORRECT),
        ("0", ["zero"], CORRECT),
        ("3,500", ["3500"], CORRECT),
        ("3\u202f500", ["3500"], CORRECT),
        ("3 500", ["3500"], WRONG),
        ("a hundred", ["100"], CORRECT),
        ("two hundred", ["100"], WRONG),
        ("a million", ["1,000,000"], CORRECT),
        ("minus six", ["-6"], CORRECT),
        ("negative 6", ["\u22126"], CORRECT),
        ("minus six", ["6"], WRONG),
        ("Stra\u00dfe", ["Strasse"], CORRECT),
        ("\u0391\u0398\u0397\u039d\u0391", ["\u0391\u03b8\u03ae\u03bd\u03b1"], CORRECT),
        ("\u0130stanbul", ["Istanbul"], CORRECT),
        ("\u0110\u00e0 N\u1eb5ng", ["Da Nang"], CORRECT),
        ("\u00d0\u00e0 N\u1eb5ng", ["Da Nang"], CORRECT),  # eth, which looks the same
        ("Ndjamena", ["N'Djamena"], CORRECT),
        ("Nuku\u02bbalofa", ["Nuku'alofa"], CORRECT),
        ("Nukualofa", ["Nuku'alofa"], CORRECT),
        ("Sanaa", ["Sana'a"], CORRECT),
        ("C\u00f4te d\u2019Ivoire", ["Cote d'Ivoire"], CORRECT),
        ("'Paris'", ["Paris"], CORRECT),
        ("It isn't Paris", ["Paris"], AMBIGUOUS),
        ("I don\u2019t know", ["Paris"], EMPTY),
        ("one hundred and five", ["105"], CORRECT),
        ("one hundred five", ["105"], CORRECT),
        ("two thousand", ["2,000"], CORRECT),
        ("26", ["6"], WRONG),
        ("6", ["26"], WRONG),
        ("22.5", ["22"], WRONG),
        ("Simon & Garfunkel", ["Simon and Garfunkel"], CORRECT),
        ("Marks and Spencer", ["Marks & Spencer"], CORRECT),
        ("AT&T", ["AT&T"], CORRECT),
        ("5 million", ["one million"], WRONG),
        ("3 thousand", ["1,000"], WRONG),
        ("2 million", ["2,000,000"], CORRECT),
        ("-6", ["6"], WRONG),
        ("Ag", ["Au"], WRONG),
        ("Au", ["Au"], CORRECT),
        ("A", ["A"], CORRECT),
        ("Not known to me", ["No"], EMPTY),
        ("No", ["No"], CORRECT),
        ("none", ["No"], EMPTY),
        ("I", ["I"], CORRECT),
        ("", ["Paris"], EMPTY),
        ("...", ["Paris"], EMPTY),
        ("the", ["Paris"], EMPTY),
        ("", ["A"], EMPTY),
        ("...", ["B"], EMPTY),
        ("the", ["A"], EMPTY),
        ("a", ["B"], WRONG),
        ("unknown", ["Paris"], EMPTY),
        ("I don't know", ["Paris"], EMPTY),
        ("N/A", ["N"], EMPTY),
        ("None", ["None"], CORRECT),
        ("Paris or Lyon", ["Paris"], AMBIGUOUS),
        ("maybe Paris", ["Paris"], AMBIGUOUS),
        ("probably Lyon", ["Paris"], AMBIGUOUS),
        ("not Paris", ["Paris"], AMBIGUOUS),
        ("Lyon, not Paris", ["Paris"], AMBIGUOUS),
    ],
)
def test_known_answers_without_candidates(
    answer: str, gold: list[str], expected: AnswerVerdict
) -> None:
    assert judge(answer, gold) is expected


@pytest.mark.parametrize(
    ("answer", "gold", "others", "expected"),
    [
        ("Paris and Lyon", ["Paris"], ["Lyon", "Nice"], AMBIGUOUS),
        ("Paris, Lyon", ["Paris"], ["Lyon"], AMBIGUOUS),
        ("Lyon, Nice", ["Paris"], ["Lyon", "Nice"], WRONG),
        ("Paris", ["Paris"], ["Paris", "Lyon"], CORRECT),
        ("Guinea-Bissau", ["Guinea"], ["Guinea-Bissau", "Guinea"], WRONG),
        ("Guinea", ["Guinea"], ["Guinea-Bissau"], CORRECT),
        ("Papua New Guinea", ["Guinea"], ["Papua New Guinea"], WRONG),
        ("West Virginia", ["Virginia"], ["West Virginia"], WRONG),
        ("West Virginia", ["West Virginia"], ["Virginia"], CORRECT),
        ("New York", ["New York"], ["York"], CORRECT),
        ("English and French", ["English", "French"], ["English", "French", "Dutch"], CORRECT),
        ("alpha beta gamma", ["beta"], ["alpha beta gamma"], WRONG),
        (
            "alpha beta gamma",
            ["alpha beta"],
            ["beta gamma"],
            AMBIGUOUS,
        ),  # they overlap, neither is inside the other
        ("alpha beta alpha", ["alpha"], ["alpha beta"], AMBIGUOUS),
        ("English and Dutch", ["English", "French"], ["English", "French", "Dutch"], AMBIGUOUS),
        (
            "the Republic of the Congo",
            ["the Democratic Republic of the Congo"],
            ["the Republic of the Congo"],
            WRONG,
        ),
    ],
)
def test_other_candidates_beside_the_right_one_make_it_ambiguous(
    answer: str, gold: list[str], others: list[str], expected: AnswerVerdict
) -> None:
    assert judge(answer, gold, others) is expected


def test_a_longer_name_wins_over_the_shorter_one_inside_it_but_both_together_are_ambiguous() -> (
    None
):
    assert judge("Guinea and Guinea-Bissau", ["Guinea"], ["Guinea-Bissau"]) is AMBIGUOUS


def test_gold_answers_match_themselves_in_every_table() -> None:
    from ghosttrack.facts.statements import list_tables, load_table

    for table in list_tables():
        facts = load_table(table)
        answers = sorted({fact.answer for fact in facts})
        for fact in facts[::5]:
            own = {normalise(name) for name in fact.gold}
            others = [answer for answer in answers if normalise(answer) not in own]
            for name in fact.gold:
                assert judge(first_answer(f" {name}.\nThe"), fact.gold, others) is CORRECT, (
                    table,
                    fact.subject,
                    name,
                )


def test_numbers_in_words_become_digits_and_other_words_stay() -> None:
    assert normalise("one hundred and twenty-three") == ("123",)
    assert normalise("three million two hundred thousand and one") == ("3200001",)
    assert normalise("twenty twelve") == ("20", "12")
    assert normalise("one hundred million") == ("100000000",)
    assert normalise("hundred years") == ("100", "years")
    assert normalise("Rock and Roll") == ("rock", "and", "roll")


def spelled(number: int) -> str:
    """A number below a billion in English words."""
    for name, scale in (("million", 1_000_000), ("thousand", 1_000), ("hundred", 100)):
        if number >= scale:
            rest = f" {spelled(number % scale)}" if number % scale else ""
            return f"{spelled(number // scale)} {name}{rest}"
    return (
        UNITS[number]
        if number < 20
        else f"{TENS[number // 10 - 2]} {UNITS[number % 10] if number % 10 else ''}".strip()
    )


def test_every_number_in_words_is_that_number() -> None:
    large = [
        scale * times + rest
        for scale in (10**3, 10**6)
        for times in (1, 20, 999)
        for rest in (0, 1, 99, 100, 999)
    ]
    for number in [*range(1_000), *large]:
        assert normalise(spelled(number)) == (str(number),)
        assert normalise(f"x {spelled(number)} y") == ("x", str(number), "y")
        assert normalise(f"minus {spelled(number)}") == (f"-{number}",)
        hundreds, rest = divmod(number, 100)
        if hundreds and rest:
            assert normalise(f"{spelled(100 * hundreds)} and {spelled(rest)}") == (str(number),)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("ninety nine hundred", "9900"),
        ("one hundred hundred", "100 100"),
        ("thousand hundred", "1000 100"),
        ("zero hundred", "0 100"),
        ("one thousand million", "1000 1000000"),
        ("nineteen one", "19 1"),
        ("one two", "1 2"),
        ("one hundred and", "100 and"),
        ("one hundred and more", "100 and more"),
        ("one and two", "1 and 2"),
        ("and five", "and 5"),
        ("minus paris", "minus paris"),
        ("negative 2.5", "-2.5"),
        ("minus", "minus"),
        ("carbon-14", "carbon 14"),
        ("it is -6 degrees", "it is -6 degrees"),
        ("carbon-14 at -14", "carbon 14 at -14"),
        ("\u22126 and 3\u22126", "-6 and 3 6"),
        ("x-1 and -14", "x 1 and -14"),
        ("1--2", "1 2"),
        ("00.50", "0.5"),
        ("10 000", "10 0"),
        ("2 million", "2000000"),
        ("2.50 billion people", "2500000000 people"),
        ("1,000 hundred thousand", "100000000"),
        ("-3 hundred and", "-300 and"),
        ("0.5 thousand 2", "500 2"),
        ("1.2345 thousand", "1234.5"),
    ],
)
def test_numbers_begin_and_end_where_they_should(text: str, words: str) -> None:
    assert normalise(text) == tuple(words.split())


def test_no_gold_answer_is_refused() -> None:
    with pytest.raises(ValueError, match="gold"):
        judge("Paris", [])


def test_verdicts_are_plain_strings() -> None:
    assert [str(verdict) for verdict in AnswerVerdict] == ["correct", "wrong", "ambiguous", "empty"]


@pytest.mark.parametrize(
    ("answer", "gold", "others", "expected"),
    [
        ("Vitamin B", ["Vitamin A"], [], WRONG),  # a letter at the end is no article
        ("Vitamin", ["Vitamin A"], [], WRONG),
        ("vitamin a", ["Vitamin A"], ["Vitamin B"], CORRECT),
        ("Plan B", ["Plan A"], ["Plan C"], WRONG),
        ("A", ["B"], ["A", "C", "D"], WRONG),  # multiple choice
        ("A", ["B"], [], WRONG),
        ("A", ["A"], ["B"], CORRECT),
        ("a", ["Paris"], ["Rome"], EMPTY),
        ("C#", ["C++"], ["C", "C#"], WRONG),
        ("C", ["C++"], [], WRONG),
        ("C++", ["C++"], ["C"], CORRECT),
        ("It is C++, I know", ["C++"], ["C"], CORRECT),
        ("A+", ["A"], [], WRONG),
    ],
)
def test_letters_and_signs_that_tell_answers_apart_are_kept(
    answer: str, gold: list[str], others: list[str], expected: AnswerVerdict
) -> None:
    assert judge(answer, gold, others) == expected


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("French", ["Arabic"], AnswerVerdict.AMBIGUOUS),
        ("Arabic", ["Arabic"], AnswerVerdict.CORRECT),
        ("Arabic and French", ["Arabic"], AnswerVerdict.AMBIGUOUS),
        ("French and Spanish", ["Arabic"], AnswerVerdict.AMBIGUOUS),
        ("Spanish", ["Arabic"], AnswerVerdict.WRONG),
        ("French", ["French"], AnswerVerdict.CORRECT),
    ],
)
def test_an_arguable_answer_is_ambiguous(
    answer: str, gold: list[str], verdict: AnswerVerdict
) -> None:
    assert judge(answer, gold, ["Spanish"], ["French"]) == verdict


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("It is in the table", ["In"], AnswerVerdict.WRONG),
        ("The symbol is In", ["In"], AnswerVerdict.CORRECT),
        ("in", ["In"], AnswerVerdict.CORRECT),
        ("Fe is in the table", ["Fe"], AnswerVerdict.CORRECT),
        ("Fe or As", ["Fe"], AnswerVerdict.AMBIGUOUS),
        ("the USA", ["US", "USA"], AnswerVerdict.CORRECT),
    ],
)
def test_a_symbol_inside_an_answer_has_its_case(
    answer: str, gold: list[str], verdict: AnswerVerdict
) -> None:
    assert judge(answer, gold, ["In", "As"]) == verdict


SAME_NUMBERS = (
    (
        "World War II",
        "world war 2",
        "World War Two",
        "the Second World War",
        "WWII",
        "WW2",
        "WW II",
    ),
    ("World War III", "Third World War", "WWIII", "WW 3"),
    ("Elizabeth II", "Elizabeth the Second", "Elizabeth The Second"),
    ("George V", "George the Fifth"),
    ("101st", "one hundred and first", "the hundred and first"),
    ("July 4, 1776", "4 July 1776", "the 4th of July, 1776", "July the fourth, 1776"),
    ("December 7, 1941", "Dec. 7, 1941", "7 Dec 1941"),
    ("10,000 km", "10000km", "10,000km"),
    ("World War I", "World War One", "world war i", "First World War", "WWI", "WW1", "WW I"),
    ("Henry VIII", "Henry 8"),
    ("the 1st", "first", "the First"),
    ("21st century", "the twenty-first century", "twenty first century"),
    ("30th", "thirtieth"),
    ("12th", "twelfth"),
    ("July 4th", "July 4", "July fourth"),
    ("March 1999", "March of 1999"),
    ("4 July 1776", "the 4th of July 1776", "the fourth of July, 1776", "4th July, 1776"),
    ("90%", "90 percent", "ninety per cent", "90 per cent"),
)


@pytest.mark.parametrize("forms", SAME_NUMBERS)
def test_every_form_of_a_number_matches_every_other(forms: tuple[str, ...]) -> None:
    for answer in forms:
        for gold in forms:
            assert judge(answer, [gold]) == CORRECT, (answer, gold)
            assert judge(f"It was {answer}", [gold]) == CORRECT, (answer, gold)


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("World War I", "World War II"),
        ("WWI", "World War II"),
        ("the First World War", "WWII"),
        ("Elizabeth the First", "Elizabeth II"),
        ("George the Sixth", "George V"),
        ("Henry VII", "Henry VIII"),
        ("second", "first"),
        ("2nd", "2"),
        ("I see none", "1"),
        ("twenty second", "20"),
        ("Malcolm", "Malcolm X"),
        ("10", "Malcolm X"),
        ("World War II", "WWIII"),
        ("a percent", "1"),
        ("2b", "2b percent"),
        ("\u30cf\u309a", "\u30cf"),
    ],
)
def test_other_numbers_do_not_match(answer: str, gold: str) -> None:
    assert judge(answer, [gold]) == WRONG


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("President Xi Jinping", "Xi Jinping"),
        ("Part IV", "IV"),
        ("the Saturn 5 rocket", "Saturn V"),
        ("Women have XX", "XX"),
        ("July 4th", "4th"),
        ("on the fifth of May", "the fifth"),
        ("on July 4, 1776", "July 4"),
        ("on 4 July 1776", "July 1776"),
        ("Dec. 7, 1941", "1941"),
        ("approx. 1,500", "1500"),
    ],
)
def test_a_gold_answer_inside_an_answer_is_found_in_any_form(answer: str, gold: str) -> None:
    assert judge(first_answer(f" {answer}"), [gold]) == CORRECT


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("A. Charles Dickens", CORRECT),
        ("(A) Charles Dickens", CORRECT),
        ("A: a tale", CORRECT),
        ("B. Charles Dickens", WRONG),
        ("B) a tale", WRONG),
        ("A.B. Yehoshua", WRONG),
    ],
)
def test_the_letter_before_the_text_of_a_choice_decides(
    answer: str, verdict: AnswerVerdict
) -> None:
    assert judge(first_answer(f" {answer}"), ["A"], ["B", "C", "D"]) == verdict


def test_another_day_of_the_same_month_is_wrong() -> None:
    assert judge("July 4, 1776", ["5 July 1776"]) == WRONG
    assert judge("4 August 1776", ["July 4, 1776"]) == WRONG


@pytest.mark.parametrize(
    ("answer", "gold", "verdict"),
    [
        ("\u0926\u093e\u0932", "\u0926\u093f\u0932", WRONG),  # Hindi: lentils, heart
        ("\u0926\u093f\u0932 \u0939\u0948", "\u0926\u093f\u0932", CORRECT),
        ("\u30cf\u30ea", "\u30d1\u30ea", WRONG),  # Japanese: needle, Paris
        ("\u30d1\u30ea\u3067\u3059", "\u30d1\u30ea", CORRECT),
        ("\u5317\u4eac\u662f\u4e2d\u56fd\u7684\u9996\u90fd", "\u5317\u4eac", CORRECT),  # Chinese
        ("\u6771\u4eac", "\u4eac\u90fd", WRONG),  # Tokyo, Kyoto
        (
            "\u0e04\u0e37\u0e2d\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e",
            "\u0e01\u0e23\u0e38\u0e07\u0e40\u0e17\u0e1e",
            CORRECT,
        ),
        (
            "\u05e9\u05b8\u05c1\u05dc\u05d5\u05b9\u05dd",
            "\u05e9\u05dc\u05d5\u05dd",
            CORRECT,
        ),  # Hebrew with points
        ("S\u00e3o Paulo", "Sao Paulo", CORRECT),
    ],
)
def test_marks_and_scripts_without_spaces(answer: str, gold: str, verdict: AnswerVerdict) -> None:
    assert judge(first_answer(f" {answer}"), [gold]) == verdict


def test_end_marks_of_other_scripts_end_an_answer() -> None:
    assert first_answer(" \u6771\u4eac\u3002\u4eba\u53e3") == "\u6771\u4eac"
    assert first_answer(" \u0926\u093f\u0932\u0964 x") == "\u0926\u093f\u0932"


@pytest.mark.parametrize(
    ("text", "gold", "expected"),
    [
        (" Roe v. Wade. It was", ["Roe v. Wade"], "Roe v. Wade"),
        (" it was roe v. wade. Then", ["Roe v. Wade"], "it was roe v. wade"),
        (" Warner Bros. Records", ["Warner Bros. Records"], "Warner Bros. Records"),
        (" Yahoo! Inc. in 1995", ["Yahoo!", "Yahoo! Inc."], "Yahoo! Inc"),
        (" Paris. It is", ["Paris."], "Paris"),
        (" Rome. Paris", ["Paris"], "Rome"),
    ],
)
def test_a_mark_inside_an_accepted_answer_ends_nothing(
    text: str, gold: list[str], expected: str
) -> None:
    assert first_answer(text, gold) == expected
    assert (judge(expected, gold) == CORRECT) == (expected != "Rome")
