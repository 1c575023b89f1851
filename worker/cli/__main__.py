"""``python -m worker.cli`` is ``carina``."""

from worker.cli import main

main(prog_name="carina")
