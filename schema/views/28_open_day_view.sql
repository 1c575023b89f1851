-- From which side were films taken on the days that are not counted yet?
-- One row per day, bundle, station, age band and view position: what daily_view has of the other days.
CREATE VIEW open_day_view AS
SELECT
    open_day_result.day AS day,
    open_day_result.bundle_id AS bundle_id,
    open_day_result.station AS station,
    open_day_result.age_band AS age_band,
    instance.view_position AS view_position,
    COUNT(*) AS films
FROM open_day_result
JOIN job ON job.id = open_day_result.job_id
JOIN instance ON instance.id = job.instance_id
GROUP BY
    open_day_result.day, open_day_result.bundle_id, open_day_result.station, open_day_result.age_band, instance.view_position
