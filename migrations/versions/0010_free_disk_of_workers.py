"""Each worker says how much room the disk of its home folder has. A database that goes back loses nothing else."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("worker", sa.Column("home_free_bytes", sa.BigInteger(), nullable=True))


def downgrade() -> None:
    op.drop_column("worker", "home_free_bytes")
