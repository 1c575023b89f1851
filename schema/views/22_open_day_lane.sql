-- What happened in each lane on the days that are not counted yet?
-- One row per day and lane: what daily_lane has of the other days. Of results with known times, half were
-- ready within the median and 95 of 100 within percentile_95; seconds from registration to result.
CREATE VIEW open_day_lane AS
SELECT
    ranked.day AS day,
    ranked.lane AS lane,
    SUM(CASE WHEN ranked.state = 'done' THEN 1 ELSE 0 END) AS done,
    SUM(ranked.flagged) AS flagged,
    SUM(CASE WHEN ranked.state = 'ineligible' THEN 1 ELSE 0 END) AS ineligible,
    SUM(CASE WHEN ranked.state = 'failed' THEN 1 ELSE 0 END) AS failed,
    AVG(ranked.wait_seconds) AS mean_wait_seconds,
    AVG(ranked.run_seconds) AS mean_run_seconds,
    COUNT(ranked.total_seconds) AS timed,
    AVG(CASE WHEN ranked.total_seconds IS NOT NULL THEN ranked.wait_seconds END) AS timed_mean_wait_seconds,
    AVG(CASE WHEN ranked.total_seconds IS NOT NULL THEN ranked.run_seconds END) AS timed_mean_run_seconds,
    AVG(ranked.total_seconds) AS mean_seconds,
    MIN(CASE WHEN ranked.share >= 0.5 THEN ranked.total_seconds END) AS median_seconds,
    MIN(CASE WHEN ranked.share >= 0.95 THEN ranked.total_seconds END) AS percentile_95_seconds,
    MAX(ranked.total_seconds) AS longest_seconds
FROM (
    SELECT
        finished.day AS day,
        finished.lane AS lane,
        finished.state AS state,
        finished.flagged AS flagged,
        finished.wait_seconds AS wait_seconds,
        finished.run_seconds AS run_seconds,
        finished.total_seconds AS total_seconds,
        CUME_DIST() OVER (
            PARTITION BY
                finished.day, finished.lane, CASE WHEN finished.total_seconds IS NULL THEN 0 ELSE 1 END
            ORDER BY finished.total_seconds
        ) AS share
    FROM (
        SELECT
            daily_open.day AS day,
            CASE WHEN job.priority = 0 THEN 'icu' ELSE 'archive' END AS lane,
            job.state AS state,
            -- Not EXISTS: for that PostgreSQL would read the flags of all films.
            CASE
                WHEN job.state = 'done'
                    THEN COALESCE((SELECT 1 FROM failure_flag WHERE failure_flag.job_id = job.id AND NOT failure_flag.notice LIMIT 1), 0)
                ELSE 0
            END AS flagged,
            job.wait_seconds AS wait_seconds,
            job.run_seconds AS run_seconds,
            CASE WHEN job.state = 'done' THEN job.wait_seconds + job.run_seconds END AS total_seconds
        FROM daily_open
        JOIN job ON job.finished_at >= daily_open.begins_at AND job.finished_at < daily_open.ends_at
        WHERE job.kind = 'process' AND job.published AND job.state IN ('done', 'ineligible', 'failed')
    ) AS finished
) AS ranked
GROUP BY ranked.day, ranked.lane
