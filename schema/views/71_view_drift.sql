-- Are films taken from the sides they were?
-- One row per day, bundle, station, age band and view position; the days are UTC and of the end of the work.
-- Results of bundles on trial count for their bundle.
CREATE VIEW view_drift AS
SELECT
    counted.day AS day,
    bundle.name || ':' || bundle.version AS bundle,
    counted.station AS station,
    counted.age_band AS age_band,
    counted.view_position AS view_position,
    counted.films AS films
FROM (
    SELECT
        daily_view.day,
        daily_view.bundle_id,
        daily_view.station,
        daily_view.age_band,
        daily_view.view_position,
        daily_view.films
    FROM daily_view
    WHERE NOT EXISTS (SELECT 1 FROM daily_open WHERE daily_open.day = daily_view.day)
    UNION ALL
    SELECT
        open_day_view.day,
        open_day_view.bundle_id,
        open_day_view.station,
        open_day_view.age_band,
        open_day_view.view_position,
        open_day_view.films
    FROM open_day_view
) AS counted
JOIN bundle ON bundle.id = counted.bundle_id
