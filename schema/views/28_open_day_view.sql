-- From which side were films taken on the days that are not counted yet?
-- One row per day, bundle, station, age band and view position: what daily_view has of the other days.
CREATE VIEW open_day_view AS
SELECT
    taken.day AS day,
    taken.bundle_id AS bundle_id,
    taken.station AS station,
    taken.age_band AS age_band,
    taken.view_position AS view_position,
    COUNT(*) AS films
FROM (
    SELECT
        open_day_result.day,
        open_day_result.bundle_id,
        open_day_result.station,
        open_day_result.age_band,
        (SELECT instance.view_position FROM instance WHERE instance.id = open_day_result.instance_id) AS view_position
    FROM open_day_result
) AS taken
GROUP BY
    taken.day, taken.bundle_id, taken.station, taken.age_band, taken.view_position
