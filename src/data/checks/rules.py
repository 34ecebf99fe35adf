"""What can be wrong with a data set, how grave it is, and what to do about it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

ERROR, WARNING = "error", "warning"
FAULT = "fault"  # a note that is a sentence of its own: why a split or a table does not open
FEW = 20  # training images of an object below which there is little to learn what is normal from


@dataclass(frozen=True)
class Rule:
    """Something that can be wrong: how grave, with what, how, and what to do about it."""

    grade: str
    noun: str  # takes an s for several
    finding: str
    remedy: str

    def sentence(self, count: int) -> str:
        """What is wrong, in so many cases, and what to do."""
        return f"{count} {self.noun}{'s' * (count != 1)} {self.finding}. {self.remedy}"


RULES = {
    "image": Rule(
        ERROR, "image", "that cannot be read",
        "A run stops there: replace the file, or take it out."),
    "mask": Rule(
        ERROR, "mask", "that cannot be read",
        "A run stops there: replace the file, or take it out."),
    "lost": Rule(
        ERROR, "mask", "named in a table but not there",
        "A run stops there: correct the name, or leave the cell empty."),
    "size": Rule(
        ERROR, "mask", "of another size than the image",
        "A run stops there: draw it on the image's own pixels."),
    "value": Rule(
        ERROR, "mask", "with a value that has no entry in defects_config.json",
        "A run stops there: add the entry to the file in the object's folder."),
    "values": Rule(
        ERROR, "mask", "with several values",
        "A run stops there: save one mask a defect, with one value and 0 elsewhere."),
    "leak": Rule(
        ERROR, "test image", "with the very pixels of a training image",
        "Figures come out too good: keep such an image in one of the two splits."),
    "twice": Rule(
        WARNING, "training image", "with the very pixels of another",
        "The copies may fall to different clients: keep one of them."),
    "unmasked": Rule(
        WARNING, "defective image", "without a mask",
        "Image figures count such an image, pixel figures leave it out. Draw a mask if you can."),
    "empty": Rule(
        WARNING, "mask", "in which no pixel is marked",
        "Where the defect is stays unknown: image figures count the image, pixel figures leave it "
        "out unless another of its masks is marked. Draw the mask if you can."),
    "few": Rule(
        WARNING, "object", f"with fewer than {FEW} training images",
        "Add images, or take few clients: each must see what is normal."),
    "no-normal": Rule(
        WARNING, "object", "without normal test images",
        "Such an object gets no AUROC: hold some normal images back for the test."),
    "no-defect": Rule(
        WARNING, "object", "without defective test images",
        "Such an object gets no AUROC: add images of defects to the test."),
    "rowless": Rule(
        WARNING, "image", "without a row in metadata.csv",
        "No partition can go by a column that some images lack: add the rows."),
    "gone": Rule(
        WARNING, "row", "of metadata.csv for an image that is not there",
        "Such a row is passed over: correct its path, which is relative to the file, or drop it."),
    "stray": Rule(
        WARNING, "image file", "that no rule of the layout takes up",
        "A run does not see such a file: move it to where docs/data.md says, or let it be."),
}  # fmt: skip


@dataclass(frozen=True)
class Note:
    """One case of a rule: where; or a fault, in its own words."""

    rule: str
    place: str


@dataclass(frozen=True)
class Problem:
    """Everything that is wrong in one way."""

    grade: str  # ERROR or WARNING
    sentence: str  # what is wrong and what to do
    places: tuple[str, ...] = ()  # files relative to the root, with what is known of each


def fold(notes: Iterable[Note]) -> tuple[Problem, ...]:
    """One problem a rule, in the order of the rules, after what kept splits from opening."""
    cases: dict[str, list[str]] = defaultdict(list)
    for note in notes:
        cases[note.rule].append(note.place)
    faults = [Problem(ERROR, fault) for fault in dict.fromkeys(cases[FAULT])]
    found = [(rule, cases[name]) for name, rule in RULES.items() if cases[name]]
    problems = [Problem(rule.grade, rule.sentence(len(p)), tuple(p)) for rule, p in found]
    return (*faults, *problems)
