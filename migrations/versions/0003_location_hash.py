"""Find files by a hash of their place: a path can be longer than an entry of an index may be.

A database on PostgreSQL that holds such a path cannot go back, and says so.
"""

from __future__ import annotations

import hashlib

import sqlalchemy as sa
from alembic import op

from schema.database import DatabaseVersionError

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

FORMER = "uq_identity_path_member_root_size_modified_ns"
NOW = "uq_identity_location_hash"

#: SHA-256 of root, path, member, size and modification time with NULs between them, in hex.
FILL = {
    "sqlite": "UPDATE identity SET location_hash = location_hash(root, path, member, size, modified_ns)",
    "postgresql": r"""UPDATE identity SET location_hash = encode(sha256(
        convert_to(root, 'UTF8') || '\x00' || convert_to(path, 'UTF8') || '\x00' || convert_to(member, 'UTF8')
        || '\x00' || convert_to(size::text, 'UTF8') || '\x00' || convert_to(modified_ns::text, 'UTF8')), 'hex')""",
}


def _location_hash(*place: object) -> str:
    return hashlib.sha256("\0".join(map(str, place)).encode("utf-8", "surrogatepass")).hexdigest()


def upgrade() -> None:
    connection = op.get_bind()
    op.add_column("identity", sa.Column("location_hash", sa.String(length=64), nullable=True))
    if connection.dialect.name == "sqlite":
        # SQLite has no SHA-256 of its own.
        connection.connection.driver_connection.create_function("location_hash", 5, _location_hash, deterministic=True)
    op.execute(FILL[connection.dialect.name])
    with op.batch_alter_table("identity") as batch_op:
        batch_op.alter_column("location_hash", existing_type=sa.String(length=64), nullable=False)
        batch_op.drop_constraint(FORMER, type_="unique")
        batch_op.create_unique_constraint(NOW, ["location_hash"])


#: What PostgreSQL says of an entry that is too long for an index.
LIMIT_EXCEEDED = "54000"


def downgrade() -> None:
    try:
        with op.batch_alter_table("identity") as batch_op:
            batch_op.drop_constraint(NOW, type_="unique")
            batch_op.create_unique_constraint(FORMER, ["path", "member", "root", "size", "modified_ns"])
            batch_op.drop_column("location_hash")
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) != LIMIT_EXCEEDED:
            raise
        raise DatabaseVersionError(
            "The database cannot go back to version 0002: the path of a registered file is too long for it. "
            "Nothing was changed. Stay at this version, or restore the backup made before the upgrade."
        ) from None
