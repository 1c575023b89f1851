-- What did the detectors deliver on the days that are not counted yet?
-- One row per day, bundle, station and age band: what daily_input has of the other days.
CREATE VIEW open_day_input AS
SELECT
    delivered.day AS day,
    delivered.bundle_id AS bundle_id,
    delivered.station AS station,
    delivered.age_band AS age_band,
    COUNT(*) AS films,
    COUNT(segmentation.grey_mean) AS grey_films,
    COALESCE(SUM(segmentation.grey_mean), 0.0) AS grey_mean_sum,
    COALESCE(SUM(segmentation.grey_mean * segmentation.grey_mean), 0.0) AS grey_mean_squares,
    COALESCE(SUM(segmentation.grey_spread), 0.0) AS grey_spread_sum,
    COALESCE(SUM(segmentation.grey_spread * segmentation.grey_spread), 0.0) AS grey_spread_squares,
    COUNT(delivered.row_spacing) AS spacing_films,
    COALESCE(SUM(delivered.row_spacing), 0.0) AS spacing_sum,
    COALESCE(SUM(delivered.row_spacing * delivered.row_spacing), 0.0) AS spacing_squares
FROM (
    SELECT
        open_day_result.day,
        open_day_result.bundle_id,
        open_day_result.station,
        open_day_result.age_band,
        open_day_result.job_id,
        (SELECT instance.row_spacing FROM instance WHERE instance.id = open_day_result.instance_id) AS row_spacing
    FROM open_day_result
) AS delivered
LEFT JOIN segmentation ON segmentation.job_id = delivered.job_id
GROUP BY
    delivered.day, delivered.bundle_id, delivered.station, delivered.age_band
