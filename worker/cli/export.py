"""carina export: results as files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click

from schema.outputs import OutputKind
from worker.cli import EXIT_FAILED_FILMS
from worker.settings import Settings, load_settings

#: What films are named by the SOP Instance UID in, always.
_WITH_UID = ("png", "csv")
#: Format → what its files are called in the last line.
_RESEARCH = {"dicom": "DICOM files", "nifti": "label maps", "parquet": "films", "json": "films"}


def _kinds(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[OutputKind, ...] | None:
    """Output kinds separated by commas."""
    if value is None:
        return None
    try:
        return tuple(dict.fromkeys(OutputKind(word.strip()) for word in value.split(",")))
    except ValueError:
        known = ", ".join(OutputKind)
        raise click.BadParameter(f"{value!r}: write one or more of {known}, separated by commas.") from None


@click.command()
@click.option(
    "--format", "form", required=True, type=click.Choice([*_WITH_UID, *_RESEARCH]), help="What to write; see above."
)
@click.option("--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="Folder to write to.")
@click.option("--submission", type=int, help="Only this submission's films.")
@click.option(
    "--outputs",
    callback=_kinds,
    metavar="KIND,KIND",
    help=f"With dicom: {', '.join(OutputKind)}. [default: segmentation,report]",
)
@click.option("--keep-age-and-sex", is_flag=True, help="Keep age and sex in an export without identity.")
@click.option("--with-identity", is_flag=True, help="Name patients and studies; needs the site key and is recorded.")
@click.pass_context
def export(
    ctx: click.Context,
    *,
    form: str,
    out: Path,
    submission: int | None,
    outputs: tuple[OutputKind, ...] | None,
    keep_age_and_sex: bool,
    with_identity: bool,
) -> None:
    """Write results as files.

    png: a label map per film, named by its SOP Instance UID. csv: the table films.csv of all that came. The
    others are for research and hold no identity unless asked: dicom: segmentations, reports and pictures.
    nifti: a label map per film. parquet: tables of films, findings, regions and flags. json: one document per
    film and line.

    Example: carina export --format parquet --out /tmp/tables
    """
    from worker.results.export import export_csv, export_png
    from worker.service import open_database

    if form in _WITH_UID and (with_identity or keep_age_and_sex):
        raise click.UsageError("--with-identity and --keep-age-and-sex go with dicom, nifti, parquet and json.")
    if outputs is not None and form != "dicom":
        raise click.UsageError("--outputs goes with --format dicom.")
    settings = load_settings()
    with open_database(settings) as database:
        if form == "png":
            count = export_png(database, out, submission_id=submission)
            click.echo(f"{count} label maps written to {out}")
        elif form == "csv":
            count = export_csv(database, out, submission_id=submission, roots=settings.root_folders)
            click.echo(f"{count} rows written to {out}")
    if form in _RESEARCH:
        kinds = outputs or (OutputKind.SEGMENTATION, OutputKind.REPORT)
        left_out = _export_for_research(
            settings, form, out, submission, kinds=kinds, age_and_sex=keep_age_and_sex, identified=with_identity
        )
        if left_out:
            ctx.exit(EXIT_FAILED_FILMS)


def _export_for_research(
    settings: Settings,
    form: str,
    out: Path,
    submission: int | None,
    *,
    kinds: Sequence[OutputKind],
    age_and_sex: bool,
    identified: bool,
) -> int:
    """Write an export for research, and say what of identity is in it; returns how many films were left out."""
    from worker.results.outputs.objects import PICTURES, Naming
    from worker.results.research.dicom import export_dicom
    from worker.results.research.documents import export_json
    from worker.results.research.films import allow_identity
    from worker.results.research.nifti import export_nifti
    from worker.results.research.parquet import export_parquet
    from worker.service import open_database

    naming, left_out = Naming(identified, age_and_sex), 0
    tables = {"nifti": export_nifti, "parquet": export_parquet, "json": export_json}
    with open_database(settings) as database:
        if identified:
            allow_identity(database, settings, form, submission)
            click.echo("This export names patients; that it was made is recorded in audit_event.", err=True)
        elif form == "dicom" and PICTURES & set(kinds):
            click.echo("Pictures show the film: text burnt into it is not removed. Look at them first.", err=True)
        if form == "dicom":
            written = export_dicom(database, settings, out, kinds, naming, submission_id=submission)
            count, left_out = written.files, written.films_left_out
        else:
            count = tables[form](database, out, naming, submission_id=submission)
    click.echo(f"{count} {_RESEARCH[form]} written to {out}")
    if left_out:
        click.echo(f"{left_out} films left out: their files are gone or cannot be read.", err=True)
    return left_out
