-- What did the detectors deliver on the days that are not counted yet?
-- One row per day, bundle, station and age band: what daily_input has of the other days.
CREATE VIEW open_day_input AS
SELECT
    open_day_result.day AS day,
    open_day_result.bundle_id AS bundle_id,
    open_day_result.station AS station,
    open_day_result.age_band AS age_band,
    COUNT(*) AS films,
    COUNT(segmentation.grey_mean) AS grey_films,
    COALESCE(SUM(segmentation.grey_mean), 0.0) AS grey_mean_sum,
    COALESCE(SUM(segmentation.grey_mean * segmentation.grey_mean), 0.0) AS grey_mean_squares,
    COALESCE(SUM(segmentation.grey_spread), 0.0) AS grey_spread_sum,
    COALESCE(SUM(segmentation.grey_spread * segmentation.grey_spread), 0.0) AS grey_spread_squares,
    COUNT(instance.row_spacing) AS spacing_films,
    COALESCE(SUM(instance.row_spacing), 0.0) AS spacing_sum,
    COALESCE(SUM(instance.row_spacing * instance.row_spacing), 0.0) AS spacing_squares
FROM open_day_result
JOIN job ON job.id = open_day_result.job_id
JOIN instance ON instance.id = job.instance_id
LEFT JOIN segmentation ON segmentation.job_id = open_day_result.job_id
GROUP BY
    open_day_result.day, open_day_result.bundle_id, open_day_result.station, open_day_result.age_band
