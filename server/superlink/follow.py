"""What a person sees while a run goes on: one line per round and site, and a bar with the time left."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from shared.config.experiment import Experiment


def progress(console: Console) -> Progress:
    """A bar with a count and the time left."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    )


class Follow:
    """Prints one line per round and site, and moves a bar with the time left."""

    def __init__(self, console: Console, bar: Progress, experiment: Experiment) -> None:
        self.console, self.bar = console, bar
        self.sites = len(experiment.sites) or experiment.cohort.sites
        self.rounds = experiment.training.rounds
        self.task: TaskID = bar.add_task("starting the federation", total=self.rounds * self.sites)

    def __call__(self, event: dict[str, Any]) -> None:
        kind, number = event["event"], event.get("round")
        say = {
            "studying": f"round {number}: biomarkers and downstream utility",
            "evaluating": f"round {number}/{self.rounds}: drawing and evaluating",
            "round_started": f"round {number}/{self.rounds}: training",
        }.get(kind)
        if say:
            self.bar.update(self.task, description=say)
        elif kind == "proposing":
            self.bar.reset(self.task, total=event["images"], description="drawing what would be released")
        elif kind == "drawn":
            self.bar.update(self.task, completed=event["images"], total=event["total"])
        elif kind == "asking":
            self.bar.update(self.task, description="asking the sites about the release")
        elif kind == "site_judged":
            self.console.print(
                f"  {event['site']}: {'yes' if event['passed'] else '[red]no[/]'} to the release", highlight=False
            )
        elif kind == "site_did_not_judge":
            self.console.print(
                f"  {event['site']}: [red]no answer[/] about the release · {escape(event['reason'])}", highlight=False
            )
        elif kind == "site_replied":
            spent = "" if event["epsilon"] is None else f", epsilon {event['epsilon']:.3f}"
            self.bar.advance(self.task)
            self.console.print(f"  round {number} · {event['site']}: update received{spent}", highlight=False)
        elif kind == "site_failed":
            self.bar.advance(self.task)
            self.console.print(
                f"  round {number} · {event['site']}: [red]no update[/] · {escape(event['reason'])}", highlight=False
            )
        elif kind == "evaluated":
            shown = ", ".join(
                f"{name} {f['value']:.3g} (floor {f['floor']:.3g})" for name, f in event["metrics"].items()
            )
            self.console.print(f"  round {number} · evaluated: {shown}", highlight=False)
