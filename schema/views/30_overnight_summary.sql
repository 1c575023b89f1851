-- What did the night bring?
-- One row per day (UTC, when the work ended) and lane.
CREATE VIEW overnight_summary AS
SELECT
    finished.day AS day,
    finished.lane AS lane,
    SUM(CASE WHEN finished.state = 'done' THEN 1 ELSE 0 END) AS done,
    SUM(finished.flagged) AS flagged,
    SUM(CASE WHEN finished.state = 'ineligible' THEN 1 ELSE 0 END) AS ineligible,
    SUM(CASE WHEN finished.state = 'failed' THEN 1 ELSE 0 END) AS failed,
    AVG(finished.wait_seconds) AS mean_wait_seconds,
    AVG(finished.run_seconds) AS mean_run_seconds
FROM (
    SELECT
        date(job.finished_at) AS day,
        CASE WHEN job.priority = 0 THEN 'icu' ELSE 'archive' END AS lane,
        job.state AS state,
        job.wait_seconds AS wait_seconds,
        job.run_seconds AS run_seconds,
        CASE
            WHEN job.state = 'done' AND EXISTS (SELECT 1 FROM failure_flag WHERE failure_flag.job_id = job.id) THEN 1
            ELSE 0
        END AS flagged
    FROM job
    WHERE
        job.kind = 'process'
        AND job.published
        AND job.finished_at IS NOT NULL
        AND job.state IN ('done', 'ineligible', 'failed')
) AS finished
GROUP BY finished.day, finished.lane
