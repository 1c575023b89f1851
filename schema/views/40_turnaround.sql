-- How long from a film's registration to its result?
-- One row per day (UTC, when the result was written) and lane; seconds. Half of the films
-- were ready within the median, 95 of 100 within percentile_95.
CREATE VIEW turnaround AS
SELECT
    ranked.day AS day,
    ranked.lane AS lane,
    COUNT(*) AS films,
    AVG(ranked.wait_seconds) AS mean_wait_seconds,
    AVG(ranked.run_seconds) AS mean_run_seconds,
    AVG(ranked.total_seconds) AS mean_seconds,
    MIN(CASE WHEN ranked.share >= 0.5 THEN ranked.total_seconds END) AS median_seconds,
    MIN(CASE WHEN ranked.share >= 0.95 THEN ranked.total_seconds END) AS percentile_95_seconds,
    MAX(ranked.total_seconds) AS longest_seconds
FROM (
    SELECT
        timed.day AS day,
        timed.lane AS lane,
        timed.wait_seconds AS wait_seconds,
        timed.run_seconds AS run_seconds,
        timed.total_seconds AS total_seconds,
        CUME_DIST() OVER (PARTITION BY timed.day, timed.lane ORDER BY timed.total_seconds) AS share
    FROM (
        SELECT
            date(job.finished_at) AS day,
            CASE WHEN job.priority = 0 THEN 'icu' ELSE 'archive' END AS lane,
            job.wait_seconds AS wait_seconds,
            job.run_seconds AS run_seconds,
            job.wait_seconds + job.run_seconds AS total_seconds
        FROM job
        WHERE
            job.kind = 'process'
            AND job.state = 'done'
            AND job.published
            AND job.wait_seconds IS NOT NULL
            AND job.run_seconds IS NOT NULL
    ) AS timed
) AS ranked
GROUP BY ranked.day, ranked.lane
