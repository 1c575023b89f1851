"""Storage on PostgreSQL: room for the many updates of a job, no second compression of masks."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

#: A job is updated three times in its life. Free room in its page keeps those updates out of
#: most indexes, and a vacuum after 2 % of dead rows, without pauses, keeps the claim fast.
JOB_STORAGE = {"fillfactor": "80", "autovacuum_vacuum_scale_factor": "0.02", "autovacuum_vacuum_cost_delay": "0"}

#: Compressed by ourselves already.
COMPRESSED = (("segmentation", "mask"), ("segmentation", "raw_mask"), ("heatmap", "maps"))


def upgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    op.execute(f"ALTER TABLE job SET ({', '.join(f'{name} = {value}' for name, value in JOB_STORAGE.items())})")
    for table, column in COMPRESSED:
        op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTERNAL")


def downgrade() -> None:
    if op.get_bind().dialect.name != "postgresql":
        return
    for table, column in COMPRESSED:
        op.execute(f"ALTER TABLE {table} ALTER COLUMN {column} SET STORAGE EXTENDED")
    op.execute(f"ALTER TABLE job RESET ({', '.join(JOB_STORAGE)})")
