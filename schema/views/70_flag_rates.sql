-- How often does each rule fire?
-- One row per bundle and rule that fired at least once; shadow jobs count for their bundle.
CREATE VIEW flag_rates AS
SELECT
    bundle.name || ':' || bundle.version AS bundle,
    fired.rule AS rule,
    fired.films AS flagged_films,
    total.films AS films,
    CAST(fired.films AS FLOAT) / total.films AS rate
FROM (
    SELECT job.bundle_id AS bundle_id, failure_flag.rule AS rule, COUNT(DISTINCT job.id) AS films
    FROM failure_flag
    JOIN job ON job.id = failure_flag.job_id
    WHERE job.kind <> 'verify' AND job.state = 'done'
    GROUP BY job.bundle_id, failure_flag.rule
) AS fired
JOIN (
    SELECT job.bundle_id AS bundle_id, COUNT(*) AS films
    FROM job
    WHERE job.kind <> 'verify' AND job.state = 'done'
    GROUP BY job.bundle_id
) AS total ON total.bundle_id = fired.bundle_id
JOIN bundle ON bundle.id = fired.bundle_id
