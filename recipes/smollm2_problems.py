"""Write the problems on which SmolLM2-135M-Instruct is evaluated: easy ones of MATH-500, and word problems made here.

    python recipes/smollm2_problems.py MATH-500.jsonl build/smollm2

`math.jsonl` has the 133 problems of MATH-500 of level 1 and 2, as they are. `words.jsonl` has 100 problems in the form
of GSM8K, five of each of 20 kinds: two to four steps of arithmetic on small whole numbers, with a solution that ends
with `#### ANSWER`. They are drawn with a fixed seed. `results/README.md` has the commands of the evaluation.
"""

from __future__ import annotations

import argparse
import json
import operator
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from motes import files
from motes.text import json_line

LEVELS = (1, 2)
EACH = 5
NAMES = ("Ana", "Ben", "Carla", "Dev", "Ema", "Farid", "Grace", "Hugo", "Ines", "Jonas", "Kofi", "Lena", "Mira", "Noah")
OPERATORS: Mapping[str, Callable[[int, int], int]] = {
    "+": operator.add,
    "-": operator.sub,
    "*": operator.mul,
    "/": operator.floordiv,
}


@dataclass(frozen=True)
class Kind:
    """A kind of word problem.

    Attributes:
        question: with the names of numbers, and `name` and `other` for people, in braces.
        numbers: what each number is drawn from.
        steps: "RESULT = LEFT OPERATOR RIGHT: sentence" each, where LEFT and RIGHT are names of numbers or of earlier
            results, or numbers. `{it}` in the sentence is the calculation. The last result is the answer.
    """

    question: str
    numbers: Mapping[str, Sequence[int]]
    steps: Sequence[str]

    def draw(self, rng: random.Random) -> dict[str, str] | None:
        """A problem, as a row of GSM8K; None if the numbers do not suit the story: each step must give a whole number
        above zero."""
        name, other = rng.sample(NAMES, 2)
        values = {number: rng.choice(choices) for number, choices in self.numbers.items()}
        lines = []
        for step in self.steps:
            calculation, _, sentence = step.partition(": ")
            result, _, left, symbol, right = calculation.split()
            operands = [int(word) if word.isdigit() else values[word] for word in (left, right)]
            if symbol == "/" and operands[0] % operands[1]:
                return None
            values[result] = OPERATORS[symbol](*operands)
            if values[result] <= 0:
                return None
            written = f"{operands[0]}{symbol}{operands[1]}"
            words = f"{written} = <<{written}={values[result]}>>{values[result]}"
            lines.append(sentence.format(it=words, name=name, other=other, **values))
        question = self.question.format(name=name, other=other, **values)
        return {"question": question, "answer": "\n".join([*lines, f"#### {values[result]}"])}


KINDS = (
    Kind(
        "{name} buys {books} notebooks for ${price} each and {pens} pens for ${cost} each. How many dollars does "
        "{name} spend in total?",
        {"books": range(2, 9), "price": range(2, 8), "pens": range(3, 12), "cost": range(1, 4)},
        (
            "first = books * price: The notebooks cost {it} dollars.",
            "second = pens * cost: The pens cost {it} dollars.",
            "total = first + second: Together they cost {it} dollars.",
        ),
    ),
    Kind(
        "A baker makes {trays} trays of {each} muffins each. By noon {sold} muffins are sold. How many muffins are "
        "left?",
        {"trays": range(3, 12), "each": (6, 8, 12), "sold": range(10, 60)},
        ("made = trays * each: The baker makes {it} muffins.", "left = made - sold: There are {it} muffins left."),
    ),
    Kind(
        "{name} reads {pages} pages every day. How many days does {name} need for {books} books that have {length} "
        "pages each?",
        {"pages": range(5, 41, 5), "books": range(2, 6), "length": range(60, 241, 20)},
        ("all = books * length: The books have {it} pages.", "days = all / pages: {name} needs {it} days."),
    ),
    Kind(
        "{name} has {own} marbles. {other} has {times} times as many. How many marbles do they have together?",
        {"own": range(4, 25), "times": range(2, 7)},
        ("more = own * times: {other} has {it} marbles.", "both = own + more: Together they have {it} marbles."),
    ),
    Kind(
        "{name} earns ${wage} an hour and works {hours} hours a day, {days} days a week. How many dollars does "
        "{name} earn in {weeks} weeks?",
        {"wage": range(10, 26), "hours": range(4, 9), "days": range(3, 6), "weeks": range(2, 5)},
        (
            "day = wage * hours: In a day {name} earns {it} dollars.",
            "week = day * days: In a week {name} earns {it} dollars.",
            "all = week * weeks: In {weeks} weeks {name} earns {it} dollars.",
        ),
    ),
    Kind(
        "A bus has {seats} seats. {on} people get on at the first stop. At the second stop {off} people get off and "
        "{more} get on. How many seats are free?",
        {"seats": range(40, 61, 5), "on": range(18, 31), "off": range(3, 12), "more": range(4, 15)},
        (
            "stay = on - off: After some got off there are {it} people.",
            "now = stay + more: Then there are {it} people.",
            "free = seats - now: So {it} seats are free.",
        ),
    ),
    Kind(
        "{name} is {years} years younger than {other}. In {later} years {other} will be {age} years old. How old is "
        "{name} now?",
        {"years": range(2, 9), "later": range(3, 11), "age": range(20, 41)},
        ("now = age - later: Now {other} is {it} years old.", "own = now - years: {name} is {it} years old."),
    ),
    Kind(
        "A farmer has {hens} hens. Each hen lays {eggs} eggs a week. The farmer sells the eggs in boxes of {box}. "
        "How many boxes does the farmer fill in a week?",
        {"hens": range(8, 41, 2), "eggs": range(3, 7), "box": (6, 10, 12)},
        ("all = hens * eggs: The hens lay {it} eggs.", "boxes = all / box: That fills {it} boxes."),
    ),
    Kind(
        "{name} saves ${week} every week for {weeks} weeks and then buys a bicycle for ${price}. How many dollars does "
        "{name} have left?",
        {"week": range(8, 26), "weeks": range(8, 17), "price": range(80, 201, 10)},
        ("saved = week * weeks: {name} saves {it} dollars.", "left = saved - price: After that {it} dollars are left."),
    ),
    Kind(
        "A class has {girls} girls and {boys} boys. Each student brings {cans} cans of food. The cans are packed in "
        "boxes of {box}. How many boxes are needed?",
        {"girls": range(8, 19), "boys": range(8, 19), "cans": range(2, 7), "box": (4, 5, 6, 8, 10)},
        (
            "all = girls + boys: There are {it} students.",
            "cans_all = all * cans: They bring {it} cans.",
            "boxes = cans_all / box: They need {it} boxes.",
        ),
    ),
    Kind(
        "A train travels {speed} miles an hour for {hours} hours, and then {slow} miles an hour for {more} hours. "
        "How many miles does it travel?",
        {"speed": range(50, 91, 5), "hours": range(2, 6), "slow": range(30, 50, 5), "more": range(2, 5)},
        (
            "first = speed * hours: First it travels {it} miles.",
            "second = slow * more: Then it travels {it} miles.",
            "all = first + second: In total it travels {it} miles.",
        ),
    ),
    Kind(
        "{name} picks {apples} apples and gives {given} of them to {other}. {name} puts the rest equally into {bags} "
        "bags. How many apples are in each bag?",
        {"apples": range(20, 81), "given": range(4, 20), "bags": range(3, 9)},
        ("rest = apples - given: {name} keeps {it} apples.", "bag = rest / bags: Each bag holds {it} apples."),
    ),
    Kind(
        "A shirt costs ${shirt} and trousers cost ${more} more than the shirt. How many dollars do {number} shirts "
        "and one pair of trousers cost?",
        {"shirt": range(9, 25), "more": range(5, 20), "number": range(2, 6)},
        (
            "pair = shirt + more: The trousers cost {it} dollars.",
            "shirts = shirt * number: The shirts cost {it} dollars.",
            "all = pair + shirts: Together they cost {it} dollars.",
        ),
    ),
    Kind(
        "{name} cuts a rope of {rope} feet into pieces of {piece} feet. {name} uses {used} pieces. How many pieces are "
        "left?",
        {"rope": range(24, 121, 6), "piece": range(2, 7), "used": range(2, 10)},
        ("all = rope / piece: There are {it} pieces.", "left = all - used: So {it} pieces are left."),
    ),
    Kind(
        "A cinema sells {adults} tickets for adults at ${price} and {children} tickets for children at half that "
        "price. How many dollars does it take in?",
        {"adults": range(10, 41), "children": range(8, 31), "price": (6, 8, 10, 12, 14)},
        (
            "half = price / 2: A ticket for children costs {it} dollars.",
            "first = adults * price: Adults pay {it} dollars.",
            "second = children * half: Children pay {it} dollars.",
            "all = first + second: The cinema takes in {it} dollars.",
        ),
    ),
    Kind(
        "{name} runs {far} miles on Monday, twice as far on Tuesday, and {less} miles less than on Tuesday on "
        "Wednesday. How many miles does {name} run on these three days?",
        {"far": range(3, 10), "less": range(1, 6)},
        (
            "second = far * 2: On Tuesday {name} runs {it} miles.",
            "third = second - less: On Wednesday {name} runs {it} miles.",
            "two = far + second: On Monday and Tuesday that is {it} miles.",
            "all = two + third: On all three days it is {it} miles.",
        ),
    ),
    Kind(
        "A tank holds {full} gallons. It has {now} gallons in it and is filled at {rate} gallons a minute. After how "
        "many minutes is it full?",
        {"full": range(100, 301, 20), "now": range(20, 91, 10), "rate": range(4, 21)},
        ("missing = full - now: There are {it} gallons missing.", "minutes = missing / rate: It takes {it} minutes."),
    ),
    Kind(
        "{name} bakes {batches} batches of {each} cookies. {name} eats {eaten} and shares the others equally with "
        "{friends} friends, each of the friends and {name} getting the same number. How many cookies does each get?",
        {"batches": range(2, 6), "each": range(10, 25, 2), "eaten": range(1, 7), "friends": range(2, 7)},
        (
            "made = batches * each: {name} bakes {it} cookies.",
            "rest = made - eaten: There are {it} cookies left.",
            "people = friends + 1: They are shared by {it} people.",
            "share = rest / people: Each gets {it} cookies.",
        ),
    ),
    Kind(
        "A library has {shelves} shelves with {books} books each. It lends {lent} books and buys {new} new ones. How "
        "many books are in the library?",
        {"shelves": range(5, 21), "books": range(12, 41), "lent": range(15, 70), "new": range(5, 40)},
        (
            "all = shelves * books: The library has {it} books.",
            "stay = all - lent: After lending there are {it} books.",
            "now = stay + new: With the new ones there are {it} books.",
        ),
    ),
    Kind(
        "{name} pays for {tickets} tickets that cost ${price} each with a ${note} bill. How many dollars does {name} "
        "get back?",
        {"tickets": range(2, 8), "price": range(5, 15), "note": (50, 100)},
        (
            "cost = tickets * price: The tickets cost {it} dollars.",
            "back = note - cost: {name} gets {it} dollars back.",
        ),
    ),
)


def word_problems(each: int = EACH, seed: int = 0) -> list[dict[str, str]]:
    """So many problems of each kind, all different; the kinds take turns."""
    rng, made = random.Random(seed), dict[str, dict[str, str]]()
    for _ in range(each):
        for kind in KINDS:
            while (row := kind.draw(rng)) is None or row["question"] in made:
                pass
            made[row["question"]] = row
    return [{"id": f"words-{number}", **row} for number, row in enumerate(made.values())]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("math", type=Path, metavar="MATH-500.jsonl", help="the data set, as its authors publish it")
    parser.add_argument("out", type=Path, help="folder of the two files")
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.math.read_text(encoding="utf-8").splitlines()]
    args.out.mkdir(parents=True, exist_ok=True)
    for name, chosen in (
        ("math", [row for row in rows if row["level"] in LEVELS]),
        ("words", word_problems()),
    ):
        path = args.out / f"{name}.jsonl"
        files.write_text(path, "".join(json_line(row) + "\n" for row in chosen))
        print(f"{len(chosen)} problems in {path}")


if __name__ == "__main__":
    main()
