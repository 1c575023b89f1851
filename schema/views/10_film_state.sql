-- What became of each file that came?
-- One row per arrival. A file that is a film (or is still to be verified) stands where its
-- newest published job stands; every other file ended with its arrival. A job without an
-- arrival reads the instance's current one; a cancelled job counts only if there is no other.
CREATE VIEW film_state AS
SELECT
    arrival.id AS arrival_id,
    arrival.submission_id AS submission_id,
    arrival.instance_id AS instance_id,
    arrival.arrived_at AS arrived_at,
    arrival.state AS arrival_state,
    job.id AS job_id,
    job.state AS job_state,
    CASE WHEN job.id IS NULL THEN arrival.state ELSE job.state END AS state,
    CASE WHEN job.id IS NULL THEN arrival.code ELSE job.code END AS code,
    CASE WHEN job.id IS NULL THEN arrival.detail ELSE job.detail END AS detail,
    job.stage AS stage,
    job.attempts AS attempts,
    job.generation AS generation,
    job.revision AS revision,
    job.bundle_id AS bundle_id,
    bundle.name || ':' || bundle.version AS bundle,
    -- Not EXISTS: for that PostgreSQL would read the flags of all films.
    CASE
        WHEN job.state = 'done'
            THEN COALESCE((SELECT 1 FROM failure_flag WHERE failure_flag.job_id = job.id AND NOT failure_flag.notice LIMIT 1), 0)
        ELSE 0
    END AS flagged,
    job.wait_seconds AS wait_seconds,
    job.run_seconds AS run_seconds,
    job.finished_at AS finished_at
FROM arrival
LEFT JOIN job ON job.id = (
    SELECT candidate.id
    FROM job AS candidate
    WHERE
        candidate.instance_id = arrival.instance_id
        AND candidate.published
        AND candidate.kind = CASE arrival.state WHEN 'instance' THEN 'process' WHEN 'unverified' THEN 'verify' END
        AND (candidate.arrival_id = arrival.id OR (candidate.arrival_id IS NULL AND arrival.current))
    ORDER BY CASE WHEN candidate.state = 'cancelled' THEN 1 ELSE 0 END, candidate.id DESC
    LIMIT 1
)
LEFT JOIN bundle ON bundle.id = job.bundle_id
