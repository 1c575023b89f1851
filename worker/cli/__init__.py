"""The command line: ``carina COMMAND``."""

from __future__ import annotations

import importlib
import logging
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import click

from worker import __version__

#: Command → module:attribute, in the order of ``carina --help``.
COMMANDS: dict[str, str] = {
    "demo": "worker.cli.work:demo",
    "run": "worker.cli.work:run",
    "submit": "worker.cli.work:submit",
    "watch": "worker.cli.work:watch",
    "listen": "worker.cli.listen:listen",
    "pull": "worker.cli.pull:pull",
    "worker": "worker.cli.work:worker",
    "solo": "worker.cli.work:solo",
    "merge": "worker.cli.merge:merge",
    "status": "worker.cli.look:status",
    "failed": "worker.cli.look:failed",
    "retry": "worker.cli.look:retry",
    "conflicts": "worker.cli.look:conflicts",
    "rules": "worker.cli.rules:rules",
    "export": "worker.cli.export:export",
    "report": "worker.cli.look:report",
    "serve": "worker.cli.serve:serve",
    "deliver": "worker.cli.deliver:deliver",
    "labels": "worker.cli.labels:labels",
    "auc": "worker.cli.auc:auc",
    "drift": "worker.cli.drift:drift",
    "alerts": "worker.cli.alerts:alerts",
    "bundle": "worker.cli.bundle:bundle",
    "engine": "worker.cli.engine:engine",
    "forget": "worker.cli.forget:forget",
    "db": "worker.cli.care:db",
    "doctor": "worker.cli.care:doctor",
    "info": "worker.cli.care:info",
}

#: Entry points of this group are commands of other packages, the trainer's among them.
GROUP = "carina.commands"

EXIT_FAILED_FILMS = 3


class LazyGroup(click.Group):
    """A group that imports a command's module when it is asked for: ``--help`` stays quick."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of COMMANDS, then those of other packages by name."""
        return [*COMMANDS, *sorted(set(_joined()) - set(COMMANDS))]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import the command, or None for an unknown name."""
        target = COMMANDS.get(cmd_name)
        if target is not None:
            module, _, attribute = target.partition(":")
            command = getattr(importlib.import_module(module), attribute)
        elif cmd_name in (joined := _joined()):
            command = joined[cmd_name].load()
        else:
            return None
        assert isinstance(command, click.Command)
        return command

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what a person can mend ends as one sentence and exit code 1."""
        from sqlalchemy.exc import DBAPIError

        from schema.bundle import BundleError
        from schema.database import DatabaseDriverError, DatabaseVersionError
        from worker.errors import CarinaError, FilmError, advice

        try:
            return super().invoke(ctx)
        except FilmError as error:
            raise click.ClickException(f"{error} {advice(error.code)}") from None
        except (CarinaError, BundleError, DatabaseDriverError, DatabaseVersionError) as error:
            raise click.ClickException(str(error)) from None
        except DBAPIError as error:
            # The statement and its values may hold identity: only the database's own words go out.
            reason = str(error.orig).strip().splitlines()[0] if error.orig else type(error).__name__
            raise click.ClickException(f"The database refused: {reason}. Run: carina doctor") from None


def _joined() -> dict[str, EntryPoint]:
    """The commands of other packages; none of their modules is imported."""
    return {point.name: point for point in entry_points(group=GROUP)}


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Settings are environment variables: docs/configuration.md. Research use, not a medical device.",
)
@click.version_option(__version__, prog_name="carina")
@click.option("-v", "--verbose", is_flag=True, help="Log what is done, not only what needs attention.")
def main(verbose: bool) -> None:
    """Read a night's chest radiographs: masks, flags and findings in SQL.

    Example: carina run /data/last-night --report /tmp/report
    """
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(message)s",
    )
    logging.getLogger("alembic").setLevel(logging.WARNING)
