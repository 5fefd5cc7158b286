"""The section of a report on mistakes: accuracy by class, which class is taken for which, the images answered most wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from kerneldna.report.run_report import Answers, Mistake, RunReport
from kerneldna.report.tables import by_class

CLASSES = 30  # shown of more: the weakest in the table, and no matrix


def mistakes(runs: Sequence[RunReport]) -> tuple[str, str]:
    """Return a panel for each run whose answers are known, as HTML (empty without any), and how to read it, as text."""
    answered = [(index, run, run.answers) for index, run in enumerate(runs) if run.answers]
    missing = [f"{run.name}: {run.unanswered}" for run in runs if run.unanswered]
    html = "".join(
        _panel(index, run.name if len(answered) > 1 else "", answers) for index, run, answers in answered
    )
    html += "".join(f'<p class="note">No validation images of {escape(text)}</p>' for text in missing)
    how = []
    if answered:
        how.append(
            "Images are those to validate on. In the matrix a row is a class, a column what its images are taken for, and the "
            "colour the square root of their share, so that rare mistakes show. The pictures are the mistakes that the network "
            "is surest of, with the probability it gives them."
        )
        if any(len(answers.classes) > CLASSES for *_, answers in answered):
            how.append(f"Of more than {CLASSES} classes the weakest {CLASSES} stand here, and no matrix.")
    return html, " ".join(how)


def has_matrix(answers: Answers) -> bool:
    """Say whether the classes are few enough for a matrix."""
    return len(answers.classes) <= CLASSES


def _panel(index: int, name: str, answers: Answers) -> str:
    head = f'<h3 class="of">{escape(name)}</h3>' if name else ""
    matrix = '<div class="card matrix" hidden></div>' if has_matrix(answers) else ""
    table = by_class(answers, most=CLASSES)
    shown = "".join(_mistake(each) for each in answers.mistakes)
    worst = f'<div class="card"><h3>Most wrong</h3><div class="wrong">{shown}</div></div>' if shown else ""
    return f'<div class="panel" data-run="{index}">{head}<div class="grid halves">{matrix}{table}</div>{worst}</div>'


def _mistake(mistake: Mistake) -> str:
    said = f"{mistake.answer}, {100 * mistake.share:.0f} %"
    picture = f"data:image/jpeg;base64,{mistake.picture}"
    return (
        f'<figure title="{escape(mistake.name)}"><img alt="{escape(mistake.name)}" src="{escape(picture)}">'
        f"<figcaption>{escape(said)}<small>is {escape(mistake.truth)}</small></figcaption></figure>"
    )
