-- Which result speaks for each film?
-- One row per film with a result: of the film's present generation, the champion bundle's if
-- there is one, else the newest.
CREATE VIEW published_result AS
SELECT
    job.id AS job_id,
    job.instance_id AS instance_id,
    job.arrival_id AS arrival_id,
    instance.key AS instance_key,
    instance.patient_key AS patient_key,
    instance.study_key AS study_key,
    instance.held_out AS held_out,
    instance.sex AS sex,
    instance.age_days AS age_days,
    instance.view_position AS view_position,
    job.bundle_id AS bundle_id,
    bundle.name || ':' || bundle.version AS bundle,
    job.revision AS revision,
    job.generation AS generation,
    -- Not EXISTS: for that PostgreSQL would read the flags of all films.
    COALESCE((SELECT 1 FROM failure_flag WHERE failure_flag.job_id = job.id AND NOT failure_flag.notice LIMIT 1), 0) AS flagged,
    job.wait_seconds AS wait_seconds,
    job.run_seconds AS run_seconds,
    job.finished_at AS finished_at
FROM job
JOIN instance ON instance.id = job.instance_id AND instance.generation = job.generation
JOIN bundle ON bundle.id = job.bundle_id
WHERE
    job.kind = 'process'
    AND job.state = 'done'
    AND job.published
    AND job.id = (
        SELECT rival.id
        FROM job AS rival
        LEFT JOIN bundle_alias AS champion
            ON champion.bundle_id = rival.bundle_id AND champion.alias = 'champion'
        WHERE
            rival.instance_id = job.instance_id
            AND rival.generation = job.generation
            AND rival.kind = 'process'
            AND rival.bundle_id IS NOT NULL
            AND rival.state = 'done'
            AND rival.published
        ORDER BY CASE WHEN champion.alias IS NULL THEN 1 ELSE 0 END, rival.id DESC
        LIMIT 1
    )
