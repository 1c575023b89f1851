-- Which rules fired on the days that are not counted yet?
-- One row per day, bundle, station, age band and rule: what daily_flag has of the other days.
CREATE VIEW open_day_flag AS
SELECT
    open_day_result.day AS day,
    open_day_result.bundle_id AS bundle_id,
    open_day_result.station AS station,
    open_day_result.age_band AS age_band,
    failure_flag.rule AS rule,
    COUNT(DISTINCT open_day_result.job_id) AS flagged_films
FROM open_day_result
JOIN failure_flag ON failure_flag.job_id = open_day_result.job_id
GROUP BY
    open_day_result.day, open_day_result.bundle_id, open_day_result.station, open_day_result.age_band, failure_flag.rule
