-- How many results do the days that are not counted yet have?
-- One row per day, bundle, station and age band: what daily_film has of the other days.
CREATE VIEW open_day_film AS
SELECT
    open_day_result.day AS day,
    open_day_result.bundle_id AS bundle_id,
    open_day_result.station AS station,
    open_day_result.age_band AS age_band,
    COUNT(*) AS films,
    -- Not EXISTS: for that PostgreSQL would read the flags of all films.
    SUM(
        COALESCE((
            SELECT 1 FROM failure_flag
            WHERE failure_flag.job_id = open_day_result.job_id AND NOT failure_flag.notice LIMIT 1
        ), 0)
    ) AS flagged_films,
    SUM(CASE WHEN segmentation.repaired_pixels > 0 THEN 1 ELSE 0 END) AS repaired_films,
    COALESCE(SUM(segmentation.repaired_pixels), 0) AS repaired_pixels
FROM open_day_result
LEFT JOIN segmentation ON segmentation.job_id = open_day_result.job_id
GROUP BY
    open_day_result.day, open_day_result.bundle_id, open_day_result.station, open_day_result.age_band
