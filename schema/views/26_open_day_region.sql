-- How large are regions on the days that are not counted yet?
-- One row per day, bundle, station, age band and region: what daily_region has of the other days.
CREATE VIEW open_day_region AS
SELECT
    open_day_result.day AS day,
    open_day_result.bundle_id AS bundle_id,
    open_day_result.station AS station,
    open_day_result.age_band AS age_band,
    region_measurement.region AS region,
    COUNT(*) AS films,
    SUM(CASE WHEN region_measurement.area_pixels = 0 THEN 1 ELSE 0 END) AS missing_films,
    SUM(region_measurement.area_fraction) AS area_fraction_sum,
    SUM(region_measurement.area_fraction * region_measurement.area_fraction) AS area_fraction_squares
FROM open_day_result
JOIN region_measurement ON region_measurement.job_id = open_day_result.job_id
GROUP BY
    open_day_result.day, open_day_result.bundle_id, open_day_result.station, open_day_result.age_band, region_measurement.region
