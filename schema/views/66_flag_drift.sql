-- Does a rule fire more often than it did?
-- One row per day, bundle, station, age band and rule that fired there; film_drift has how many films there were; the days are UTC and of the end of the work.
-- Results of bundles on trial count for their bundle.
CREATE VIEW flag_drift AS
SELECT
    counted.day AS day,
    bundle.name || ':' || bundle.version AS bundle,
    counted.station AS station,
    counted.age_band AS age_band,
    counted.rule AS rule,
    counted.flagged_films AS flagged_films
FROM (
    SELECT
        daily_flag.day,
        daily_flag.bundle_id,
        daily_flag.station,
        daily_flag.age_band,
        daily_flag.rule,
        daily_flag.flagged_films
    FROM daily_flag
    WHERE NOT EXISTS (SELECT 1 FROM daily_open WHERE daily_open.day = daily_flag.day)
    UNION ALL
    SELECT
        open_day_flag.day,
        open_day_flag.bundle_id,
        open_day_flag.station,
        open_day_flag.age_band,
        open_day_flag.rule,
        open_day_flag.flagged_films
    FROM open_day_flag
) AS counted
JOIN bundle ON bundle.id = counted.bundle_id
