"""Is the ledger still sound?

What the tables' own constraints cannot say because it spans several of them. Each query
counts what must not exist; ``carina doctor`` and every test with a kill in it ask them all.
"""

from __future__ import annotations

from sqlalchemy import exists, func, select, text

from schema.database import Database
from schema.tables import job, lease
from schema.types import database_now

#: What is wrong → query that counts it. The same SQL serves SQLite and PostgreSQL.
INVARIANTS: dict[str, str] = {
    "jobs done without a result": """
        SELECT count(*) FROM job LEFT JOIN segmentation ON segmentation.job_id = job.id
        WHERE job.state = 'done' AND job.kind <> 'verify' AND segmentation.job_id IS NULL""",
    "results whose job is not done": """
        SELECT count(*) FROM segmentation JOIN job ON job.id = segmentation.job_id
        WHERE job.state <> 'done' OR job.kind = 'verify'""",
    "measurements without a result": """
        SELECT count(*) FROM region_measurement AS part
        WHERE NOT EXISTS (SELECT 1 FROM segmentation WHERE segmentation.job_id = part.job_id)""",
    "findings without a result": """
        SELECT count(*) FROM finding_score AS part
        WHERE NOT EXISTS (SELECT 1 FROM segmentation WHERE segmentation.job_id = part.job_id)""",
    "flags without a result": """
        SELECT count(*) FROM failure_flag AS part
        WHERE NOT EXISTS (SELECT 1 FROM segmentation WHERE segmentation.job_id = part.job_id)""",
    "heat maps without a result": """
        SELECT count(*) FROM heatmap AS part
        WHERE NOT EXISTS (SELECT 1 FROM segmentation WHERE segmentation.job_id = part.job_id)""",
    "leased jobs without a lease": """
        SELECT count(*) FROM job LEFT JOIN lease ON lease.id = job.lease_id
        WHERE job.state = 'leased' AND lease.id IS NULL""",
    "leased jobs without a bundle": """
        SELECT count(*) FROM job
        WHERE state = 'leased' AND kind <> 'verify' AND (bundle_id IS NULL OR revision IS NULL)""",
    "films without any job": """
        SELECT count(*) FROM instance
        WHERE NOT EXISTS (SELECT 1 FROM job WHERE job.instance_id = instance.id AND job.kind = 'process')""",
    "films without a current file": """
        SELECT count(*) FROM instance
        WHERE NOT EXISTS (SELECT 1 FROM arrival WHERE arrival.instance_id = instance.id AND arrival.current)""",
    "unverified files that nobody will verify": """
        SELECT count(*) FROM arrival
        WHERE arrival.state = 'unverified' AND NOT EXISTS (
            SELECT 1 FROM job WHERE job.arrival_id = arrival.id AND job.kind = 'verify'
            AND (job.state NOT IN ('done', 'cancelled', 'ineligible') OR job.code = 'RULE_SKIPPED'))""",
    "jobs that wait with a bundle": """
        SELECT count(*) FROM job
        WHERE state IN ('ready', 'delayed', 'cancelled') AND kind <> 'shadow' AND bundle_id IS NOT NULL""",
    "shadow jobs of the bundle in service": """
        SELECT count(*) FROM job JOIN bundle_alias ON bundle_alias.bundle_id = job.bundle_id
        WHERE bundle_alias.alias = 'champion'
            AND job.kind = 'shadow' AND job.state IN ('ready', 'delayed', 'leased')""",
    "finished jobs without an end": """
        SELECT count(*) FROM job
        WHERE state IN ('done', 'ineligible', 'failed') AND attempts > 0 AND finished_at IS NULL""",
}


def check_invariants(database: Database) -> list[str]:
    """What is wrong with the ledger, a sentence each; empty when it is sound."""
    with database.read() as connection:
        counts = {meaning: int(connection.scalar(text(query)) or 0) for meaning, query in INVARIANTS.items()}
        counts["leases that ran out and hold nothing"] = int(connection.scalar(_ORPHANS) or 0)
    return [f"{count} {meaning}" for meaning, count in counts.items() if count]


#: A live lease may hold nothing for a while: its jobs were cancelled under it.
_ORPHANS = (
    select(func.count())
    .select_from(lease)
    .where(lease.c.expires_at < database_now(), ~exists().where(job.c.lease_id == lease.c.id))
)
